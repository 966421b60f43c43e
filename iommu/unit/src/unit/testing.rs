//! A driver for tests: a unit, its memory, and a sink that keeps what it is given.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{EventSink, InlineBudget, InterruptMessage, Unit};
use crate::config::UnitConfig;

pub type Memory = Arc<GuestMemoryMmap<()>>;

/// Keeps messages, and what memory held at one place when each came.
pub struct Sink {
    memory: Memory,
    messages: Mutex<Vec<InterruptMessage>>,
    /// The dword at [`STATUS`] when the last message came.
    status: Mutex<Option<u32>>,
}

impl EventSink for Sink {
    fn deliver(&self, message: InterruptMessage) {
        self.messages.lock().unwrap().push(message);
        *self.status.lock().unwrap() = Some(self.memory.read_obj(GuestAddress(STATUS)).unwrap());
    }
}

impl Sink {
    /// The messages since the last call, as (address, data).
    pub fn take(&self) -> Vec<(u64, u32)> {
        let messages = std::mem::take(&mut *self.messages.lock().unwrap());
        messages
            .iter()
            .map(|message| (message.address, message.data))
            .collect()
    }

    /// What the status dword was when the last message came.
    pub fn status_seen(&self) -> Option<u32> {
        *self.status.lock().unwrap()
    }
}

/// Where tests put the invalidation queue.
pub const QUEUE: u64 = 0x10_0000;
/// Where tests put the interrupt remapping table.
pub const TABLE: u64 = 0x20_0000;
/// Where tests have wait statuses written.
pub const STATUS: u64 = 0x30_0000;
/// End of memory.
pub const END: u64 = 0x100_0000;

pub struct Bench {
    pub memory: Memory,
    pub unit: Arc<Unit<Memory>>,
    pub sink: Arc<Sink>,
}

/// Whether `condition` comes true while other threads run, within a bounded number of turns.
pub fn eventually(condition: impl Fn() -> bool) -> bool {
    (0..1_000_000).any(|_| {
        thread::yield_now();
        condition()
    })
}

/// Everything on, 48 bits.
pub fn full() -> UnitConfig {
    UnitConfig::scalable(46)
}

/// Everything on, and what devices need to share address spaces with software.
pub fn sharing() -> UnitConfig {
    UnitConfig::svm(46)
}

/// Legacy mode only, without interrupt remapping.
pub fn plain() -> UnitConfig {
    UnitConfig::legacy(46).with_snoop_control(true)
}

/// A thread that carries out what register writes leave, until it is dropped.
pub struct Background {
    state: Arc<(Mutex<bool>, Condvar)>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Background {
    pub fn start<M>(unit: &Arc<Unit<M>>, inline: InlineBudget) -> Self
    where
        M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
    {
        let state = Arc::new((Mutex::new(false), Condvar::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let woken = Arc::clone(&state);
        let wake = move || {
            *woken.0.lock().unwrap() = true;
            woken.1.notify_one();
        };
        unit.run_in_background(inline, Arc::new(wake));
        let (unit, woken, ended) = (Arc::clone(unit), Arc::clone(&state), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let guard = woken.0.lock().unwrap();
                *woken.1.wait_while(guard, |woken| !*woken).unwrap() = false;
                unit.run_backlog(&ended);
            }
        });
        Self {
            state,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        *self.state.0.lock().unwrap() = true;
        self.state.1.notify_one();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

impl Bench {
    pub fn new(config: &UnitConfig) -> Self {
        let ranges = [(GuestAddress(0), usize::try_from(END).unwrap())];
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let sink = Arc::new(Sink {
            memory: Arc::clone(&memory),
            messages: Mutex::default(),
            status: Mutex::default(),
        });
        let events: Arc<dyn EventSink> = Arc::clone(&sink) as _;
        let unit = Unit::new(Arc::clone(&memory), config, events).unwrap();
        Self { memory, unit, sink }
    }

    pub fn read32(&self, at: u64) -> u32 {
        let mut bytes = [0xAA; 4];
        self.unit.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn read64(&self, at: u64) -> u64 {
        let mut bytes = [0xAA; 8];
        self.unit.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub fn write32(&self, at: u64, value: u32) {
        self.unit.write(at, &value.to_le_bytes());
    }

    pub fn write64(&self, at: u64, value: u64) {
        self.unit.write(at, &value.to_le_bytes());
    }

    pub fn poke(&self, at: u64, words: &[u64]) {
        for (place, word) in (at..).step_by(8).zip(words) {
            self.memory.write_obj(*word, GuestAddress(place)).unwrap();
        }
    }

    pub fn peek32(&self, at: u64) -> u32 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Enables a queue at [`QUEUE`]: 256 entries of 32 bytes.
    pub fn enable_wide_queue(&self) {
        self.write32(0x88, 0);
        self.write64(0x90, 0x10_0801);
        self.write32(0x18, self.read32(0x1C) & 0x8680_0000 | 0x0400_0000);
        assert_eq!(self.read32(0x1C) & 0x0400_0000, 0x0400_0000);
    }

    /// Enables a queue at [`QUEUE`]: 256 entries of 16 bytes.
    pub fn enable_narrow_queue(&self) {
        self.write32(0x88, 0);
        self.write64(0x90, 0x10_0000);
        self.write32(0x18, self.read32(0x1C) & 0x8680_0000 | 0x0400_0000);
        assert_eq!(self.read32(0x1C) & 0x0400_0000, 0x0400_0000);
    }

    /// Latches scalable mode, with a root table at 0x1000.
    pub fn scalable_mode(&self) {
        self.write64(0x20, 0x1400);
        self.write32(0x18, self.read32(0x1C) & 0x8680_0000 | 0x4000_0000);
    }

    /// Appends to a queue of 8 KiB with 32-byte entries, and writes the tail.
    pub fn submit_wide(&self, descriptors: &[[u64; 4]]) {
        let mut tail = self.read32(0x88);
        for descriptor in descriptors {
            self.poke(QUEUE + u64::from(tail), descriptor);
            tail = (tail + 32) % 0x2000;
        }
        self.write32(0x88, tail);
    }

    /// Appends to a queue of 4 KiB with 16-byte entries, and writes the tail.
    pub fn submit_narrow(&self, descriptors: &[[u64; 2]]) {
        let mut tail = self.read32(0x88);
        for descriptor in descriptors {
            self.poke(QUEUE + u64::from(tail), descriptor);
            tail = (tail + 16) % 0x1000;
        }
        self.write32(0x88, tail);
    }

    /// Latches a table of 256 entries at [`TABLE`] and enables remapping. `extended` is EIME.
    pub fn enable_interrupts(&self, extended: bool) {
        let table = if extended { 0x20_0807 } else { 0x20_0007 };
        self.write64(0xB8, table);
        self.write32(0x18, self.read32(0x1C) & 0x8680_0000 | 0x0100_0000);
        self.write32(0x18, self.read32(0x1C) & 0x8680_0000 | 0x0200_0000);
        assert_eq!(self.read32(0x1C) & 0x0300_0000, 0x0300_0000);
    }

    /// Aims the fault event at vector 0x31 of APIC 5, unmasked.
    pub fn unmask_faults(&self) {
        self.write32(0x3C, 0x31);
        self.write32(0x40, 0xFEE0_5000);
        self.write32(0x44, 0);
        self.write32(0x38, 0);
    }

    /// Legacy mode, device 00:03.0, domain 1, three levels: the first 4 KiB go to `target`, by the leaf at 0x5000.
    pub fn map_legacy(&self, target: u64) {
        self.poke(0x1000, &[0x2001, 0]);
        self.poke(0x2180, &[0x3001, 0x0101]);
        self.poke(0x3000, &[0x4003]);
        self.poke(0x4000, &[0x5003]);
        self.poke(0x5000, &[target | 3]);
        self.enable_translation(0x1000);
    }

    /// Scalable mode, device 00:03.0, domain 1: pass-through.
    pub fn pass_through_scalable(&self) {
        self.poke(0x1000, &[0x2001, 0]);
        self.poke(0x2300, &[0x3001, 0, 0, 0]);
        self.poke(0x3000, &[0x4001]);
        self.poke(0x4000, &[0x0109, 1, 0, 0, 0, 0, 0, 0]);
        self.enable_translation(0x1400);
    }

    /// Scalable mode, device 00:03.0 with DTE, PASIDE and PRE: pass-through without PASID. PASID 5, domain 2, first stage:
    /// the page at 0x1000 goes to `target`, by the leaf at 0x8008.
    pub fn share(&self, target: u64) {
        self.poke(0x1000, &[0x2001, 0]);
        self.poke(0x2300, &[0x301D, 0, 0, 0]);
        self.poke(0x3000, &[0x4001]);
        self.poke(0x4000, &[0x0109, 1, 0, 0, 0, 0, 0, 0]);
        self.poke(0x4140, &[0x0049, 0x0080_0002, 0x5000, 0, 0, 0, 0, 0]);
        self.poke(0x5000, &[0x6027]);
        self.poke(0x6000, &[0x7027]);
        self.poke(0x7000, &[0x8027]);
        self.poke(0x8008, &[target | 7]);
        self.enable_translation(0x1400);
    }

    fn enable_translation(&self, root: u64) {
        self.write64(0x20, root);
        let on = self.read32(0x1C) & 0x8680_0000;
        self.write32(0x18, on | 0x4000_0000);
        self.write32(0x18, on | 0x8000_0000);
    }
}
