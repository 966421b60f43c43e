//! The target `irte`: arbitrary interrupt remapping tables, and requests that use them.

use arbitrary::Arbitrary;
use intel_vtd::{InterruptMessage, SourceId};

use crate::machine::{Machine, Shape};
use crate::word::{Source, Word, decode};

#[derive(Arbitrary, Debug)]
struct Input {
    shape: Shape,
    table: Word,
    /// S in bits 3:0, EIME in bit 4, CFI in bit 5, IRE off in bit 6.
    setting: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Entry {
        index: u8,
        entry: Entry,
    },
    Request {
        source: Source,
        handle: u8,
        data: u8,
        subhandle: bool,
    },
    RawRequest {
        source: u16,
        address: u64,
        data: u32,
    },
    /// The guest latches another table.
    Table {
        table: Word,
        setting: u8,
    },
}

#[derive(Arbitrary, Debug)]
enum Entry {
    Raw([u64; 2]),
    /// Present, and without reserved bits for xAPIC destinations.
    Valid {
        low: u32,
        destination: u8,
        source: Source,
        check: u8,
    },
    /// As above, with bits that may be reserved.
    Nearly {
        low: u32,
        destination: u32,
        high: u32,
    },
}

impl Entry {
    fn words(&self) -> [u64; 2] {
        match *self {
            Self::Raw(words) => words,
            Self::Valid {
                low,
                destination,
                source,
                check,
            } => [
                u64::from(low) & 0x00FF_0FFE | 1 | u64::from(destination) << 40,
                u64::from(source.id()) | u64::from(check & 0xF) << 16,
            ],
            Self::Nearly {
                low,
                destination,
                high,
            } => [
                u64::from(low) & 0x00FF_0FFF | u64::from(destination) << 32,
                u64::from(high),
            ],
        }
    }
}

/// Runs the steps that `data` spells.
///
/// # Panics
/// When an invariant breaks.
pub fn run(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let machine = Machine::new(input.shape);
    // Faults and their events are part of it.
    machine.write32(0x38, 0);
    let mut table = Table::latch(&machine, input.table, input.setting);
    for step in input.steps {
        match step {
            Step::Entry { index, entry } => {
                let place = table.base.saturating_add(u64::from(index) * 16);
                let [low, high] = entry.words();
                machine.guest.poke(place, low);
                machine.guest.poke(place.saturating_add(8), high);
            }
            Step::Request {
                source,
                handle,
                data,
                subhandle,
            } => {
                let shv = if subhandle { 8 } else { 0 };
                let address = 0xFEE0_0010 | u64::from(handle) << 5 | shv;
                table.request(&machine, source.id(), address, data.into());
            }
            Step::RawRequest {
                source,
                address,
                data,
            } => {
                table.request(&machine, source, address, data);
            }
            Step::Table {
                table: word,
                setting,
            } => table = Table::latch(&machine, word, setting),
        }
    }
    machine.guest.check();
}

struct Table {
    base: u64,
    entries: u64,
    extended: bool,
    enabled: bool,
}

impl Table {
    fn latch(machine: &Machine, table: Word, setting: u8) -> Self {
        let word = table.value(&machine.guest) & !0xFFF
            | u64::from(setting & 0xF)
            | u64::from(setting & 0x10) << 7;
        machine.write64(0xB8, word);
        let enable = if setting & 0x40 == 0 { 0x0200_0000 } else { 0 };
        let compatible = if setting & 0x20 == 0 { 0 } else { 0x0080_0000 };
        machine.write32(0x18, 0x0100_0000 | enable | compatible);
        let latched = machine.read64(0xB8);
        Self {
            base: latched & !0xFFF,
            entries: 2 << (latched & 0xF),
            extended: latched & 0x800 != 0,
            enabled: machine.read32(0x1C) & 0x0200_0000 != 0,
        }
    }

    /// Makes a request, and compares the answer with what the entry spells.
    fn request(&self, machine: &Machine, source: u16, address: u64, data: u32) {
        let asked = machine
            .unit
            .resolve_interrupt(SourceId(source), address, data);
        let mut answer = None;
        let account = machine.step(|| {
            answer = Some(machine.unit.remap(SourceId(source), address, data));
        });
        assert_eq!(answer, Some(asked), "an answer changed");
        assert!(
            account.lookups <= 1 && account.interrupts == 1,
            "{account:?}"
        );
        assert!(
            account.events <= account.faults && account.faults <= 1,
            "{account:?}"
        );
        let passed = answer.and_then(Result::ok);
        if !self.enabled {
            assert_eq!(passed, Some(InterruptMessage { address, data }));
        } else if address >> 20 != 0xFEE {
            assert_eq!(passed, None, "{address:#x} is no interrupt");
        } else if address & 0x10 != 0 {
            assert_eq!(passed, self.expected(machine, source, address, data));
        }
    }

    /// What sections 5.1.3 and 9.9 make of a remappable request.
    fn expected(
        &self,
        machine: &Machine,
        source: u16,
        address: u64,
        data: u32,
    ) -> Option<InterruptMessage> {
        let handle = address / 32 % 0x8000 + if address & 4 != 0 { 0x8000 } else { 0 };
        let index = match address & 8 {
            0 => handle,
            _ if data < 0x1_0000 => handle + u64::from(data),
            _ => return None,
        };
        let place = self.base.checked_add(index * 16)?;
        if index >= self.entries || place >= machine.guest.end() {
            return None;
        }
        let (low, high) = (machine.guest.peek(place)?, machine.guest.peek(place + 8)?);
        let reserved = if self.extended {
            0xFF00_F000
        } else {
            0xFFFF_00FF_FF00_F000
        };
        let mode = low / 32 % 8;
        let well_formed =
            low & 1 == 1 && low & reserved == 0 && high < 0x10_0000 && !matches!(mode, 3 | 6);
        let id = high % 0x1_0000;
        let from = u64::from(source);
        let verified = match (high >> 18, high >> 16 & 3) {
            (0, _) => true,
            (1, 0) => id == from,
            (1, 1) => id | 4 == from | 4,
            (1, 2) => id | 6 == from | 6,
            (1, _) => id | 7 == from | 7,
            (2, _) => (id / 256..=id % 256).contains(&(from / 256)),
            _ => false,
        };
        if !well_formed || !verified {
            return None;
        }
        let destination = if self.extended {
            low >> 32
        } else {
            low >> 40 & 0xFF
        };
        let flags = (low & 8) | (low & 4);
        let level = if low & 0x10 != 0 { 0xC000 } else { 0 };
        Some(InterruptMessage {
            address: destination >> 8 << 40 | 0xFEE0_0000 | (destination % 256) << 12 | flags,
            data: u32::try_from(low >> 16 & 0xFF | mode << 8 | level).ok()?,
        })
    }
}
