//! Register writes that leave work to the background: what the guest sees meanwhile, and that all of it is done in the end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::testing::{Bench, Memory, QUEUE, STATUS, eventually, full, plain, sharing};
use super::{
    EventSink, InlineBudget, InterruptEntryObserver, Invalidation, Patience, TranslationObserver,
    Unfinished, Unit,
};
use crate::dma::DmaPort;
use crate::spec::ids::SourceId;

const SOURCE: SourceId = SourceId(0x0018);
/// A queue of 128 pages with entries of 32 bytes.
const LONG_QUEUE: u64 = 0x40_0000;
const LONG: u32 = 16384;

/// Writes may do this much, and never run out of time.
fn settles(settles: u32) -> InlineBudget {
    InlineBudget {
        settles,
        time: Duration::MAX,
    }
}

/// Counts how often it is woken; the test is the background itself.
fn background(bench: &Bench, inline: InlineBudget) -> Arc<AtomicUsize> {
    let woken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&woken);
    let wake = move || {
        count.fetch_add(1, Ordering::SeqCst);
    };
    bench.unit.run_in_background(inline, Arc::new(wake));
    woken
}

fn run(bench: &Bench) {
    bench.unit.run_backlog(&Arc::default());
}

/// Wait with a fence that writes `token` to the `place`th dword from [`STATUS`] on.
fn fenced(token: u64, place: u64) -> [u64; 4] {
    [token << 32 | 0x65, STATUS + 4 * place, 0, 0]
}

/// Fills the longest queue there is with pairs of an invalidation and a fenced wait, and writes the tail.
fn fill_long_queue(bench: &Bench, invalidation: [u64; 4]) {
    bench.write32(0x88, 0);
    bench.write64(0x90, LONG_QUEUE | 0x807);
    bench.write32(0x18, bench.read32(0x1C) & 0x8680_0000 | 0x0400_0000);
    for pair in 0..u64::from(LONG) / 2 {
        let at = LONG_QUEUE + pair * 64;
        bench.poke(at, &invalidation);
        bench.poke(at + 32, &fenced(pair + 1, pair % 64));
    }
    bench.write32(0x88, 32 * (LONG - 2));
}

/// The waits that [`fill_long_queue`] asks for.
const LONG_WAITS: u64 = LONG as u64 / 2 - 1;

#[test]
fn a_write_returns_while_a_transaction_is_open_and_no_status_is_written() {
    for words in [
        [0x0001_00E2, 0, 0, 0],
        [0xD2, 0, 0, 0],
        [0x0001_0021, 0, 0, 0],
    ] {
        let bench = Bench::new(&full());
        bench.map_legacy(0x60_0000);
        let woken = background(&bench, InlineBudget::default());
        let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
        let transaction = view.begin();
        transaction.write_obj(1_u32, GuestAddress(0x10)).unwrap();
        fill_long_queue(&bench, words);
        assert_ne!(woken.load(Ordering::SeqCst), 0);
        assert_eq!(bench.unit.stats().left_to_background, 1);
        assert_eq!(bench.peek32(STATUS), 0, "the transaction is not over");
        transaction.write_obj(2_u32, GuestAddress(0x10)).unwrap();
        drop(transaction);
        run(&bench);
        assert_eq!(bench.read32(0x80), 32 * (LONG - 2));
        assert_eq!(bench.unit.stats().waits, LONG_WAITS);
        assert_eq!(
            u64::from(bench.peek32(STATUS + 4 * (LONG_WAITS - 1) % 256)),
            LONG_WAITS
        );
    }
}

#[test]
fn a_write_completes_as_many_fenced_waits_as_its_budget_has_and_the_background_the_rest() {
    let bench = Bench::new(&full());
    let woken = background(&bench, settles(64));
    fill_long_queue(&bench, [0x11, 0, 0, 0]);
    assert_eq!(bench.unit.stats().waits, 64);
    assert_eq!(bench.read32(0x80), 64 * 64, "the head tells how far it is");
    assert_eq!(bench.peek32(STATUS + 4 * 63), 64);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    run(&bench);
    assert_eq!(bench.unit.stats().waits, LONG_WAITS);
    assert_eq!(bench.read32(0x80), bench.read32(0x88));
}

#[test]
fn waits_for_page_requests_and_for_interrupts_in_flight_leave_a_write_too() {
    let bench = Bench::new(&sharing());
    bench.enable_wide_queue();
    background(&bench, InlineBudget::default());
    {
        let _in_flight = bench.unit.page_requests_in_flight.read();
        bench.submit_wide(&[[0x1_0000_00A5, STATUS, 0, 0]]);
        assert_eq!(bench.peek32(STATUS), 0);
    }
    run(&bench);
    assert_eq!(bench.peek32(STATUS), 1);
    {
        let _in_flight = bench.unit.remapping.read();
        bench.submit_wide(&[[0x04, 0, 0, 0], fenced(2, 0)]);
        assert_eq!(bench.peek32(STATUS), 1);
        // A command that changes remapping as well.
        bench.write32(0x18, 0x0500_0000);
        assert_eq!(bench.read32(0x1C), 0x0400_0000);
    }
    run(&bench);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(bench.read32(0x1C), 0x0500_0000);
}

/// Stays in each call until it is let go, unless that is a call of a write beside a background.
struct Sleeper {
    entered: Mutex<Sender<()>>,
    leave: Mutex<Receiver<()>>,
}

impl TranslationObserver for Sleeper {
    fn translation_changed(&self, _: &Patience) -> Result<(), Unfinished> {
        Ok(())
    }

    fn invalidated(&self, _: &[Invalidation], patience: &Patience) -> Result<(), Unfinished> {
        if patience.steps() != u64::MAX {
            return Err(Unfinished);
        }
        self.entered.lock().unwrap().send(()).unwrap();
        self.leave.lock().unwrap().recv().unwrap();
        Ok(())
    }
}

fn sleeper(bench: &Bench) -> (Receiver<()>, Sender<()>) {
    let (entered, begun) = channel();
    let (go, leave) = channel();
    bench.unit.observe_translations(Arc::new(Sleeper {
        entered: Mutex::new(entered),
        leave: Mutex::new(leave),
    }));
    (begun, go)
}

/// What can be done while a command is executed: every register read, and those written that command nothing.
fn access_registers(bench: &Bench) {
    for at in (0..0x300).step_by(4) {
        bench.read32(at);
    }
    for at in [
        0x20, 0x24, 0x34, 0x38, 0x3C, 0x9C, 0xA0, 0xA4, 0xB8, 0xF0, 0x22C,
    ] {
        bench.write32(at, 0);
    }
}

#[test]
fn registers_are_accessed_while_an_observer_takes_its_time() {
    let bench = Bench::new(&full());
    bench.enable_wide_queue();
    let (begun, go) = sleeper(&bench);
    thread::scope(|scope| {
        scope.spawn(|| bench.submit_wide(&[[0xD2, 0, 0, 0], fenced(1, 0)]));
        begun.recv().unwrap();
        access_registers(&bench);
        assert_eq!(bench.peek32(STATUS), 0);
        go.send(()).unwrap();
    });
    assert_eq!(bench.peek32(STATUS), 1);
}

#[test]
fn with_a_background_commands_can_be_given_while_an_observer_takes_its_time() {
    let bench = Bench::new(&full());
    bench.enable_wide_queue();
    let (begun, go) = sleeper(&bench);
    let woken = background(&bench, InlineBudget::default());
    bench.submit_wide(&[[0xD2, 0, 0, 0], fenced(1, 0)]);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    thread::scope(|scope| {
        scope.spawn(|| run(&bench));
        begun.recv().unwrap();
        access_registers(&bench);
        bench.submit_wide(&[fenced(2, 1)]);
        bench.write64(0x20, 0x5000);
        bench.write32(0x18, 0x4400_0000);
        assert_eq!((bench.peek32(STATUS), bench.peek32(STATUS + 4)), (0, 0));
        assert_eq!(bench.read32(0x1C), 0x0400_0000);
        go.send(()).unwrap();
    });
    // Whoever executed has seen what came meanwhile.
    assert_eq!((bench.peek32(STATUS), bench.peek32(STATUS + 4)), (1, 2));
    assert_eq!(bench.read32(0x1C), 0x4400_0000);
    assert_eq!(bench.unit.dma_state().latched().root.address, 0x5000);
}

#[test]
fn constants_and_gsts_are_read_while_both_locks_are_held() {
    let bench = Bench::new(&full());
    let caps = bench.unit.capabilities();
    let _execution = bench.unit.execution.lock();
    let _registers = bench.unit.registers.lock();
    assert_eq!(bench.read32(0x00), 0x50);
    assert_eq!(bench.read64(0x08), u64::from(caps.cap));
    assert_eq!(bench.read64(0x10), u64::from(caps.ecap));
    assert_eq!(u64::from(bench.read32(0x0C)), u64::from(caps.cap) >> 32);
    assert_eq!(bench.read32(0x04), 0);
    assert_eq!(bench.read32(0x1C), 0);
}

#[test]
fn commands_that_wait_are_merged_and_no_pointer_is_lost() {
    let bench = Bench::new(&full());
    background(&bench, InlineBudget::NOTHING);
    bench.write64(0x20, 0x1400);
    bench.write32(0x18, 0x4000_0000);
    // Neither what RTADDR is by then nor a later command takes that back.
    bench.write64(0x20, 0x7000);
    bench.write64(0xB8, 0x20_0007);
    bench.write32(0x18, 0x8100_0000);
    bench.write32(0x18, 0x0200_0000);
    assert_eq!(bench.read32(0x1C), 0);
    run(&bench);
    assert_eq!(bench.read32(0x1C), 0x4300_0000);
    assert_eq!(bench.unit.dma_state().latched().root.address, 0x1000);
    assert_eq!(bench.unit.save().unwrap().interrupt_table, 0x20_0007);
}

#[test]
fn a_pointer_is_shown_as_set_only_once_the_last_one_is() {
    let bench = Bench::new(&full());
    background(&bench, InlineBudget::NOTHING);
    for (command, shown) in [(0x4000_0000, 0x4000_0000), (0x0100_0000, 0x4100_0000)] {
        bench.write32(0x18, command);
        run(&bench);
        assert_eq!(bench.read32(0x1C), shown);
    }
    // What software polls for is clear until the new pointer is in use.
    bench.write64(0x20, 0x5000);
    bench.write32(0x18, 0x4000_0000);
    assert_eq!(bench.read32(0x1C), 0x0100_0000);
    bench.write32(0x18, 0x0100_0000);
    assert_eq!((bench.read32(0x1C), bench.read64(0x18)), (0, 0));
    run(&bench);
    assert_eq!(bench.read32(0x1C), 0x4100_0000);
    assert_eq!(bench.unit.dma_state().latched().root.address, 0x5000);
}

#[test]
fn a_command_is_carried_out_before_the_rest_of_a_long_queue() {
    let bench = Bench::new(&full());
    background(&bench, settles(1));
    fill_long_queue(&bench, [0x11, 0, 0, 0]);
    let before = bench.unit.stats().waits;
    bench.write64(0x20, 0x1000);
    bench.write32(0x18, 0x4400_0000);
    assert_eq!(bench.read32(0x1C), 0x4400_0000);
    // That write had a budget of its own.
    assert_eq!(bench.unit.stats().waits, before + 1);
    // Switching the queue off drops the rest of it.
    bench.write32(0x18, 0);
    assert_eq!(bench.read32(0x1C), 0x4000_0000);
    assert_eq!(bench.read32(0x80), 0);
    run(&bench);
    assert_eq!(bench.unit.stats().waits, before + 1);
}

#[test]
fn what_is_given_while_a_device_is_waited_for_is_done_after_it() {
    let bench = Bench::new(&full());
    bench.map_legacy(0x60_0000);
    bench.enable_wide_queue();
    background(&bench, InlineBudget::default());
    let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
    let transaction = view.begin();
    bench.submit_wide(&[[0xD2, 0, 0, 0], fenced(1, 0)]);
    // Translation off: the device is still in the middle of it.
    bench.write32(0x18, 0x0400_0000);
    assert_eq!(bench.read32(0x1C), 0xC400_0000);
    drop(transaction);
    run(&bench);
    assert_eq!(bench.peek32(STATUS), 1);
    assert_eq!(bench.read32(0x1C), 0x4400_0000);
}

#[test]
fn the_invalidation_registers_are_busy_until_it_is_done() {
    let bench = Bench::new(&plain());
    background(&bench, InlineBudget::NOTHING);
    bench.write64(0x28, 0xA000_0000_0000_0000);
    bench.write64(0xF8, 0x9000_0000_0000_0000);
    // Software must not do this; the first request stands.
    bench.write64(0x28, 0xC000_0000_0000_0005);
    bench.write64(0xF8, 0xA000_0005_0000_0000);
    bench.write64(0xF0, 0x5000);
    assert_eq!(bench.read64(0x28), 0xA000_0000_0000_0000);
    assert_eq!(bench.read64(0xF8), 0x9000_0000_0000_0000);
    run(&bench);
    assert_eq!(bench.read64(0x28), 0x2800_0000_0000_0000, "CIRG and CAIG");
    assert_eq!(bench.read64(0xF8), 0x1200_0000_0000_0000, "IIRG and IAIG");
    assert_eq!(bench.unit.stats().register_invalidations, 2);
}

#[test]
fn reset_drops_what_is_left_of_a_long_queue() {
    let bench = Bench::new(&full());
    background(&bench, settles(3));
    fill_long_queue(&bench, [0xD2, 0, 0, 0]);
    let state = bench.unit.save().unwrap();
    bench.write64(0x20, 0x1000);
    bench.unit.reset();
    run(&bench);
    assert_eq!(bench.unit.stats().waits, 3);
    for at in [0x1C, 0x20, 0x80, 0x88, 0x90] {
        assert_eq!(bench.read32(at), 0, "{at:#x}");
    }
    bench.unit.restore(&state).unwrap();
    run(&bench);
    assert_eq!(bench.unit.stats().waits, LONG_WAITS);
}

/// Holds the background in a call until somebody wants to reset the unit.
struct UntilClaimed(Arc<Unit<Memory>>);

impl TranslationObserver for UntilClaimed {
    fn translation_changed(&self, _: &Patience) -> Result<(), Unfinished> {
        Ok(())
    }

    fn invalidated(&self, _: &[Invalidation], _: &Patience) -> Result<(), Unfinished> {
        assert!(eventually(|| self.0.claims.load(Ordering::SeqCst) != 0));
        Ok(())
    }
}

#[test]
fn reset_is_next_while_the_background_is_at_a_long_queue() {
    let bench = Bench::new(&full());
    background(&bench, InlineBudget::NOTHING);
    bench
        .unit
        .observe_translations(Arc::new(UntilClaimed(Arc::clone(&bench.unit))));
    fill_long_queue(&bench, [0xD2, 0, 0, 0]);
    run_beside(&bench, || bench.unit.reset());
    assert_eq!(bench.unit.stats().waits, 1, "one was under way");
    assert_eq!(bench.read32(0x80), 0);
}

/// Runs the background while `work` does something.
fn run_beside(bench: &Bench, work: impl FnOnce()) {
    thread::scope(|scope| {
        scope.spawn(|| run(bench));
        // Until the first descriptor has been counted.
        assert!(eventually(|| bench.unit.stats().iotlb_invalidations != 0));
        work();
    });
}

#[test]
fn the_background_gives_up_between_two_waits_and_goes_on_when_it_is_called_again() {
    struct StopAt(u64, Mutex<u64>, Arc<AtomicBool>);
    impl TranslationObserver for StopAt {
        fn translation_changed(&self, _: &Patience) -> Result<(), Unfinished> {
            Ok(())
        }
        fn invalidated(&self, _: &[Invalidation], _: &Patience) -> Result<(), Unfinished> {
            let mut calls = self.1.lock().unwrap();
            *calls += 1;
            if *calls == self.0 {
                self.2.store(true, Ordering::SeqCst);
            }
            Ok(())
        }
    }
    let bench = Bench::new(&full());
    background(&bench, InlineBudget::NOTHING);
    let stop = Arc::new(AtomicBool::new(true));
    let observer = StopAt(5, Mutex::new(0), Arc::clone(&stop));
    bench.unit.observe_translations(Arc::new(observer));
    bench.unit.run_backlog(&stop);
    fill_long_queue(&bench, [0xD2, 0, 0, 0]);
    bench.unit.run_backlog(&stop);
    assert_eq!(bench.unit.stats().waits, 0);
    stop.store(false, Ordering::SeqCst);
    bench.unit.run_backlog(&stop);
    assert_eq!(bench.unit.stats().waits, 5);
    run(&bench);
    assert_eq!(bench.unit.stats().waits, LONG_WAITS);
}

/// A fresh unit on the same memory.
fn successor(bench: &Bench) -> Bench {
    let mut successor = Bench::new(&full());
    let events: Arc<dyn EventSink> = Arc::clone(&successor.sink) as _;
    successor.memory = Arc::clone(&bench.memory);
    successor.unit = Unit::new(Arc::clone(&bench.memory), &full(), events).unwrap();
    successor
}

#[test]
fn a_unit_that_restores_a_half_done_queue_goes_on_with_it() {
    for behind in [None, Some(InlineBudget::NOTHING)] {
        let bench = Bench::new(&full());
        bench.enable_wide_queue();
        background(&bench, settles(1));
        let waits: Vec<_> = (0..20).map(|place| fenced(place + 1, place)).collect();
        bench.submit_wide(&waits);
        let state = bench.unit.save().unwrap();
        let next = successor(&bench);
        if let Some(budget) = behind {
            background(&next, budget);
        }
        next.unit.restore(&state).unwrap();
        assert_eq!(next.peek32(STATUS + 4) == 2, behind.is_none());
        run(&next);
        let statuses = (0..20).map(|place| next.peek32(STATUS + 4 * place));
        assert!(statuses.eq(1..=20));
        assert_eq!(next.read32(0x80), next.read32(0x88));
    }
}

/// Takes so many steps for whatever it is told, and remembers with how much patience it was called.
struct Slow {
    steps: u64,
    calls: Mutex<Vec<u64>>,
}

impl Slow {
    fn observe(bench: &Bench, steps: u64) -> Arc<Self> {
        let slow = Arc::new(Self {
            steps,
            calls: Mutex::default(),
        });
        bench.unit.observe_translations(Arc::clone(&slow) as _);
        slow
    }

    fn work(&self, patience: &Patience) -> Result<(), Unfinished> {
        self.calls.lock().unwrap().push(patience.steps());
        if patience.steps() < self.steps {
            return Err(Unfinished);
        }
        Ok(())
    }

    fn calls(&self) -> Vec<u64> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl TranslationObserver for Slow {
    fn translation_changed(&self, patience: &Patience) -> Result<(), Unfinished> {
        self.work(patience)
    }

    fn invalidated(&self, _: &[Invalidation], patience: &Patience) -> Result<(), Unfinished> {
        self.work(patience)
    }
}

/// Of an observer in one call, within the default budget.
const STEPS: u64 = 6000;

#[test]
fn what_takes_observers_long_is_left_to_the_background_and_completes_after_it() {
    let bench = Bench::new(&sharing());
    bench.scalable_mode();
    bench.enable_wide_queue();
    let slow = Slow::observe(&bench, STEPS + 1);
    background(&bench, InlineBudget::default());
    for (token, [low, high]) in [[0x0001_00F2, 0x1_0000], [0x0001_00E2, 0], [0x11, 0]]
        .into_iter()
        .enumerate()
    {
        let token = token as u64 + 1;
        bench.submit_wide(&[[low, high, 0, 0], fenced(token, 0)]);
        assert_ne!(u64::from(bench.peek32(STATUS)), token);
        assert_eq!(slow.calls(), [STEPS]);
        run(&bench);
        assert_eq!(u64::from(bench.peek32(STATUS)), token);
        assert_eq!(slow.calls(), [u64::MAX]);
    }
    // Without its root table, and with another, everything is another.
    for (command, before) in [
        (0xC400_0000_u32, 0x0400_0000_u32),
        (0x0400_0000, 0xC400_0000),
    ] {
        bench.write32(0x18, command);
        assert_eq!(bench.read32(0x1C), before);
        run(&bench);
        assert_eq!(bench.read32(0x1C), command | 0x4000_0000);
    }
}

#[test]
fn what_is_begun_without_a_wait_behind_it_is_finished_as_well() {
    let bench = Bench::new(&sharing());
    bench.scalable_mode();
    bench.enable_wide_queue();
    let slow = Slow::observe(&bench, STEPS + 1);
    background(&bench, InlineBudget::default());
    bench.submit_wide(&[[0x0001_00E2, 0, 0, 0]]);
    run(&bench);
    assert_eq!(slow.calls(), [STEPS, u64::MAX]);
    run(&bench);
    assert!(slow.calls().is_empty());
}

#[test]
fn a_switch_that_is_taken_back_before_it_was_finished_is_undone() {
    let bench = Bench::new(&full());
    let slow = Slow::observe(&bench, STEPS + 1);
    bench.write64(0xB8, 0x20_0807);
    bench.write64(0x20, 0x1000);
    bench.write32(0x18, 0x4100_0000);
    background(&bench, InlineBudget::default());
    let is_used = || bench.unit.dma_state().latched().enabled;
    for (before, on) in [(0x8000_0000, true), (0, false)] {
        bench.write32(0x18, before);
        run(&bench);
        slow.calls();
        bench.write32(0x18, before ^ 0x8000_0000);
        assert_eq!(is_used(), !on, "latched already");
        bench.write32(0x18, before);
        run(&bench);
        assert_eq!(bench.read32(0x1C), 0x4100_0000 | before);
        assert_eq!(is_used(), on);
        assert_eq!(slow.calls().last(), Some(&u64::MAX), "observers know");
    }
}

#[test]
fn interrupt_remapping_that_is_taken_back_before_it_was_finished_is_undone() {
    struct Slow(Mutex<Vec<u64>>);
    impl InterruptEntryObserver for Slow {
        fn interrupt_entries_invalidated(
            &self,
            _: u16,
            _: u32,
            patience: &Patience,
        ) -> Result<(), Unfinished> {
            self.0.lock().unwrap().push(patience.steps());
            let is_enough = patience.steps() == u64::MAX;
            is_enough.then_some(()).ok_or(Unfinished)
        }
    }
    let bench = Bench::new(&full());
    let slow = Arc::new(Slow(Mutex::default()));
    bench.unit.observe_interrupt_entries(Arc::clone(&slow) as _);
    bench.write64(0xB8, 0x20_0807);
    bench.write32(0x18, 0x0100_0000);
    background(&bench, InlineBudget::default());
    for (before, on) in [(0x0200_0000, true), (0, false)] {
        bench.write32(0x18, before);
        run(&bench);
        bench.write32(0x18, before ^ 0x0200_0000);
        assert_eq!(bench.unit.remapping.read().enabled, !on, "in use already");
        bench.write32(0x18, before);
        run(&bench);
        assert_eq!(bench.read32(0x1C), 0x0100_0000 | before);
        assert_eq!(bench.unit.remapping.read().enabled, on);
        let calls = std::mem::take(&mut *slow.0.lock().unwrap());
        assert_eq!(calls.last(), Some(&u64::MAX), "observers know");
    }
}

#[test]
fn a_register_invalidation_that_takes_observers_long_stays_busy_until_it_is_done() {
    let bench = Bench::new(&plain());
    let slow = Slow::observe(&bench, STEPS + 1);
    background(&bench, InlineBudget::default());
    bench.write64(0x28, 0xA000_0000_0000_0000);
    assert_eq!(bench.read64(0x28), 0xA000_0000_0000_0000);
    run(&bench);
    assert_eq!(bench.read64(0x28), 0x2800_0000_0000_0000);
    assert_eq!(bench.unit.stats().register_invalidations, 1);
    assert_eq!(slow.calls(), [STEPS, u64::MAX]);
}

#[test]
fn what_takes_observers_no_longer_than_a_write_may_is_done_at_once_however_broad() {
    let bench = Bench::new(&sharing());
    bench.scalable_mode();
    bench.enable_wide_queue();
    let slow = Slow::observe(&bench, STEPS);
    let woken = background(&bench, InlineBudget::default());
    bench.submit_wide(&[[0x0001_00E2, 0, 0, 0], fenced(7, 0)]);
    assert_eq!(bench.peek32(STATUS), 7);
    bench.write32(0x18, 0xC400_0000);
    assert_eq!(bench.read32(0x1C), 0xC400_0000);
    assert_eq!(slow.calls(), [STEPS; 3], "a root table, and translation");
    assert_eq!(woken.load(Ordering::SeqCst), 0);
}

/// Would go on until somebody waits for it.
struct Endless(Sender<()>);

impl TranslationObserver for Endless {
    fn translation_changed(&self, _: &Patience) -> Result<(), Unfinished> {
        Ok(())
    }

    fn invalidated(&self, _: &[Invalidation], patience: &Patience) -> Result<(), Unfinished> {
        let _ = self.0.send(());
        assert!(eventually(|| patience.is_over()));
        Err(Unfinished)
    }
}

#[test]
fn a_call_of_an_observer_is_cut_short_for_a_reset_and_for_the_end_of_the_background() {
    for reset in [true, false] {
        let bench = Bench::new(&full());
        background(&bench, InlineBudget::NOTHING);
        let (begins, begun) = channel();
        bench.unit.observe_translations(Arc::new(Endless(begins)));
        fill_long_queue(&bench, [0xD2, 0, 0, 0]);
        let stop = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| bench.unit.run_backlog(&stop));
            begun.recv().unwrap();
            if reset {
                bench.unit.reset();
            } else {
                stop.store(true, Ordering::SeqCst);
            }
        });
        assert_eq!(bench.peek32(STATUS), 0);
        assert_eq!(bench.read32(0x88) == 0, reset);
    }
}

#[test]
fn who_interrupts_gets_a_lock_of_an_observer_and_the_call_is_made_again_after_that() {
    struct Locking(Mutex<()>, Sender<()>);
    impl TranslationObserver for Locking {
        fn translation_changed(&self, _: &Patience) -> Result<(), Unfinished> {
            Ok(())
        }
        fn invalidated(&self, _: &[Invalidation], patience: &Patience) -> Result<(), Unfinished> {
            let _held = self.0.lock().unwrap();
            if self.1.send(()).is_ok() {
                assert!(eventually(|| patience.is_over()));
                return Err(Unfinished);
            }
            Ok(())
        }
    }
    let bench = Bench::new(&full());
    bench.enable_wide_queue();
    background(&bench, InlineBudget::NOTHING);
    let (begins, begun) = channel();
    let observer = Arc::new(Locking(Mutex::default(), begins));
    bench.unit.observe_translations(Arc::clone(&observer) as _);
    bench.submit_wide(&[[0xD2, 0, 0, 0], fenced(1, 0)]);
    thread::scope(|scope| {
        scope.spawn(|| run(&bench));
        begun.recv().unwrap();
        drop(begun);
        let interruption = bench.unit.interrupt();
        let held = observer.0.lock().unwrap();
        assert_eq!(bench.peek32(STATUS), 0);
        drop(interruption);
        drop(held);
    });
    assert_eq!(bench.peek32(STATUS), 1);
}

#[test]
fn errors_and_time_outs_are_reported_by_the_background_as_well() {
    let bench = Bench::new(&sharing());
    bench.enable_wide_queue();
    background(&bench, InlineBudget::NOTHING);
    bench.submit_wide(&[fenced(1, 0), [0, 0, 0, 0], fenced(2, 0)]);
    assert_eq!(bench.read32(0x34), 0);
    run(&bench);
    assert_eq!((bench.read32(0x34), bench.read64(0xB0)), (0x10, 3));
    assert_eq!((bench.read32(0x80), bench.peek32(STATUS)), (32, 1));
    // No tail has an effect, until the error is cleared.
    bench.write32(0x88, 96);
    run(&bench);
    assert_eq!(bench.read32(0x80), 32);
    bench.poke(QUEUE + 32, &[0x0000_0018_0000_0003, 0x7FFF_FFFF_FFFF_F001]);
    bench.write32(0x34, 0x10);
    assert_eq!(bench.read64(0xB0), 0);
    run(&bench);
    assert_eq!((bench.read32(0x34), bench.peek32(STATUS)), (0x40, 1));
    assert_eq!(bench.read64(0xB0), 0x18 << 32);
    bench.submit_wide(&[fenced(3, 0)]);
    bench.write32(0x34, 0x40);
    run(&bench);
    assert_eq!((bench.read32(0x34), bench.peek32(STATUS)), (0, 3));
}
