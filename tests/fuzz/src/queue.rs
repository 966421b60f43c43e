//! The target `queue`: an invalidation queue of valid geometry with arbitrary descriptors, in
//! batches.

use arbitrary::Arbitrary;

use crate::device::habit;
use crate::machine::{Account, Machine, Shape};
use crate::word::{Source, Word, decode};

#[derive(Arbitrary, Debug)]
struct Input {
    shape: Shape,
    scalable: bool,
    wide: bool,
    size: u8,
    base: u8,
    device: u8,
    batches: Vec<Batch>,
}

#[derive(Arbitrary, Debug)]
struct Batch {
    /// The device goes, or comes.
    device: Option<u8>,
    descriptors: Vec<Descriptor>,
    /// Instead of where the descriptors end.
    tail: Option<u32>,
    /// The guest clears errors afterwards, and the queue may go on.
    clear: bool,
}

#[derive(Arbitrary, Debug)]
enum Descriptor {
    Raw([u64; 4]),
    /// Reserved bits are 0.
    Valid {
        kind: u8,
        first: u64,
        second: Word,
        /// It names the usual device, if any.
        usual: bool,
    },
}

/// Type and reserved bits of the first two words (section 6.5.2).
const KINDS: [(u64, u64, u64); 9] = [
    (1, 0xFFFC_0000_0000_FFCF, u64::MAX),
    (2, 0xFFFF_FFFF_0000_FF0F, 0xF80),
    (3, 0xFFFF_0000_FFE0_FFFF, 0xFFE),
    (4, 0xFFFF_0000_07FF_FFEF, u64::MAX),
    (5, 0x0000_0000_FFFF_FF8F, 0x3),
    (6, 0xFFF0_0000_0000_FFCF, 0xF80),
    (7, 0xFFF0_0000_0000_FFCF, u64::MAX),
    (8, 0xFFF0_0000_0000_FE0F, 0x7FE),
    (9, 0xFFF0_0000_0000_0FEF, 0xFFFF_FFFF_FFFF_F003),
];

/// Runs the batches that `data` spells.
///
/// # Panics
/// When an invariant breaks.
pub fn run(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let machine = Machine::new(input.shape);
    // Nothing but the mode depends on the tables.
    machine.write64(0x20, if input.scalable { 0x400 } else { 0 });
    machine.command(0x4000_0000);
    machine.write32(0xA0, 0);
    let size = u64::from(input.size & 3);
    let base = u64::from(input.base % 32) << 12;
    machine.write64(0x90, base | u64::from(input.wide) << 11 | size);
    let queue = Queue {
        machine: &machine,
        base,
        bytes: 0x1000 << size,
        width: if input.wide { 32 } else { 16 },
    };
    queue.device(input.device);
    queue.write(0x18, 0x0400_0000);
    for batch in &input.batches {
        queue.submit(batch);
    }
    machine.guest.check();
}

struct Queue<'a> {
    machine: &'a Machine,
    base: u64,
    bytes: u32,
    width: u32,
}

impl Queue<'_> {
    fn submit(&self, batch: &Batch) {
        let guest = &*self.machine.guest;
        let mut tail = self.machine.read32(0x88) % self.bytes / self.width * self.width;
        for descriptor in &batch.descriptors {
            let words = match *descriptor {
                Descriptor::Raw(words) => words,
                Descriptor::Valid {
                    kind,
                    first,
                    second,
                    usual,
                } => {
                    let (kind, low, high) = KINDS[usize::from(kind) % KINDS.len()];
                    let at = if kind == 3 { 32 } else { 16 };
                    let first = match (kind, usual) {
                        (3 | 8 | 9, true) => first & !(0xFFFF << at) | 0x0018 << at,
                        _ => first,
                    };
                    [first & !low | kind, second.value(guest) & !high, 0, 0]
                }
            };
            let place = self.base + u64::from(tail);
            for (at, word) in (place..).step_by(8).zip(&words[..self.width as usize / 8]) {
                guest.poke(at, *word);
            }
            tail = (tail + self.width) % self.bytes;
        }
        if let Some(habits) = batch.device {
            self.device(habits);
        }
        self.write(0x88, batch.tail.unwrap_or(tail));
        if batch.clear {
            self.write(0x34, 0x71);
            self.write(0x9C, 1);
        }
    }

    /// The usual device comes, or goes if bit 7 is set.
    fn device(&self, habits: u8) {
        let (devices, source) = (&self.machine.devices, Source::Usual.id());
        if habits & 0x80 == 0 {
            devices.attach(source, habits & !habit::LEAVES);
        } else {
            devices.detach(source);
        }
    }

    /// IQE and ITE.
    fn errors(&self) -> u32 {
        self.machine.read32(0x34) & 0x50
    }

    /// The first two words of what is between head and tail.
    fn waiting(&self, head: u32, tail: u32) -> Vec<[u64; 2]> {
        let mut places = Vec::new();
        let mut at = head;
        while at != tail && places.len() < 0x8000 && tail.is_multiple_of(self.width) {
            let place = self.base + u64::from(at);
            let word = |at| self.machine.guest.peek(at).unwrap_or(0);
            places.push([word(place), word(place + 8)]);
            at = (at + self.width) % self.bytes;
        }
        places
    }

    /// The dword that a wait writes.
    fn status(&self, [first, second]: [u64; 2]) -> Option<u64> {
        (first & 0xF == 5 && first & 0x20 != 0).then_some(second & (self.machine.guest.end() - 1))
    }

    fn dword(&self, place: u64) -> Option<u32> {
        let word = self.machine.guest.peek(place & !7)?;
        u32::try_from(word >> (place % 8 * 8) & 0xFFFF_FFFF).ok()
    }

    /// Once a device has timed out, no wait completes.
    fn check_timed_out(&self, executed: &[[u64; 2]], before: &[Option<u32>]) {
        let missing = executed.iter().position(|[first, _]| {
            let source = match first & 0xF {
                3 => first >> 32,
                8 => first >> 16,
                _ => return false,
            };
            let [low, high, ..] = source.to_le_bytes();
            !self
                .machine
                .devices
                .is_attached(u16::from_le_bytes([low, high]))
        });
        let completed: Vec<u64> = executed
            .iter()
            .take(missing.unwrap_or(0))
            .filter_map(|words| self.status(*words))
            .collect();
        let queue = self.base..self.base + u64::from(self.bytes);
        if completed.iter().any(|place| queue.contains(place)) {
            // The queue was not what it was when it was looked at.
            return;
        }
        let missing = missing.expect("a device that is not there");
        let aborted = executed.iter().zip(before).skip(missing);
        for (words, before) in aborted {
            if let Some(place) = self.status(*words)
                && !completed.contains(&place)
            {
                assert_eq!(self.dword(place), *before, "a status at {place:#x}");
            }
        }
        let fence = executed
            .iter()
            .skip(missing)
            .position(|[first, _]| first & 0x4F == 0x45);
        if let Some(fence) = fence {
            assert_eq!(missing + fence + 1, executed.len(), "a fence holds");
        }
    }

    /// Writes a register, and checks how far the queue went.
    fn write(&self, at: u64, value: u32) {
        let machine = self.machine;
        let (stopped, head) = (self.errors() != 0, machine.read32(0x80));
        let end = if at == 0x88 {
            value & 0x7_FFF0
        } else {
            machine.read32(0x88)
        };
        let runs = !stopped || at == 0x34;
        let waiting = if runs && end < self.bytes {
            self.waiting(head, end)
        } else {
            Vec::new()
        };
        let statuses: Vec<Option<u32>> = waiting
            .iter()
            .map(|words| self.dword(self.status(*words)?))
            .collect();
        let account: Account = machine.write32(at, value);
        let (after, tail) = (machine.read32(0x80), machine.read32(0x88));
        assert!(
            after < self.bytes && after.is_multiple_of(self.width),
            "IQH is {after:#x}"
        );
        let moved = (after + self.bytes - head) % self.bytes / self.width;
        assert_eq!(
            account.executed,
            u64::from(moved),
            "from {head:#x} to {after:#x}"
        );
        let reason = machine.read32(0xB0) & 0xF;
        if stopped && at != 0x34 {
            assert_eq!(
                (account.executed, account.queue_errors, account.timeouts),
                (0, 0, 0),
                "while stopped"
            );
        } else if self.errors() != 0 {
            let (failed, timed_out) = (self.errors() & 0x10 != 0, self.errors() & 0x40 != 0);
            assert_eq!(account.queue_errors, u64::from(failed), "IQE is an error");
            assert_eq!(account.timeouts, u64::from(timed_out), "ITE is a time-out");
            if failed {
                assert!((1..=7).contains(&reason), "IQEI is {reason}");
                assert_ne!(after, tail, "an empty queue has no errors");
            }
            if timed_out {
                let count = usize::try_from(moved).unwrap();
                self.check_timed_out(&waiting[..count], &statuses[..count]);
                let [low, high, ..] = machine.read32(0xB4).to_le_bytes();
                let source = u16::from_le_bytes([low, high]);
                assert!(!machine.devices.is_attached(source), "ITESID {source:#x}");
            }
        } else {
            assert_eq!((account.queue_errors, account.timeouts), (0, 0));
            assert_eq!(
                (after, reason),
                (tail, 0),
                "the queue is empty when the write returns"
            );
        }
    }
}
