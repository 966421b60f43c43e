//! KVM's memory slots besides those of RAM: BARs of assigned devices, which the guest reaches
//! without an exit.

#![allow(unsafe_code)] // Handing memory to KVM cannot be checked by the compiler.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use devices::vfio::GuestMappings;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, VmFd};
use parking_lot::{Mutex, MutexGuard};
use vm_memory::MmapRegion;

use super::io_error;
use crate::memory::{self, Memory};

/// Mappings begin and end at multiples of it.
const PAGE: u64 = 0x1000;

/// The slots that RAM leaves.
pub(crate) struct KvmSlots(Arc<Slots>);

struct Slots {
    vm: Arc<VmFd>,
    /// Where RAM is.
    ram: Vec<Range<u64>>,
    /// Numbers of slots for mappings.
    numbers: Range<u32>,
    /// What is mapped, by slot. Held while KVM is told; nothing else is called then.
    mapped: Mutex<BTreeMap<u32, Range<u64>>>,
}

impl KvmSlots {
    /// The slots of `vm`, which has those of `memory` already.
    pub(crate) fn new(vm: Arc<VmFd>, memory: &Memory) -> Self {
        let ram: Vec<_> = memory::regions(memory)
            .map(|(address, _, size)| address..address + size)
            .collect();
        let first = u32::try_from(ram.len()).unwrap_or(u32::MAX);
        let end = u32::try_from(vm.check_extension_int(Cap::NrMemslots)).unwrap_or(0);
        Self(Arc::new(Slots {
            vm,
            ram,
            numbers: first..end,
            mapped: Mutex::default(),
        }))
    }
}

impl GuestMappings for KvmSlots {
    fn map(
        &self,
        address: u64,
        memory: &Arc<MmapRegion>,
        offset: u64,
        length: u64,
    ) -> io::Result<Box<dyn Any + Send + Sync>> {
        let slots = &self.0;
        let mut mapped = slots.lock();
        let range = check(address, memory.size(), offset, length)?;
        if let Some(other) = slots
            .ram
            .iter()
            .chain(mapped.values())
            .find(|other| other.start < range.end && range.start < other.end)
        {
            return Err(invalid(format!(
                "guest memory {range:#x?} overlaps {other:#x?}, which is mapped"
            )));
        }
        let mut numbers = slots.numbers.clone();
        let Some(number) = numbers.find(|number| !mapped.contains_key(number)) else {
            return Err(io::Error::other(format!(
                "all {} memory slots of KVM are in use",
                slots.numbers.len()
            )));
        };
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: 0,
            guest_phys_addr: address,
            memory_size: length,
            userspace_addr: memory.as_ptr().expose_provenance() as u64 + offset,
        };
        // SAFETY: the range lies within a mapping that `memory` owns, as was checked, and no other
        // slot has this number. The value that is returned holds `memory` until the slot is
        // removed. It is memory of a device, which changes at any time; nothing in this process has
        // references into it.
        unsafe { slots.vm.set_user_memory_region(region) }.map_err(io_error)?;
        mapped.insert(number, range);
        Ok(Box::new(Mapping {
            slots: Arc::clone(slots),
            region,
            memory: Arc::clone(memory),
        }))
    }
}

/// The guest's range, if the arguments make sense.
fn check(address: u64, size: usize, offset: u64, length: u64) -> io::Result<Range<u64>> {
    if [address, offset, length]
        .iter()
        .any(|value| value % PAGE != 0)
    {
        return Err(invalid(format!(
            "{address:#x}, {offset:#x} or {length:#x} is no multiple of the page size"
        )));
    }
    let within = offset
        .checked_add(length)
        .is_some_and(|end| u64::try_from(size).is_ok_and(|size| end <= size));
    match address.checked_add(length) {
        Some(end) if within && length != 0 => Ok(address..end),
        _ => Err(invalid(format!(
            "{length:#x} bytes from {offset:#x} on cannot be mapped at {address:#x}: {size:#x} are there"
        ))),
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Range<u64>>> {
        self.mapped.lock()
    }
}

/// A slot in use. Dropping it takes the memory away from the guest.
struct Mapping {
    slots: Arc<Slots>,
    region: kvm_userspace_memory_region,
    memory: Arc<MmapRegion>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut mapped = self.slots.lock();
        let gone = kvm_userspace_memory_region {
            memory_size: 0,
            ..self.region
        };
        // SAFETY: a size of zero removes the slot, and KVM lets go of the memory before the call
        // returns.
        match unsafe { self.slots.vm.set_user_memory_region(gone) } {
            Ok(()) => drop(mapped.remove(&self.region.slot)),
            Err(error) => {
                // The guest still reaches it, so it has to stay, and its slot with it.
                std::mem::forget(Arc::clone(&self.memory));
                log::warn!(
                    "KVM does not let go of the memory at {:#x}: {error}",
                    self.region.guest_phys_addr
                );
            }
        }
    }
}

#[cfg(test)]
mod slots_test;
