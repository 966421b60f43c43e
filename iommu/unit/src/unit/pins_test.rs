//! Pages that a device has pinned: what of the unit waits for them, and what does not.

use std::sync::Arc;

use vm_memory::{GuestAddress, Permissions};

use super::testing::{Background, Bench, Memory, STATUS, eventually, full};
use super::{InlineBudget, StateError, Unit};
use crate::dma::{DmaPin, DmaPort, Pinned};
use crate::spec::ids::SourceId;

const SOURCE: SourceId = SourceId(0x0018);
/// The leaf of [`Bench::map_legacy`].
const LEAF: u64 = 0x5000;
/// The page of address 0, domain 1; domain 1; everything.
const OWN: [[u64; 4]; 3] = [
    [0x0001_0032, 0, 0, 0],
    [0x0001_0022, 0, 0, 0],
    [0x12, 0, 0, 0],
];

/// Wait with a fence that writes `token` to the `place`th dword from [`STATUS`] on.
fn fenced(token: u64, place: u64) -> [u64; 4] {
    [token << 32 | 0x65, STATUS + 4 * place, 0, 0]
}

/// A unit with a queue, behind which address 0 is 0x60_0000.
fn mapped() -> Bench {
    let bench = Bench::new(&full());
    bench.map_legacy(0x60_0000);
    bench.enable_wide_queue();
    bench
}

/// Takes the page of address 0 away, and waits with token 1.
fn unmap(bench: &Bench) {
    bench.poke(LEAF, &[0]);
    bench.submit_wide(&[OWN[1], fenced(1, 0)]);
}

fn pin_page<'p>(bench: &Bench, pin: &'p mut DmaPin<Memory>) -> Pinned<'p, Memory> {
    let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
    let range = [(GuestAddress(0x10), 0x100)];
    view.begin().pin(pin, range, Permissions::Write).unwrap()
}

fn run(unit: &Unit<Memory>) {
    unit.run_backlog(&Arc::default());
}

#[test]
fn a_register_write_returns_while_a_page_is_pinned_and_no_status_is_written() {
    for own in OWN {
        let bench = mapped();
        bench
            .unit
            .run_in_background(InlineBudget::default(), Arc::new(|| {}));
        let mut pin = DmaPin::new();
        let pinned = pin_page(&bench, &mut pin);
        // Domain 2 is a stranger.
        bench.submit_wide(&[[0x0002_0022, 0, 0, 0], fenced(1, 0)]);
        assert_eq!(bench.peek32(STATUS), 1);
        // The page is still there.
        bench.submit_wide(&[own, fenced(2, 0)]);
        assert_eq!(bench.peek32(STATUS), 2);
        bench.poke(LEAF, &[0]);
        bench.submit_wide(&[own, fenced(3, 0)]);
        assert_eq!(bench.peek32(STATUS), 2, "{own:x?}");
        assert_eq!(bench.unit.stats().left_to_background, 1);
        drop(pinned);
        run(&bench.unit);
        assert_eq!(bench.peek32(STATUS), 3);
    }
}

#[test]
fn a_background_that_waits_for_a_pin_lets_a_reset_in() {
    let bench = mapped();
    let _background = Background::start(&bench.unit, InlineBudget::NOTHING);
    let mut pin = DmaPin::new();
    let _pinned = pin_page(&bench, &mut pin);
    unmap(&bench);
    // The background has read the queue, and waits.
    assert!(eventually(|| bench.read32(0x80) == bench.read32(0x88)));
    bench.unit.reset();
    assert_eq!(bench.read32(0x1C), 0);
    assert_eq!(bench.peek32(STATUS), 0, "what was queued is dropped");
}

#[test]
fn a_background_that_waits_for_a_pin_ends_when_it_is_told_to() {
    let bench = mapped();
    let background = Background::start(&bench.unit, InlineBudget::NOTHING);
    let mut pin = DmaPin::new();
    let pinned = pin_page(&bench, &mut pin);
    unmap(&bench);
    assert!(eventually(|| bench.read32(0x80) == bench.read32(0x88)));
    drop(background);
    assert_eq!(bench.peek32(STATUS), 0);
    drop(pinned);
    run(&bench.unit);
    assert_eq!(bench.peek32(STATUS), 1);
}

#[test]
fn a_snapshot_completes_no_wait_for_a_page_that_a_disk_that_hangs_still_uses() {
    let bench = mapped();
    bench
        .unit
        .run_in_background(InlineBudget::default(), Arc::new(|| {}));
    let mut pin = DmaPin::new();
    let pinned = pin_page(&bench, &mut pin);
    unmap(&bench);
    assert_eq!(bench.unit.save(), Err(StateError::Pinned));
    assert_eq!(bench.peek32(STATUS), 0);
    // It goes on, and so does who wants the state.
    drop(pinned);
    let state = bench.unit.save().unwrap();
    run(&bench.unit);
    assert_eq!(bench.peek32(STATUS), 1);
    let other = Bench::new(&full());
    other.unit.restore(&state).unwrap();
    assert_eq!(other.read32(0x80), bench.read32(0x80));
}

#[test]
fn a_restore_that_is_refused_completes_nothing() {
    let bench = mapped();
    bench
        .unit
        .run_in_background(InlineBudget::default(), Arc::new(|| {}));
    let state = bench.unit.save().unwrap();
    let mut pin = DmaPin::new();
    let _pinned = pin_page(&bench, &mut pin);
    unmap(&bench);
    let mut damaged = state;
    damaged.registers.pop();
    assert!(bench.unit.restore(&damaged).is_err());
    assert_eq!(bench.peek32(STATUS), 0);
}
