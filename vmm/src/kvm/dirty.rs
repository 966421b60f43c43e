//! What vCPUs write to guest memory, as KVM logs it: a bit for each page of a slot of RAM.

#![allow(unsafe_code)] // Handing guest memory to KVM cannot be checked by the compiler.

use std::io;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::io_error;
use crate::memory::{self, Memory};

/// Gives `vm` each region of `memory` in the slot of its number, or changes `flags` of those that it
/// has.
pub(super) fn set_slots(vm: &VmFd, memory: &Memory, flags: u32) -> Result<(), kvm_ioctls::Error> {
    for (slot, (guest_phys_addr, userspace_addr, memory_size)) in (0..).zip(memory::regions(memory))
    {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: the range is a whole mapping that `memory` owns. `Machine` holds `memory` for as
        // long as the virtual machine, and everything else reaches it through volatile accesses, so
        // a guest may change it at any time.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

/// Has KVM log what the guest writes to `memory`, which is all of RAM of `vm`, from here on; or has it
/// stop that, and forget what it has logged.
///
/// # Errors
/// KVM has no memory for the log.
pub(crate) fn log(vm: &VmFd, memory: &Memory, is_on: bool) -> io::Result<()> {
    let flags = if is_on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    set_slots(vm, memory, flags).map_err(io_error)
}

/// What has been logged of each region of `memory` since the last call, a bit for each page, from the
/// lowest bit of the first word on. The log begins anew, and misses nothing in between.
///
/// # Errors
/// Nothing is logged.
pub(crate) fn logged(vm: &VmFd, memory: &Memory) -> impl Iterator<Item = io::Result<Vec<u64>>> {
    (0..)
        .zip(memory::regions(memory))
        .map(|(slot, (_, _, size))| {
            let size = usize::try_from(size).map_err(io::Error::other)?;
            vm.get_dirty_log(slot, size).map_err(io_error)
        })
}
