//! A balloon that goes on in another device.

use crate::virtio::balloon::balloon_test::{Bench, STATS, balloon, bench};
use crate::virtio::testing::{A_WHILE, eventually};

/// The guest of `bench`, with another device.
fn moved(mut bench: Bench) -> Bench {
    let twin = balloon(&bench.host);
    let control = twin.control();
    bench.driver.move_to(Box::new(twin));
    Bench { control, ..bench }
}

#[test]
fn it_keeps_its_size_and_goes_on_with_the_pages_that_come_next() {
    let bench = bench();
    let rings = bench.start(STATS);
    bench.control.set_target(0x80_0000);
    eventually("told", || bench.driver.interrupts(0) == 1);
    bench.driver.write(0x204, &0x700_u32.to_le_bytes());
    let before = bench.control.figures().unwrap();
    let bench = moved(bench);
    let after = bench.control.figures().unwrap();
    assert_eq!(after, before);
    assert_eq!(bench.driver.interrupts(0), 0, "nothing new is told");
    rings[0].add(&bench.driver, &[(0x10_0000, 4, false)]);
    bench.driver.kick(&rings[0]);
    rings[0].used(&bench.driver);
    assert_eq!(bench.host.given.lock().len(), 1);
}

#[test]
fn a_target_that_came_while_it_stood_still_is_told_after_that() {
    let bench = bench();
    bench.start(0);
    bench.driver.park();
    bench.control.set_target(0x80_0000);
    let bench = moved(bench);
    eventually("told", || bench.driver.interrupts(0) == 1);
}

#[test]
fn a_buffer_of_statistics_that_the_device_has_kept_is_returned_by_the_other_one() {
    let bench = bench();
    let rings = bench.start(STATS);
    bench.give_statistics(&rings[2], 0x1000);
    // The device takes it.
    std::thread::sleep(A_WHILE);
    let bench = moved(bench);
    assert_eq!(bench.statistics(&rings[2], 0x3000), [("free", 0x3000)]);
    // Twice at rest: what is taken again is kept again.
    let bench = moved(moved(bench));
    assert_eq!(bench.statistics(&rings[2], 0x4000), [("free", 0x4000)]);
}

#[test]
fn statistics_from_before_are_older_than_can_be_told() {
    let bench = bench();
    let rings = bench.start(STATS);
    bench.give_statistics(&rings[2], 0x1000);
    // The device takes it.
    std::thread::sleep(A_WHILE);
    let bench = moved(bench);
    let asked = bench.control.statistics(std::time::Duration::ZERO);
    assert_eq!(asked, None);
    rings[2].used(&bench.driver);
    assert_eq!(bench.control.statistics(A_WHILE), None);
}

#[test]
fn the_state_of_another_kind_is_refused() {
    let bench = bench();
    bench.start(0);
    let section = bench.driver.saved();
    let rng = Box::new(crate::virtio::rng::Rng::new());
    assert!(bench.driver.restored(rng, &section).is_err());
    let twin = Box::new(balloon(&bench.host));
    assert!(bench.driver.restored(twin, &section).is_ok());
}
