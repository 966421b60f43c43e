//! An invalidation queue of valid geometry with arbitrary descriptors, in batches.

use arbitrary::Arbitrary;

use crate::machine::{Account, Machine, Shape};
use crate::word::{Word, decode};

#[derive(Arbitrary, Debug)]
struct Input {
    shape: Shape,
    scalable: bool,
    wide: bool,
    size: u8,
    base: u8,
    batches: Vec<Batch>,
}

#[derive(Arbitrary, Debug)]
struct Batch {
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
    },
}

/// Type and reserved bits of the first two words (section 6.5.2).
const KINDS: [(u64, u64, u64); 6] = [
    (1, 0xFFFC_0000_0000_FFCF, u64::MAX),
    (2, 0xFFFF_FFFF_0000_FF0F, 0xF80),
    (4, 0xFFFF_0000_07FF_FFEF, u64::MAX),
    (5, 0x0000_0000_FFFF_FF8F, 0x3),
    (6, 0xFFF0_0000_0000_FFCF, 0xF80),
    (7, 0xFFF0_0000_0000_FFCF, u64::MAX),
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
                } => {
                    let (kind, low, high) = KINDS[usize::from(kind) % KINDS.len()];
                    [first & !low | kind, second.value(guest) & !high, 0, 0]
                }
            };
            let place = self.base + u64::from(tail);
            for (at, word) in (place..).step_by(8).zip(&words[..self.width as usize / 8]) {
                guest.poke(at, *word);
            }
            tail = (tail + self.width) % self.bytes;
        }
        self.write(0x88, batch.tail.unwrap_or(tail));
        if batch.clear {
            self.write(0x34, 0x71);
            self.write(0x9C, 1);
        }
    }

    fn stopped(&self) -> bool {
        self.machine.read32(0x34) & 0x10 != 0
    }

    /// Writes a register, and checks how far the queue went.
    fn write(&self, at: u64, value: u32) {
        let machine = self.machine;
        let (stopped, head) = (self.stopped(), machine.read32(0x80));
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
                (account.executed, account.queue_errors),
                (0, 0),
                "while stopped"
            );
        } else if self.stopped() {
            assert_eq!(account.queue_errors, 1, "IQE is an error");
            assert!((1..=7).contains(&reason), "IQEI is {reason}");
            assert_ne!(after, tail, "an empty queue has no errors");
        } else {
            assert_eq!(account.queue_errors, 0);
            assert_eq!(
                (after, reason),
                (tail, 0),
                "the queue is empty when the write returns"
            );
        }
    }
}
