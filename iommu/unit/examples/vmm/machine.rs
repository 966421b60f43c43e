//! The parts of a VMM that a unit touches: guest memory, exits for MMIO, interrupts, ACPI, snapshots.

use std::error::Error;
use std::sync::Arc;

use intel_vtd::inspect::Explanation;
use intel_vtd::{
    ConfigError, EventSink, REGISTER_WINDOW_SIZE, StateError, Statistics, Unit, UnitConfig,
    UnitState,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::device::{Device, SOURCE};
use crate::platform::{Apics, Memory};

/// Where the guest finds the unit's registers: any free range of guest-physical addresses. The DMAR table tells it.
pub(crate) const UNIT_BASE: u64 = 0xFED9_0000;
/// Where it finds the device's doorbell.
pub(crate) const DOORBELL: u64 = 0xFEB0_0000;

/// Makes 16 MiB of guest memory.
pub(crate) fn memory() -> Result<Memory, Box<dyn Error>> {
    let ranges = [(GuestAddress(0), 16 << 20)];
    Ok(Arc::new(GuestMemoryMmap::from_ranges(&ranges)?))
}

fn config() -> UnitConfig {
    // As many bits as the guest's CPUID leaf 0x80000008 says that physical addresses have.
    UnitConfig::svm(46)
}

/// A virtual machine.
pub(crate) struct Machine {
    memory: Memory,
    apics: Arc<Apics>,
    unit: Arc<Unit<Memory>>,
    device: Device,
}

impl Machine {
    pub(crate) fn new(memory: Memory) -> Result<Self, ConfigError> {
        let apics = Arc::new(Apics::default());
        let events: Arc<dyn EventSink> = Arc::clone(&apics) as _;
        let unit = Unit::new(Arc::clone(&memory), &config(), events)?;
        let device = Device::new(&unit, Arc::clone(&apics));
        Ok(Self {
            memory,
            apics,
            unit,
            device,
        })
    }

    /// A vCPU left the guest because it reads where no memory is.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match address.checked_sub(UNIT_BASE) {
            Some(offset) if offset < REGISTER_WINDOW_SIZE => self.unit.read(offset, data),
            _ => data.fill(0xFF),
        }
    }

    /// A vCPU left the guest because it writes where no memory is. A command has been carried out when this returns.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        match address.checked_sub(UNIT_BASE) {
            Some(offset) if offset < REGISTER_WINDOW_SIZE => self.unit.write(offset, data),
            _ if address == DOORBELL => {
                if let Ok(bytes) = <[u8; 8]>::try_from(data) {
                    // This is where a VMM wakes the thread of the device.
                    self.device.work(u64::from_le_bytes(bytes));
                }
            }
            _ => {}
        }
    }

    /// What goes into the DMAR table, without which a guest does not look for a unit.
    pub(crate) fn print_description_for_acpi(&self) {
        println!("DMAR: host address width {}", config().host_address_width);
        println!("DMAR: flags INTR_REMAP {}", config().interrupts.remapped());
        println!(
            "DMAR: unit at {UNIT_BASE:#x}, {REGISTER_WINDOW_SIZE:#x} bytes of registers, for all PCI devices"
        );
    }

    pub(crate) fn memory(&self) -> Memory {
        Arc::clone(&self.memory)
    }

    pub(crate) fn apics(&self) -> &Apics {
        &self.apics
    }

    pub(crate) fn explain(&self, address: u64) -> Explanation {
        self.unit.explain(SOURCE, None, address)
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.unit.stats()
    }

    /// vCPUs and devices are stopped.
    pub(crate) fn save(&self) -> Result<UnitState, StateError> {
        self.unit.save()
    }

    /// Guest memory is there again, and nothing runs yet.
    pub(crate) fn restore(&self, state: &UnitState) -> Result<(), StateError> {
        self.unit.restore(state)
    }
}
