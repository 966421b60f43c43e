//! The operating system in the virtual machine: a driver for VT-d in scalable mode, with first-stage tables.

use std::error::Error;

use vm_memory::{Bytes, GuestAddress};

use crate::machine::{DOORBELL, Machine, UNIT_BASE};

const ROOT: u64 = 0x1_0000;
const CONTEXT: u64 = 0x1_1000;
const PASID_DIRECTORY: u64 = 0x1_2000;
const PASID_TABLE: u64 = 0x1_3000;
const PAGE_TABLES: [u64; 4] = [0x1_4000, 0x1_5000, 0x1_6000, 0x1_7000];
const QUEUE: u64 = 0x2_0000;
const INTERRUPTS: u64 = 0x2_2000;
const STATUS: u64 = 0x2_3000;
const BUFFER: u64 = 0x5_0000;

/// Vector and APIC for faults, and for interrupt 3.
const FAULT: (u64, u32) = (0, 0x31);
const DONE: (u64, u32) = (7, 0x41);

type Outcome = Result<(), Box<dyn Error>>;

pub(crate) struct Guest<'a>(&'a Machine);

impl<'a> Guest<'a> {
    pub(crate) fn new(machine: &'a Machine) -> Self {
        Self(machine)
    }

    /// What a driver does at boot.
    pub(crate) fn set_up(&self) -> Outcome {
        println!(
            "guest:  VT-d {:#x}, capabilities {:#x} {:#x}",
            self.read(0x00),
            self.read64(0x08),
            self.read64(0x10)
        );
        // Fault event: data, address, unmask.
        self.write(0x3C, FAULT.1);
        self.write(0x40, 0xFEE0_0000);
        self.write(0x38, 0);

        // Invalidation queue of 256 descriptors with 32 bytes.
        self.write64(0x90, QUEUE | 0x801);
        self.command(0x0400_0000);

        // Interrupt 3, only for 00:03.0, goes to vector 41h of APIC 7. Table of 256 entries with x2APIC ids.
        self.put(INTERRUPTS + 3 * 16, &[0x7_0041_0001, 0x4_0018])?;
        self.write64(0xB8, INTERRUPTS | 0x807);
        self.command(0x0100_0000);
        self.command(0x0200_0000);

        // Bus 0; 00:03.0 with a device-TLB; PASID 0, for requests without PASID: first stage, domain 1.
        self.put(ROOT, &[CONTEXT | 1, 0])?;
        self.put(CONTEXT + 0x18 * 32, &[PASID_DIRECTORY | 5, 0, 0, 0])?;
        self.put(PASID_DIRECTORY, &[PASID_TABLE | 1])?;
        self.put(PASID_TABLE, &[0x41, 0x0080_0001, PAGE_TABLES[0], 0])?;
        for pair in PAGE_TABLES.windows(2) {
            self.put(pair[0], &[pair[1] | 7])?;
        }
        self.write64(0x20, ROOT | 0x400);
        self.command(0x4000_0000);
        self.command(0x8000_0000);
        println!("guest:  status {:#x}", self.read(0x1C));
        Ok(())
    }

    /// The device's address 1000h is the buffer.
    pub(crate) fn map(&self) -> Outcome {
        self.put(PAGE_TABLES[3] + 8, &[BUFFER | 7])
    }

    /// As before; and no one uses the buffer any more when this returns.
    pub(crate) fn unmap(&self) -> Outcome {
        self.put(PAGE_TABLES[3] + 8, &[0])?;
        // PASID IOTLB invalidation for domain 1, PASID 0; device-TLB invalidation of 00:03.0 for 1000h; wait.
        self.submit(&[
            [0x0001_0026, 0, 0, 0],
            [0x18_0000_0003, 0x1000, 0, 0],
            [0x1_0000_0025, STATUS, 0, 0],
        ])?;
        let done: u32 = self.0.memory().read_obj(GuestAddress(STATUS))?;
        println!("guest:  invalidation done: {}", done == 1);
        Ok(())
    }

    pub(crate) fn let_device_work(&self, address: u64) -> Outcome {
        let memory = self.0.memory();
        memory.write_slice(b"a guest's letter", GuestAddress(BUFFER))?;
        self.0.mmio_write(DOORBELL, &address.to_le_bytes());
        let interrupts = self.0.apics().take();
        if interrupts.contains(&FAULT) {
            self.handle_faults();
        }
        if interrupts.contains(&DONE) {
            let mut text = [0; 16];
            memory.read_slice(&mut text, GuestAddress(BUFFER))?;
            println!("guest:  interrupt; {}", String::from_utf8_lossy(&text));
        } else {
            println!("guest:  the device did not finish");
        }
        Ok(())
    }

    fn handle_faults(&self) {
        for record in (0..8).map(|index| 0x220 + 16 * index) {
            let (low, high) = (self.read64(record), self.read64(record + 8));
            if high >> 63 == 0 {
                continue;
            }
            println!(
                "guest:  fault {:#x} of {:#06x} at {low:#x}",
                high >> 32 & 0xFF,
                high & 0xFFFF
            );
            self.write64(record + 8, 1 << 63);
        }
    }

    /// Sets a bit of GCMD beside those that stay: TE, QIE, IRE, CFI.
    fn command(&self, bit: u32) {
        self.write(0x18, self.read(0x1C) & 0x8680_0000 | bit);
    }

    fn submit(&self, descriptors: &[[u64; 4]]) -> Outcome {
        let mut tail = self.read64(0x88);
        for descriptor in descriptors {
            self.put(QUEUE + tail, descriptor)?;
            tail = (tail + 32) % 0x2000;
        }
        self.write64(0x88, tail);
        Ok(())
    }

    fn put(&self, at: u64, words: &[u64]) -> Outcome {
        for (place, word) in (at..).step_by(8).zip(words) {
            let memory = self.0.memory();
            memory.write_obj(word.to_le(), GuestAddress(place))?;
        }
        Ok(())
    }

    fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.mmio_read(UNIT_BASE + register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn read64(&self, register: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.mmio_read(UNIT_BASE + register, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write(&self, register: u64, value: u32) {
        self.0
            .mmio_write(UNIT_BASE + register, &value.to_le_bytes());
    }

    fn write64(&self, register: u64, value: u64) {
        self.0
            .mmio_write(UNIT_BASE + register, &value.to_le_bytes());
    }
}
