use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use intel_vtd::{
    EventSink, InterruptMessage, Invalidation, Patience, SourceId, TranslationObserver, Unfinished,
    UnitConfig,
};
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

struct Nobody;

impl EventSink for Nobody {
    fn deliver(&self, _message: InterruptMessage) {}
}

const SIZE: usize = 1 << 20;
const BASE: MmioAddress = MmioAddress(0xfed9_0000);

fn window() -> VtdMmio {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]);
    let config = UnitConfig::scalable(46);
    let unit = Unit::new(
        Arc::new(memory.expect("mappable")),
        &config,
        Arc::new(Nobody),
    );
    VtdMmio::start(unit.expect("a valid configuration")).expect("a thread")
}

fn read<const N: usize>(window: &VtdMmio, offset: u64) -> [u8; N] {
    let mut data = [0xa5; N];
    window.mmio_read(BASE, offset, &mut data);
    data
}

#[test]
fn offsets_count_from_the_start_of_the_window() {
    let window = window();
    let capabilities = window.unit.capabilities();
    assert_eq!(
        read(&window, 0x08),
        u64::from(capabilities.cap).to_le_bytes()
    );
    assert_eq!(
        read(&window, 0x10),
        u64::from(capabilities.ecap).to_le_bytes()
    );
    let [low, high] = [read::<4>(&window, 0x08), read::<4>(&window, 0x0c)];
    assert_eq!(
        [low, high].concat(),
        u64::from(capabilities.cap).to_le_bytes()
    );
}

#[test]
fn a_register_keeps_what_the_guest_writes() {
    let window = window();
    // FEDATA_REG (VT-d 11.4.9.3).
    window.mmio_write(BASE, 0x3c, &0x1234_u32.to_le_bytes());
    assert_eq!(read(&window, 0x3c), 0x1234_u32.to_le_bytes());
}

#[test]
fn no_offset_and_no_length_breaks_anything() {
    let window = window();
    for offset in [0, 1, 7, 0xffc, 0xfff, 0x1000, u64::MAX - 3, u64::MAX] {
        for length in [0, 1, 2, 3, 4, 8, 16] {
            let mut data = vec![0xff; length];
            window.mmio_write(BASE, offset, &data);
            window.mmio_read(BASE, offset, &mut data);
        }
    }
}

/// The invalidation queue: 64 KiB with entries of 32 bytes. Statuses are below.
const QUEUE: u64 = 0x1_0000;
const STATUS: u64 = 0x8000;

fn write(window: &VtdMmio, offset: u64, value: u32) {
    window.mmio_write(BASE, offset, &value.to_le_bytes());
}

fn status(window: &VtdMmio) -> u32 {
    let memory = window.unit.dma_state().memory();
    memory.read_obj(GuestAddress(STATUS)).expect("memory")
}

/// Fills the queue with pairs of a global invalidation of translations and a wait with a fence, and
/// writes the tail. Returns the last status.
fn submit_full_queue(window: &VtdMmio) -> u32 {
    let memory = window.unit.dma_state().memory();
    write(window, 0x88, 0);
    write(window, 0x90, 0x1_0804);
    write(window, 0x18, 0x0400_0000);
    for pair in 0..1023_u64 {
        let words = [0xd2, 0, 0, 0, (pair + 1) << 32 | 0x65, STATUS, 0, 0];
        for (at, word) in (QUEUE + pair * 64..).step_by(8).zip(words) {
            memory.write_obj(word, GuestAddress(at)).expect("memory");
        }
    }
    write(window, 0x88, 1023 * 64);
    1023
}

/// Whether `condition` comes true while other threads run, within a bounded number of turns.
fn eventually(condition: impl Fn() -> bool) -> bool {
    (0..10_000_000).any(|_| {
        thread::yield_now();
        condition()
    })
}

#[test]
fn a_full_queue_beside_a_busy_device_is_carried_out_after_its_write_has_returned() {
    let window = window();
    let port = window.unit.port(SourceId(8));
    let mut view = port.view();
    let transaction = view.begin();
    let last = submit_full_queue(&window);
    // The device is in the middle of it, so nothing has completed.
    assert_eq!(status(&window), 0);
    assert_eq!(read(&window, 0x1c), 0x0400_0000_u32.to_le_bytes());
    drop(transaction);
    assert!(eventually(|| status(&window) == last));
    assert_eq!(read::<4>(&window, 0x80), read::<4>(&window, 0x88));
}

/// Stays in each call of the background until it is let go, or nobody can do that any more.
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
        let _ = self.entered.lock().send(());
        let _ = self.leave.lock().recv();
        Ok(())
    }
}

#[test]
fn a_window_ends_and_a_unit_is_reset_in_the_middle_of_a_full_queue() {
    for reset in [true, false] {
        let window = window();
        let unit = Arc::clone(&window.unit);
        let (entered, begun) = channel();
        let (go, leave) = channel();
        unit.observe_translations(Arc::new(Sleeper {
            entered: Mutex::new(entered),
            leave: Mutex::new(leave),
        }));
        submit_full_queue(&window);
        begun.recv().expect("the background");
        thread::scope(|scope| {
            let end = scope.spawn(|| {
                if reset {
                    window.unit.reset();
                } else {
                    drop(window);
                }
            });
            // It waits for the call that is under way, and for none that could follow.
            while !end.is_finished() {
                if begun.try_recv().is_err() {
                    let _ = go.send(());
                }
                thread::yield_now();
            }
        });
        let mut head = [0xff; 4];
        unit.read(0x80, &mut head);
        assert!(!reset || head == [0; 4], "{head:?}");
    }
}

/// Far beyond what anything takes.
fn soon() -> Instant {
    Instant::now() + std::time::Duration::from_secs(60)
}

#[test]
fn a_parked_unit_leaves_the_rest_of_the_queue_and_goes_on_with_it() {
    let window = window();
    let unit = Arc::clone(&window.unit);
    let (entered, begun) = channel();
    let (go, leave) = channel();
    unit.observe_translations(Arc::new(Sleeper {
        entered: Mutex::new(entered),
        leave: Mutex::new(leave),
    }));
    let last = submit_full_queue(&window);
    begun.recv().expect("the background");
    assert!(!window.park(Instant::now()), "in a call to an observer");
    go.send(()).expect("it waits");
    // Another call may have begun before.
    while !window.park(Instant::now()) {
        if begun.try_recv().is_ok() {
            go.send(()).expect("it waits");
        }
        thread::yield_now();
    }
    let head = read::<4>(&window, 0x80);
    let before = status(&window);
    assert!(before < last, "the queue was long");
    thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!((status(&window), read(&window, 0x80)), (before, head));
    window.resume();
    drop(go);
    assert!(eventually(|| status(&window) == last));
}

#[test]
fn a_parked_unit_parks_at_once_again_and_ends() {
    let window = window();
    for _ in 0..100 {
        assert!(window.park(soon()));
        window.resume();
    }
    assert!(window.park(soon()));
    drop(window);
}
