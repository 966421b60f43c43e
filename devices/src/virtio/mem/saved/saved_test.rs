//! A memory device that goes on in another one.

use std::sync::Arc;

use state::Section;

use crate::virtio::mem::mem_test::{BLOCK, Bench, Host, bench, device};
use crate::virtio::testing::eventually;

/// The guest of `bench`, with another device.
fn moved(mut bench: Bench) -> Bench {
    let host = Arc::<Host>::default();
    let twin = device(&host);
    let control = twin.control();
    let held = bench.host.held.lock().clone();
    bench.driver.move_to(Box::new(twin));
    assert_eq!(*host.held.lock(), held, "devices reach what they did");
    Bench {
        control,
        host,
        ..bench
    }
}

#[test]
fn it_keeps_its_blocks_and_the_size_that_is_asked_for() {
    let bench = bench();
    let ring = bench.start();
    bench.control.request(60 * BLOCK);
    eventually("told", || bench.driver.interrupts(0) == 1);
    for (first, count) in [(0, 1), (3, 40), (63, 3), (99, 1)] {
        assert_eq!(bench.plug(&ring, first, count), 0);
    }
    let before = bench.control.figures();
    let bench = moved(bench);
    assert_eq!(bench.control.figures(), before);
    assert_eq!(bench.state(&ring, 0, 1), 0);
    assert_eq!(bench.state(&ring, 1, 2), 1);
    assert_eq!(bench.state(&ring, 3, 40), 0);
    assert_eq!(bench.state(&ring, 62, 2), 2);
    assert_eq!(bench.state(&ring, 66, 33), 1);
    assert_eq!(bench.driver.interrupts(0), 0, "nothing new is told");
    assert_eq!(bench.plug(&ring, 50, 10), 0);
    assert_eq!(bench.plug(&ring, 80, 6), 1, "there are 55 of 60");
}

#[test]
fn a_size_that_was_asked_for_while_it_stood_still_is_told_after_that() {
    let bench = bench();
    bench.start();
    bench.driver.park();
    bench.control.request(0);
    let bench = moved(bench);
    eventually("told", || bench.driver.interrupts(0) == 1);
}

#[test]
fn blocks_that_cannot_be_are_refused() {
    let host = bench().host;
    for plugged in [
        "[[0,0]]",
        "[[2,1]]",
        "[[0,101]]",
        "[[100,101]]",
        "[[4,6],[5,7]]",
        "[[4,6],[0,1]]",
        "[[0,18446744073709551615]]",
    ] {
        let text = format!("{{\"requested\":0,\"told\":true,\"plugged\":{plugged}}}");
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        let section = Section::new("mem", 1, &state).unwrap();
        let mut device = device(&host);
        assert!(device.restore_part(&section).is_err(), "{plugged}");
    }
    for requested in [BLOCK + 1, 101 * BLOCK] {
        let text = format!("{{\"requested\":{requested},\"told\":true,\"plugged\":[]}}");
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        let section = Section::new("mem", 1, &state).unwrap();
        assert!(device(&host).restore_part(&section).is_err(), "{requested}");
    }
}
