//! The invalidation queue goes round, stops at errors and goes on (sections 6.5.2 and 11.4.7, sheet
//! F4 and F5).

use std::sync::Arc;
use std::time::Duration;

use intel_vtd::{InlineBudget, SourceId, Unit};
use oracle::bystanders::{Nowhere, Obedient};
use oracle::driver::{Driver, command, queue};
use oracle::machine::guest::configuration;
use oracle::ram::Memory;
use oracle::rng::Rng;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The source with a device-TLB, and one without.
const PRESENT: u64 = 0x0108;
const ABSENT: u64 = 0x0110;
const STATUS: u64 = 0x4000;

/// What a slot of the queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Good,
    /// Writes its token to its place.
    Wait {
        at: u64,
        token: u32,
    },
    /// Stops the queue with IQE and this IQEI.
    Bad(u64),
    /// Stops it with ITE.
    Silent,
}

struct Round {
    driver: Driver,
    wide: bool,
    /// Whether device-TLB invalidations may be used.
    devices: bool,
    token: u32,
    tally: [u64; 4],
}

impl Round {
    fn size(&self) -> u64 {
        if self.wide { 32 } else { 16 }
    }

    fn make(&mut self, rng: &mut Rng) -> (Entry, [u64; 4]) {
        match rng.below(40) {
            0 => (Entry::Bad(3), [0xf, 0, 0, 0]),
            1 => (Entry::Bad(4), [0x12 | 1 << 63, 0, 0, 0]),
            2 if self.devices => (Entry::Silent, queue::device_tlb(ABSENT, 0x5000, 12)),
            3..10 if self.devices => (Entry::Good, queue::device_tlb(PRESENT, 0x5000, 21)),
            10..25 => {
                self.token += 1;
                let (at, token) = (STATUS + u64::from(self.token % 512) * 8, self.token);
                (Entry::Wait { at, token }, queue::wait(at, token))
            }
            25..30 => (Entry::Good, queue::context_global()),
            _ => (Entry::Good, queue::iotlb_domain(rng.below(16))),
        }
    }

    fn written(&self, entry: Entry) -> bool {
        match entry {
            Entry::Wait { at, token } => self.driver.ram.load(at) & 0xffff_ffff == u64::from(token),
            _ => true,
        }
    }

    /// Has the rest done of what a register write has left, if the unit leaves anything.
    fn finish(&self) {
        self.driver.registers.0.run_backlog(&Arc::default());
    }

    /// Submits a batch, and follows the queue from stop to stop.
    fn batch(&mut self, rng: &mut Rng) {
        let capacity = 4096 / self.size() - 1;
        let mut entries = Vec::new();
        for _ in 0..=rng.below(capacity.min(70)) {
            let (entry, words) = self.make(rng);
            let slot = self.driver.queue.tail();
            self.driver.queue.push(&mut self.driver.ram, &words);
            entries.push((slot, entry));
        }
        let tail = self.driver.queue.tail();
        self.driver.registers.write64(0x88, tail);
        self.finish();
        let mut next = 0;
        loop {
            let rest = &entries[next..];
            let status = self.driver.fault_status() & 0x70;
            let head = self.driver.registers.read64(0x80);
            let here = next + rest.iter().take_while(|(slot, _)| *slot != head).count();
            assert!(here < entries.len() || head == tail, "IQH is {head:#x}");
            // From the first invalidation that times out on, nothing need be executed, and no wait
            // may complete.
            let (done, pending) = match entries[next..here]
                .iter()
                .position(|(_, entry)| *entry == Entry::Silent)
            {
                Some(silent) => entries[next..here].split_at(silent),
                None => entries[next..here].split_at(here - next),
            };
            for (slot, entry) in done {
                assert!(
                    self.written(*entry),
                    "{entry:?} at {slot:#x} did not complete"
                );
                self.tally[0] += 1;
            }
            for (slot, entry) in pending.iter().chain(&entries[here..]) {
                let early = matches!(entry, Entry::Wait { .. }) && self.written(*entry);
                assert!(!early, "{entry:?} at {slot:#x} is behind a stop");
            }
            let passed = pending.iter().chain(done);
            for (slot, entry) in passed {
                assert!(!matches!(entry, Entry::Bad(_)), "{slot:#x} was passed");
            }
            let stopped = entries.get(here).map(|(_, entry)| *entry);
            let lost = !pending.is_empty() || stopped == Some(Entry::Silent);
            let record = self.driver.registers.read64(0xb0);
            let mut expected = 0;
            if lost {
                self.tally[2] += 1;
                expected |= 0x40;
                assert_eq!(record >> 32 & 0xffff, ABSENT, "ITESID");
            }
            let mut code = 0;
            if let Some(Entry::Bad(expected_code)) = stopped {
                code = expected_code;
                // Whether it is looked at before the time-out is noticed is open.
                if !lost || status & 0x10 != 0 {
                    self.tally[1] += 1;
                    expected |= 0x10;
                    assert_eq!(record & 0xf, code, "IQEI");
                }
            }
            assert_eq!(
                status, expected,
                "FSTS with IQH {head:#x}, {stopped:?}, {pending:x?}"
            );
            if status == 0 {
                assert_eq!(head, tail, "the queue is empty");
                return;
            }
            // Writes of IQT have no effect while the queue is stopped.
            self.driver.registers.write64(0x88, tail);
            self.finish();
            assert_eq!(self.driver.registers.read64(0x80), head);
            if rng.chance(1, 6) {
                // Some drivers give up, and begin anew.
                self.tally[3] += 1;
                self.driver.stop_queue();
                self.driver.registers.write32(0x34, 0x50);
                assert_eq!(self.driver.fault_status() & 0x70, 0, "nothing is stopped");
                self.driver.start_queue(self.wide);
                return;
            }
            if let Some((slot, entry)) = entries.get_mut(here)
                && (*entry == Entry::Silent || expected & 0x10 != 0)
            {
                let words = if self.wide { 4 } else { 2 };
                let at = self.driver.queue.page + *slot;
                self.driver.ram.store(at, &queue::iotlb_global()[..words]);
                *entry = Entry::Good;
            }
            // Each bit stops the queue by itself.
            let first = rng.pick(&[0x10, 0x40, 0x50]);
            if expected & !first != 0 {
                self.driver.registers.write32(0x34, first);
                self.finish();
                let left = expected & !first;
                assert_eq!(self.driver.fault_status() & 0x70, left, "FSTS");
                let record = self.driver.registers.read64(0xb0);
                let known = match left {
                    0x40 => record >> 32 & 0xffff == ABSENT,
                    _ => record & 0xf == code,
                };
                assert!(known, "IQERCD is {record:#x} with FSTS {left:#x}");
                assert_eq!(self.driver.registers.read64(0x80), head, "IQH");
                expected = left;
            }
            self.driver.registers.write32(0x34, expected);
            self.finish();
            next = here;
        }
    }
}

#[test]
fn the_queue_goes_round_stops_at_errors_and_goes_on() {
    let seed = oracle::seed("queue");
    let steps = oracle::steps(30_000);
    let mut rng = Rng::new(seed);
    let mut tally = [0; 4];
    while tally[0] < steps {
        let config = configuration(&mut rng);
        let memory: Memory = Arc::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("guest memory"),
        );
        let unit = Unit::new(memory.clone(), &config, Arc::new(Nowhere)).expect("a configuration");
        let source = SourceId(u16::try_from(PRESENT).expect("16 bits"));
        unit.attach_device_tlb(source, Arc::new(Obedient));
        if rng.chance(1, 2) {
            let inline = InlineBudget {
                settles: if rng.chance(1, 2) { 1 } else { 2 },
                time: Duration::MAX,
            };
            // The driver itself is the background.
            unit.run_in_background(inline, Arc::new(|| {}));
        }
        let mut driver = Driver::new(unit, memory, 0x1000, 0x2000);
        let scalable = config.scalable.is_some() && rng.chance(2, 3);
        let wide = scalable || config.scalable.is_some() && rng.chance(1, 2);
        driver.set_root(0x3000, u64::from(scalable));
        driver.start_queue(wide);
        driver.set_command(command::TE, rng.chance(1, 2));
        let mut round = Round {
            driver,
            wide,
            devices: config.device_tlb,
            token: 0,
            tally: [0; 4],
        };
        for _ in 0..40 {
            round.batch(&mut rng);
        }
        for (sum, count) in tally.iter_mut().zip(round.tally) {
            *sum += count;
        }
    }
    println!(
        "queue: {} descriptors, {} stops by IQE, {} by ITE, {} queues begun anew",
        tally[0], tally[1], tally[2], tally[3]
    );
}
