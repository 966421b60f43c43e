//! The target `unit`: registers in any width, DMA, interrupts and resets over memory that the guest
//! has filled.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arbitrary::Arbitrary;
use intel_vtd::{DmaTransaction, DmaView, PageRequest, Pasid, SourceId};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::guest::Guest;
use crate::machine::{LOOKUPS_PER_PAGE, Machine, Shape};
use crate::tables::Tables;
use crate::word::{Source, Word, decode};

/// Registers with effects; fault records are at 0x220.
const PLACES: [u16; 40] = [
    0x18, 0x20, 0x24, 0x28, 0x2C, 0x34, 0x38, 0x3C, 0x40, 0x44, 0x64, 0x68, 0x80, 0x88, 0x90, 0x94,
    0x9C, 0xA0, 0xA4, 0xA8, 0xAC, 0xB0, 0xB8, 0xBC, 0xC0, 0xC8, 0xD0, 0xDC, 0xE0, 0xE4, 0xE8, 0xEC,
    0xD4, 0xF0, 0xF4, 0xF8, 0xFC, 0x22C, 0x23C, 0x29C,
];
/// Longest access of a device in bytes.
const LONGEST: u16 = 0x4000;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: Shape,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Place {
    Named(u8),
    Anywhere(u16),
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The guest writes a word to its memory.
    Poke {
        at: Word,
        word: Word,
    },
    /// The guest fills a page.
    Fill {
        page: u8,
        word: Word,
    },
    /// The guest writes a register.
    Write {
        at: Place,
        length: u8,
        value: Word,
    },
    /// The guest writes GCMD; what is on stays on.
    Command {
        bits: u8,
    },
    /// The guest reads registers.
    Read {
        at: u16,
        length: u8,
    },
    /// A device makes an access.
    Dma {
        source: Source,
        pasid: Option<u32>,
        at: Word,
        length: u16,
        kind: Kind,
    },
    /// A device sends an interrupt.
    Interrupt {
        source: Source,
        at: Word,
        data: u32,
    },
    Reset,
    /// Tables that work.
    Tables(Tables),
    /// A device comes that keeps translations.
    Attach {
        source: Source,
        habits: u8,
    },
    Detach {
        source: Source,
    },
    /// A device asks for a translation, and uses it if it gets one.
    Translate {
        source: Source,
        pasid: Option<u32>,
        at: Word,
        no_write: bool,
        kind: Kind,
    },
    /// A device uses a translation that it may never have got.
    Translated {
        source: Source,
        at: Word,
        length: u16,
        kind: Kind,
    },
    PageRequest {
        source: Source,
        pasid: Option<u32>,
        at: Word,
        /// R, W, EXR, PMR, LPIG from bit 0.
        flags: u8,
        group: u16,
    },
    /// A unit continues the work of this one.
    Restore {
        anew: bool,
        at: Word,
    },
    /// Somebody looks for a mistake.
    Inspect {
        source: Source,
        pasid: Option<u32>,
        at: Word,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    Load,
    Store,
    Slices,
    Check,
}

/// Runs the steps that `data` spells.
///
/// # Panics
/// When an invariant breaks.
pub fn run(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let mut machine = Machine::new(input.shape);
    // Keeps what it has cached from step to step.
    let mut usual = machine.view(Source::Usual.id());
    for step in input.steps {
        take(&mut machine, &mut usual, step);
    }
    machine.guest.check();
}

fn take(machine: &mut Machine, usual: &mut DmaView<Arc<Guest>>, step: Step) {
    let guest = &*Arc::clone(&machine.guest);
    match step {
        Step::Poke { at, word } => guest.poke(at.value(guest), word.value(guest)),
        Step::Fill { page, word } => {
            let (base, word) = (u64::from(page) << 12, word.value(guest));
            (base..base + 0x1000)
                .step_by(8)
                .for_each(|at| guest.poke(at, word));
        }
        Step::Write { at, length, value } => {
            let at = match at {
                Place::Named(index) => PLACES[usize::from(index) % PLACES.len()],
                Place::Anywhere(at) => at,
            };
            let lengths = [4, 8, 4, 8, 4, 8, 1, 2, 3, 12, 16, 0];
            let bytes = u128::from(value.value(guest)).to_le_bytes();
            let length = lengths[usize::from(length) % lengths.len()];
            machine.write(at.into(), &bytes[..length]);
        }
        Step::Command { bits } => {
            // CFI SIRTP IRE QIE, SRTP TE.
            let command = u32::from(bits & 0xF) << 23 | u32::from(bits >> 4 & 3) << 30;
            machine.write32(0x18, command);
        }
        Step::Read { at, length } => read(machine, at.into(), length.into()),
        Step::Dma {
            source,
            pasid,
            at,
            length,
            kind,
        } => {
            let at = at.value(guest);
            let how = How::Untranslated(pasid);
            match source {
                Source::Usual => dma(machine, usual, how, at, length, kind),
                Source::Other(id) => dma(machine, &mut machine.view(id), how, at, length, kind),
            }
        }
        Step::Interrupt { source, at, data } => {
            interrupt(machine, source.id(), at.value(guest), data);
        }
        Step::Reset => machine.reset(),
        Step::Tables(tables) => tables.lay(machine),
        Step::Attach { source, habits } => machine.devices.attach(source.id(), habits),
        Step::Detach { source } => machine.devices.detach(source.id()),
        Step::Translate {
            source,
            pasid,
            at,
            no_write,
            kind,
        } => {
            let mut view = machine.view(source.id());
            let at = at.value(guest);
            if let Some(translated) = translate(machine, &mut view, pasid, at, no_write) {
                dma(machine, &mut view, How::Translated, translated, 8, kind);
            }
        }
        Step::Translated {
            source,
            at,
            length,
            kind,
        } => {
            let at = at.value(guest);
            let mut other = machine.view(source.id());
            let view = match source {
                Source::Usual => usual,
                Source::Other(_) => &mut other,
            };
            dma(machine, view, How::Translated, at, length, kind);
        }
        Step::PageRequest {
            source,
            pasid,
            at,
            flags,
            group,
        } => {
            let request = PageRequest {
                pasid: named(pasid),
                address: at.value(guest),
                read: flags & 1 != 0,
                write: flags & 2 != 0,
                execute: flags & 4 != 0,
                privileged: flags & 8 != 0,
                group,
                last: flags & 0x10 != 0,
            };
            request_page(machine, source.id(), &request);
        }
        Step::Restore { anew, at } => {
            machine.restore(anew, SourceId(Source::Usual.id()), at.value(guest));
            *usual = machine.view(Source::Usual.id());
        }
        Step::Inspect { source, pasid, at } => {
            machine.inspect(SourceId(source.id()), named(pasid), at.value(guest));
        }
    }
}

fn read(machine: &Machine, at: u64, length: usize) {
    let mut bytes = vec![0xAA; length];
    let account = machine.step(|| machine.unit.read(at, &mut bytes));
    assert!(account.lookups == 0 && account.events == 0, "{account:?}");
    if !matches!(length, 4 | 8) || !at.is_multiple_of(length as u64) {
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "{length} bytes at {at:#x}: {bytes:x?}"
        );
    } else {
        for (at, word) in (at..).step_by(4).zip(bytes.chunks_exact(4)) {
            assert_eq!(word, machine.read32(at).to_le_bytes(), "at {at:#x}");
        }
    }
}

fn named(pasid: Option<u32>) -> Option<Pasid> {
    pasid.and_then(|pasid| Pasid::new(pasid & 0xF_FFFF))
}

/// Requests with a PASID, as supervisor if bit 20 is set, or without one.
fn begin(view: &mut DmaView<Arc<Guest>>, pasid: Option<u32>) -> DmaTransaction<'_, Arc<Guest>> {
    let privileged = pasid.is_some_and(|pasid| pasid & 0x10_0000 != 0);
    match named(pasid) {
        Some(pasid) if privileged => view.begin_supervisor(pasid),
        pasid => view.begin_pasid(pasid),
    }
}

fn translate(
    machine: &Machine,
    view: &mut DmaView<Arc<Guest>>,
    pasid: Option<u32>,
    at: u64,
    no_write: bool,
) -> Option<u64> {
    let mut answer = None;
    let account = machine.step(|| {
        answer = machine.devices.translate(&begin(view, pasid), at, no_write);
    });
    assert!(account.lookups <= LOOKUPS_PER_PAGE, "{account:?}");
    assert!(
        account.events <= account.faults && account.faults <= 1,
        "{account:?}"
    );
    let on = machine.read32(0x1C) & 0x8000_0000 != 0;
    let offered = machine.read32(0x10) & 4 != 0;
    assert!(answer.is_none() || on && offered, "{answer:x?}");
    assert!(answer.is_none() || account.faults == 0, "{account:?}");
    answer
}

fn request_page(machine: &Machine, source: u16, request: &PageRequest) {
    let account = machine.step(|| machine.devices.request_page(source, request));
    assert!(account.lookups <= 16, "{account:?}");
    assert_eq!(account.asked(), 1);
    assert!(account.events <= 1, "{account:?}");
    let others = (account.executed, account.ranges, account.interrupts);
    assert_eq!(others, (0, 0, 0));
    machine.devices.check_overflow();
}

/// Which requests an access consists of.
#[derive(Clone, Copy, Debug)]
enum How {
    /// PASID, and bit 20 for supervisor privilege.
    Untranslated(Option<u32>),
    Translated,
}

fn dma(
    machine: &Machine,
    view: &mut DmaView<Arc<Guest>>,
    how: How,
    at: u64,
    length: u16,
    kind: Kind,
) {
    let end = machine.guest.end();
    let mut length = usize::from(length % LONGEST);
    let mut at = at;
    let translating = machine.read32(0x1C) & 0x8000_0000 != 0;
    let identity = !translating && matches!(how, How::Untranslated(_));
    if identity {
        // Nothing translates, so it is the device that must not leave guest memory.
        at %= end;
        length = length.min(usize::try_from(end - at).unwrap_or(usize::MAX));
        if matches!(kind, Kind::Load | Kind::Store) && end - at < 8 {
            return;
        }
    }
    let mut bytes = vec![0x5A; length];
    let address = GuestAddress(at);
    let failed = Cell::new(true);
    let account = machine.step(|| {
        let transaction = match how {
            How::Untranslated(pasid) => begin(view, pasid),
            How::Translated => view.begin_translated(),
        };
        let outcome = match kind {
            Kind::Read => transaction.read_slice(&mut bytes, address).is_ok(),
            Kind::Write => transaction.write_slice(&bytes, address).is_ok(),
            Kind::Load => {
                length = 8;
                transaction.load::<u64>(address, Ordering::Acquire).is_ok()
            }
            Kind::Store => {
                length = 8;
                transaction.store(at, address, Ordering::Release).is_ok()
            }
            Kind::Slices => {
                let slices = transaction.get_slices(address, length, Permissions::ReadWrite);
                let mut total = 0;
                let mut whole = true;
                for slice in slices.into_iter().flatten() {
                    match slice {
                        Ok(slice) => {
                            assert!(!slice.is_empty(), "an empty slice");
                            total += slice.len();
                        }
                        Err(_) => whole = false,
                    }
                }
                assert!(
                    total <= length && (total == length) == whole,
                    "{total} of {length}"
                );
                whole
            }
            Kind::Check => transaction.check_range(address, length, Permissions::ReadWrite),
        };
        failed.set(!outcome);
    });
    if !translating && !identity && length != 0 {
        assert!(
            failed.get(),
            "a translated request while nothing translates"
        );
        assert_eq!((account.faults, account.lookups), (0, 0));
    }
    let pages = (length as u64 >> 12) + 2;
    assert!(
        account.lookups <= pages * LOOKUPS_PER_PAGE,
        "{account:?} for {pages} pages"
    );
    // An access ends with its first fault, and a check makes no request.
    let most = u64::from(failed.get() && !matches!(kind, Kind::Check));
    assert!(account.faults <= most, "{account:?}");
    assert!(account.events <= account.faults, "{account:?}");
    assert_eq!(
        (account.executed, account.ranges, account.interrupts),
        (0, 0, 0)
    );
}

fn interrupt(machine: &Machine, source: u16, at: u64, data: u32) {
    let source = SourceId(source);
    let mut asked = None;
    let account = machine.step(|| asked = Some(machine.unit.resolve_interrupt(source, at, data)));
    assert!(account.lookups <= 1, "{account:?}");
    assert_eq!(
        (account.interrupts, account.faults, account.events),
        (0, 0, 0)
    );
    let account = machine.step(|| {
        assert_eq!(Some(machine.unit.remap(source, at, data)), asked);
    });
    assert!(account.lookups <= 1, "{account:?}");
    assert_eq!(account.interrupts, 1);
    assert_eq!(account.faults, account.blocked, "{account:?}");
    assert!(account.events <= account.faults, "{account:?}");
}
