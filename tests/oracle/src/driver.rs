//! A fake operating system's driver of the unit: it knows the register window and memory, and
//! nothing else.
//!
//! Offsets, bits and layouts are raw literals from the specification (sections 6.5, 9 and 11.4);
//! none comes from the crate.

pub mod entries;
pub mod queue;
pub mod registers;
pub mod tables;

use std::sync::Arc;

use intel_vtd::Unit;

use crate::ram::{Memory, Ram};
use queue::Queue;
use registers::Registers;

/// How often the driver looks whether something is done, and lets others run.
const PATIENCE: u32 = 10_000_000;

/// GCMD/GSTS bits (section 11.4.4).
pub mod command {
    /// Translation enable.
    pub const TE: u32 = 1 << 31;
    /// Set root table pointer (one-shot).
    pub const SRTP: u32 = 1 << 30;
    /// Queued invalidation enable.
    pub const QIE: u32 = 1 << 26;
    /// Interrupt remapping enable.
    pub const IRE: u32 = 1 << 25;
    /// Set interrupt remapping table pointer (one-shot).
    pub const SIRTP: u32 = 1 << 24;
    /// Compatibility format interrupts.
    pub const CFI: u32 = 1 << 23;
}

/// One entry of the fault log, as raw 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl FaultRecord {
    /// F (bit 127).
    pub fn valid(self) -> bool {
        self.high >> 63 != 0
    }

    /// FR (bits 103:96).
    pub fn reason(self) -> u64 {
        self.high >> 32 & 0xff
    }
}

/// The driver of one unit.
pub struct Driver {
    /// The register window.
    pub registers: Registers,
    /// Memory, with the journal of what the driver stored.
    pub ram: Ram,
    /// The invalidation queue.
    pub queue: Queue,
}

impl Driver {
    /// A driver that has not touched the unit yet. `queue_page` and `status` belong to the
    /// invalidation queue.
    pub fn new(unit: Arc<Unit<Memory>>, memory: Memory, queue_page: u64, status: u64) -> Self {
        Self {
            registers: Registers(unit),
            ram: Ram::new(memory),
            queue: Queue::new(queue_page, status),
        }
    }

    /// Says what differs from the reset values of section 11.4.
    pub fn check_reset(&self) -> Result<(), String> {
        const ZERO: [u64; 20] = [
            0x1c, 0x20, 0x24, 0x34, 0x3c, 0x40, 0x44, 0x80, 0x88, 0x90, 0x9c, 0xb0, 0xb8, 0xc0,
            0xc8, 0xd0, 0xdc, 0xe4, 0xe8, 0xec,
        ];
        for offset in ZERO {
            let value = self.registers.read32(offset);
            if value != 0 {
                return Err(format!("register {offset:#x} is {value:#x} after reset"));
            }
        }
        let qi = self.registers.read64(0x10) & 2 != 0;
        let page_requests = self.registers.read64(0x10) >> 29 & 1 != 0;
        for (offset, present) in [(0x38, true), (0xa0, qi), (0xe0, page_requests)] {
            let value = self.registers.read32(offset);
            let expected = if present { 0x8000_0000 } else { 0 };
            if value != expected {
                return Err(format!("register {offset:#x} is {value:#x} after reset"));
            }
        }
        if self.fault_records().iter().any(|record| record.valid()) {
            return Err("a fault is recorded after reset".into());
        }
        Ok(())
    }

    /// Changes one persistent bit of GCMD, and waits for GSTS to follow.
    pub fn set_command(&self, bit: u32, on: bool) {
        let persistent = self.registers.read32(0x1c) & 0x8680_0000;
        let value = if on {
            persistent | bit
        } else {
            persistent & !bit
        };
        self.registers.write32(0x18, value);
        self.poll_status(bit, on);
    }

    /// Issues a one-shot command, and waits for its status bit.
    pub fn one_shot(&self, bit: u32) {
        let persistent = self.registers.read32(0x1c) & 0x8680_0000;
        self.registers.write32(0x18, persistent | bit);
        self.poll_status(bit, true);
    }

    fn poll_status(&self, bit: u32, on: bool) {
        for _ in 0..PATIENCE {
            if (self.registers.read32(0x1c) & bit != 0) == on {
                return;
            }
            std::thread::yield_now();
        }
        panic!("GSTS bit {bit:#x} did not become {on}");
    }

    /// Programs RTADDR and latches it.
    pub fn set_root(&self, table: u64, translation_table_mode: u64) {
        self.registers
            .write64(0x20, table | translation_table_mode << 10);
        self.one_shot(command::SRTP);
    }

    /// Programs IRTA and latches it: 2^(`size` + 1) entries.
    pub fn set_interrupt_table(&self, table: u64, size: u64, extended: bool) {
        self.registers
            .write64(0xb8, table | u64::from(extended) << 11 | size);
        self.one_shot(command::SIRTP);
    }

    /// Starts queued invalidation with descriptors of 256 (or 128) bits.
    pub fn start_queue(&mut self, wide: bool) {
        self.queue.restart(wide);
        self.registers.write64(0x88, 0);
        self.registers
            .write64(0x90, self.queue.page | u64::from(wide) << 11);
        self.set_command(command::QIE, true);
    }

    /// Stops queued invalidation.
    pub fn stop_queue(&mut self) {
        self.set_command(command::QIE, false);
        assert_eq!(self.registers.read64(0x80), 0, "IQH stays after QIE is off");
    }

    /// Submits `descriptors` and a wait behind them. When it returns, the wait has completed.
    pub fn invalidate(&mut self, descriptors: &[[u64; 4]]) {
        for descriptor in descriptors {
            self.queue.push(&mut self.ram, descriptor);
        }
        let token = self.queue.push_wait(&mut self.ram);
        self.registers.write64(0x88, self.queue.tail());
        for _ in 0..PATIENCE {
            if self.ram.load(self.queue.status) & 0xffff_ffff == u64::from(token) {
                assert_eq!(self.registers.read64(0x80), self.queue.tail());
                return;
            }
            std::thread::yield_now();
        }
        panic!(
            "the wait did not complete: FSTS {:#x}, IQERCD {:#x}, descriptors {descriptors:x?}",
            self.registers.read32(0x34),
            self.registers.read64(0xb0)
        );
    }

    /// How many fault records there are (CAP.NFR, bits 47:40).
    pub fn record_count(&self) -> u64 {
        (self.registers.read64(0x08) >> 40 & 0xff) + 1
    }

    fn record_at(&self, index: u64) -> u64 {
        // CAP.FRO, bits 33:24, in units of 16 bytes.
        (self.registers.read64(0x08) >> 24 & 0x3ff) * 16 + index * 16
    }

    /// All fault records as they stand.
    pub fn fault_records(&self) -> Vec<FaultRecord> {
        (0..self.record_count())
            .map(|index| FaultRecord {
                low: self.registers.read64(self.record_at(index)),
                high: self.registers.read64(self.record_at(index) + 8),
            })
            .collect()
    }

    /// Clears F of one record.
    pub fn clear_record(&self, index: u64) {
        self.registers
            .write32(self.record_at(index) + 12, 0x8000_0000);
    }

    /// FSTS.
    pub fn fault_status(&self) -> u32 {
        self.registers.read32(0x34)
    }

    /// Clears PFO.
    pub fn clear_overflow(&self) {
        self.registers.write32(0x34, 1);
    }
}
