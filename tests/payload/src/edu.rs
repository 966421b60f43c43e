//! Driver of the `edu` device, from its public specification.

use crate::{load, smp, store};

/// One `edu` at its registers.
#[derive(Clone, Copy)]
pub struct Edu {
    config: u64,
    registers: u64,
}

/// The device's own buffer.
const BUFFER: u64 = 0x40000;

impl Edu {
    /// Enables memory decoding and bus mastering.
    pub fn new(ecam: u64, requester: u16, registers: u64) -> Self {
        let config = ecam + (u64::from(requester) << 12);
        store::<u16>(config + 4, 0x0406);
        Self { config, registers }
    }

    /// What the device is made of again by [`Edu::from_parts`]: configuration space and registers.
    pub fn parts(self) -> (u64, u64) {
        (self.config, self.registers)
    }

    /// The device of [`Edu::parts`]; changes nothing.
    pub fn from_parts(config: u64, registers: u64) -> Self {
        Self { config, registers }
    }

    /// The identification register.
    pub fn identification(self) -> u32 {
        load(self.registers)
    }

    /// The MSI capability.
    fn msi(self) -> u64 {
        let mut at = u64::from(load::<u8>(self.config + 0x34));
        for _ in 0..48 {
            if load::<u8>(self.config + at) == 5 {
                break;
            }
            at = u64::from(load::<u8>(self.config + at + 1));
        }
        self.config + at
    }

    /// Lets the device interrupt by its INTx pin, not by MSI.
    pub fn use_intx(self) {
        store::<u16>(self.msi() + 2, 0);
        store::<u16>(self.config + 4, 0x0006);
    }

    /// Lets the device send `data` to `address`, and keeps its INTx pin quiet.
    pub fn set_msi(self, address: u32, data: u16) {
        let msi = self.msi();
        store::<u16>(self.config + 4, 0x0406);
        store::<u32>(msi + 4, address);
        store::<u32>(msi + 8, 0);
        store::<u16>(msi + 12, data);
        store::<u16>(msi + 2, 1);
    }

    /// Raises the interrupt and takes the status back.
    pub fn raise(self) {
        store::<u32>(self.registers + 0x60, 1);
    }

    /// Acknowledges everything that is pending.
    pub fn acknowledge(self) {
        let status: u32 = load(self.registers + 0x24);
        store(self.registers + 0x64, status);
    }

    fn copy(self, source: u64, destination: u64, length: u64, command: u32) -> bool {
        store(self.registers + 0x80, source);
        store(self.registers + 0x88, destination);
        store(self.registers + 0x90, length);
        store(self.registers + 0x98, command);
        smp::wait_for(50_000_000, || load::<u32>(self.registers + 0x98) & 1 == 0)
    }

    /// Copies `length` bytes at `address` into the device.
    pub fn fetch(self, address: u64, length: u64) -> bool {
        self.copy(address, BUFFER, length, 1)
    }

    /// Copies `length` bytes of the device to `address`.
    pub fn deliver(self, address: u64, length: u64) -> bool {
        self.copy(BUFFER, address, length, 3)
    }
}
