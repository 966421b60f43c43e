//! Packed queues against a driver that is written from section 2.8, with its literals.

use proptest::prelude::*;
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Empty, VirtQueue};
use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;

const RING: u64 = 0x1000;
const DRIVER: u64 = 0x8000;
const DEVICE: u64 = 0x9000;
const TABLE: u64 = 0xa000;
const BUFFERS: u64 = 0x10000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const PACKED: u64 = 1 << 34;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

struct Driver {
    memory: GuestMemoryMmap<()>,
    queue: VirtQueue,
    size: u16,
    next: u16,
    wrap: bool,
    next_used: u16,
    used_wrap: bool,
}

impl Driver {
    fn new(size: u16, features: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40000)]).unwrap();
        let state = QueueState {
            max_size: 256,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
            size,
            ready: true,
            desc_table: RING,
            avail_ring: DRIVER,
            used_ring: DEVICE,
        };
        Self {
            memory,
            queue: VirtQueue::new(state, PACKED | features).unwrap(),
            size,
            next: 0,
            wrap: true,
            next_used: 0,
            used_wrap: true,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn descriptor(&self, at: u64, (address, length): (u64, u32), name: u16, flags: u16) {
        self.put(at, address);
        self.put(at + 8, length);
        self.put(at + 12, name);
        self.put(at + 14, flags);
    }

    /// Makes a chain available, one descriptor for each of `kinds`, which are flags.
    fn add(&mut self, name: u16, kinds: &[u16]) {
        for (index, kind) in kinds.iter().enumerate() {
            let more = if index + 1 < kinds.len() { NEXT } else { 0 };
            let marks = if self.wrap { 0x80 } else { 0x8000 };
            let buffer = if kind & INDIRECT != 0 {
                (TABLE, 32)
            } else {
                (BUFFERS + 0x100 * u64::from(self.next), 0x100)
            };
            let at = RING + 16 * u64::from(self.next);
            self.descriptor(at, buffer, name, kind | more | marks);
            self.next += 1;
            if self.next == self.size {
                self.next = 0;
                self.wrap = !self.wrap;
            }
        }
    }

    /// The next used chain: its name and the bytes written. `entries` is how many it has.
    fn used(&mut self, entries: impl Fn(u16) -> u16) -> Option<(u16, u32)> {
        let at = RING + 16 * u64::from(self.next_used);
        let flags: u16 = self.get(at + 14);
        let marks = if self.used_wrap { 0x8080 } else { 0 };
        if flags & 0x8080 != marks {
            return None;
        }
        let (written, name): (u32, u16) = (self.get(at + 8), self.get(at + 12));
        assert_eq!(flags & WRITE != 0, written > 0);
        self.next_used += entries(name);
        if self.next_used >= self.size {
            self.next_used -= self.size;
            self.used_wrap = !self.used_wrap;
        }
        Some((name, written))
    }

    fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        self.take(Empty::Wait)
    }

    fn take(&mut self, empty: Empty) -> Result<Option<Chain>, QueueError> {
        let mut chain = Chain::default();
        let taken = self.queue.pop(&self.memory, &mut chain, empty)?;
        Ok(taken.then_some(chain))
    }

    fn complete(&mut self, used: &[(u16, u32)]) -> bool {
        let used = used.iter().copied();
        self.queue.complete(&self.memory, used).unwrap();
        self.queue.take_interrupt()
    }
}

#[test]
fn a_chain_is_taken_whole_and_returned_by_its_name() {
    let mut driver = Driver::new(5, 0);
    assert!(driver.pop().unwrap().is_none());
    // Notifications are wanted: RING_EVENT_FLAGS_ENABLE.
    assert_eq!(driver.get::<u16>(DEVICE + 2), 0);
    driver.add(77, &[0, WRITE, WRITE]);
    let chain = driver.pop().unwrap().unwrap();
    assert_eq!(driver.get::<u16>(DEVICE + 2), 1);
    assert_eq!((chain.head(), chain.descriptors()), (77, 3));
    assert_eq!((chain.readable(), chain.writable()), (0x100, 0x200));
    chain.write(&driver.memory, 0x100, b"there").unwrap();
    assert_eq!(&driver.get::<[u8; 5]>(BUFFERS + 0x200), b"there");
    assert!(driver.used(|_| 3).is_none());
    assert!(driver.complete(&[(77, 0x105)]));
    assert_eq!(driver.used(|_| 3), Some((77, 0x105)));
    assert!(driver.used(|_| 3).is_none());
}

#[test]
fn indirect_tables_are_followed_once() {
    let mut driver = Driver::new(4, INDIRECT_DESC);
    driver.descriptor(TABLE, (BUFFERS, 8), 0, 0);
    // In a table NEXT means nothing.
    driver.descriptor(TABLE + 16, (BUFFERS + 8, 8), 0, WRITE | NEXT);
    driver.add(1, &[INDIRECT]);
    let chain = driver.pop().unwrap().unwrap();
    assert_eq!((chain.readable(), chain.writable()), (8, 8));
    driver.descriptor(TABLE, (TABLE, 32), 0, INDIRECT);
    driver.add(2, &[INDIRECT]);
    assert!(matches!(driver.pop(), Err(QueueError::Indirect)));
    let mut driver = Driver::new(4, 0);
    driver.add(1, &[INDIRECT]);
    assert!(matches!(driver.pop(), Err(QueueError::Indirect)));
    let mut driver = Driver::new(4, INDIRECT_DESC);
    driver.add(1, &[INDIRECT, 0]);
    assert!(matches!(driver.pop(), Err(QueueError::Indirect)));
}

#[test]
fn a_driver_is_interrupted_as_it_asks() {
    let mut driver = Driver::new(4, EVENT_IDX);
    for name in 0..3 {
        driver.add(name, &[0]);
        driver.pop().unwrap().unwrap();
    }
    // RING_EVENT_FLAGS_DISABLE
    driver.put(DRIVER + 2, 1_u16);
    assert!(!driver.complete(&[(0, 0)]));
    // RING_EVENT_FLAGS_DESC: descriptor 2 of the first round.
    driver.put(DRIVER, 0x8002_u16);
    driver.put(DRIVER + 2, 2_u16);
    assert!(!driver.complete(&[(1, 0)]));
    assert!(driver.complete(&[(2, 0)]));
    // Descriptor 0 of the second round, reached from 3 of the first.
    driver.put(DRIVER, 0_u16);
    for name in 3..5 {
        driver.add(name, &[0]);
        driver.pop().unwrap().unwrap();
    }
    assert!(driver.complete(&[(3, 0), (4, 0)]));
    // It has passed.
    driver.add(5, &[0]);
    driver.pop().unwrap().unwrap();
    assert!(!driver.complete(&[(5, 0)]));
    // The device says where it is: descriptor 2 of the second round.
    assert!(driver.pop().unwrap().is_none());
    assert_eq!(driver.get::<[u16; 2]>(DEVICE), [2, 2]);
}

#[test]
fn whoever_looks_again_asks_for_no_notification() {
    let mut driver = Driver::new(4, EVENT_IDX);
    assert!(driver.pop().unwrap().is_none());
    driver.add(1, &[0]);
    assert!(driver.take(Empty::LookAgain).unwrap().is_some());
    let quiet: [u16; 2] = driver.get(DEVICE);
    assert!(driver.take(Empty::LookAgain).unwrap().is_none());
    assert_eq!(driver.get::<[u16; 2]>(DEVICE), quiet);
    assert!(driver.pop().unwrap().is_none());
    assert_ne!(driver.get::<[u16; 2]>(DEVICE), quiet);
}

#[test]
fn chains_that_no_driver_may_make_are_refused() {
    let mut driver = Driver::new(4, 0);
    driver.add(0, &[0, 0, 0, 0]);
    // The last one goes on, too.
    driver.put(RING + 3 * 16 + 14, NEXT | 0x80);
    assert!(matches!(driver.pop(), Err(QueueError::ChainTooLong)));
    let mut driver = Driver::new(4, 0);
    driver.add(0, &[WRITE, 0]);
    assert!(matches!(driver.pop(), Err(QueueError::Order)));
    // Entries that are outstanding are made available again.
    let mut driver = Driver::new(2, 0);
    driver.add(0, &[0, 0]);
    driver.pop().unwrap().unwrap();
    driver.add(1, &[0]);
    assert!(matches!(
        driver.pop(),
        Err(QueueError::AvailableIndex { .. })
    ));
}

#[test]
fn a_name_that_was_not_taken_is_not_returned() {
    let mut driver = Driver::new(4, 0);
    let result = driver.queue.complete(&driver.memory, [(3, 0)]);
    assert!(matches!(result, Err(QueueError::DescriptorIndex { .. })));
}

#[test]
fn rings_out_of_line_and_sizes_that_do_not_exist_are_refused() {
    let state = QueueState {
        max_size: 256,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: false,
        size: 5,
        ready: true,
        desc_table: RING,
        avail_ring: DRIVER,
        used_ring: DEVICE,
    };
    let make = |state| VirtQueue::new(state, PACKED);
    assert!(make(state).is_ok());
    for bad in [
        QueueState { size: 0, ..state },
        QueueState { size: 257, ..state },
        QueueState {
            desc_table: RING + 8,
            ..state
        },
        QueueState {
            avail_ring: DRIVER + 2,
            ..state
        },
        QueueState {
            used_ring: DEVICE + 2,
            ..state
        },
    ] {
        assert!(matches!(make(bad), Err(QueueError::Setup(_))), "{bad:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A chain of this many descriptors, if there is room.
    Add(u16),
    Pop,
    Undo(u16),
    /// The chain at this place of those that are taken, and the one after it.
    Complete(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..4_u16).prop_map(Step::Add),
        3 => Just(Step::Pop),
        1 => (0..3_u16).prop_map(Step::Undo),
        2 => (0..4_usize).prop_map(Step::Complete),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Whatever the order, over many rounds: what is taken is what was added, and what is used is what
    /// was returned.
    #[test]
    fn any_order_of_steps_loses_and_repeats_nothing(size in 3..9_u16, steps in steps()) {
        let mut driver = Driver::new(size, 0);
        let mut lengths = vec![0_u16; usize::from(size)];
        let mut free: Vec<u16> = (0..size).collect();
        let (mut room, mut waiting) = (size, Vec::<u16>::new());
        let mut taken = Vec::<u16>::new();
        // So many of `taken` are older than one that was returned: no device undoes them.
        let mut older = 0;
        for step in steps {
            match step {
                Step::Add(length) if length <= room => {
                    let Some(name) = free.pop() else { continue };
                    lengths[usize::from(name)] = length;
                    driver.add(name, &vec![0; usize::from(length)]);
                    room -= length;
                    waiting.push(name);
                }
                Step::Add(_) => {}
                Step::Pop => {
                    let chain = driver.pop().unwrap();
                    prop_assert_eq!(chain.as_ref().map(Chain::head), waiting.first().copied());
                    if let Some(chain) = chain {
                        let length = lengths[usize::from(chain.head())];
                        prop_assert_eq!(chain.descriptors(), usize::from(length));
                        taken.push(waiting.remove(0));
                    }
                }
                Step::Undo(count) => {
                    let count = usize::from(count).min(taken.len() - older);
                    driver.queue.undo(u16::try_from(count).unwrap());
                    let back = taken.split_off(taken.len() - count);
                    waiting.splice(0..0, back);
                }
                Step::Complete(at) => {
                    let Some(first) = taken.get(at).copied() else { continue };
                    taken.remove(at);
                    older = older.max(at) - usize::from(at < older);
                    let second = (at < taken.len()).then(|| taken.remove(at));
                    older -= usize::from(second.is_some() && at < older);
                    let used: Vec<_> = [Some(first), second].into_iter().flatten().collect();
                    let with: Vec<_> = used.iter().map(|name| (*name, u32::from(*name) + 7)).collect();
                    driver.complete(&with);
                    for name in used {
                        let found = driver.used(|name| lengths[usize::from(name)]);
                        prop_assert_eq!(found, Some((name, u32::from(name) + 7)));
                        room += lengths[usize::from(name)];
                        free.push(name);
                    }
                    prop_assert_eq!(driver.used(|_| 1), None);
                }
            }
        }
    }
}
