//! Register accesses, as bytes through the window (sections 11.2 and 11.3).

use std::sync::Arc;

use intel_vtd::Unit;

use crate::ram::Memory;

/// The register window of a unit.
pub struct Registers(pub Arc<Unit<Memory>>);

impl Registers {
    /// An aligned access of 4 bytes.
    pub fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// An aligned access of 8 bytes.
    pub fn read64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// An aligned access of 4 bytes.
    pub fn write32(&self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }

    /// A register whose bit 63 asks for something, once that is done.
    pub fn completed(&self, offset: u64) -> u64 {
        for _ in 0..super::PATIENCE {
            let value = self.read64(offset);
            if value >> 63 == 0 {
                return value;
            }
            std::thread::yield_now();
        }
        panic!("bit 63 of {offset:#x} stays");
    }

    /// An aligned access of 8 bytes.
    pub fn write64(&self, offset: u64, value: u64) {
        self.0.write(offset, &value.to_le_bytes());
    }
}
