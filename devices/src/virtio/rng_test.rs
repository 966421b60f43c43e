//! The entropy device.

use vm_memory::{Bytes, GuestAddress};

use super::rng::Rng;
use super::testing::{Driver, eventually};

#[test]
fn a_buffer_is_filled_up_to_the_bound() {
    let driver = Driver::new(Box::new(Rng::new()));
    let ring = driver.start(0, 1).remove(0);
    let head = ring.add(&driver, &[(0x40000, 64, true), (0x50000, 0x8000, true)]);
    driver.kick(&ring);
    assert_eq!(ring.used(&driver), (u32::from(head), 4096));
    eventually("interrupt", || driver.interrupts(1) == 1);
    let mut data = [0; 4096];
    driver
        .memory
        .read_slice(&mut data[..64], GuestAddress(0x40000))
        .unwrap();
    driver
        .memory
        .read_slice(&mut data[64..], GuestAddress(0x50000))
        .unwrap();
    assert!(
        data.chunks(64)
            .all(|part| part.iter().any(|byte| *byte != 0)),
        "random bytes"
    );
    let beyond: u64 = driver
        .memory
        .read_obj(GuestAddress(0x50000 + 4096 - 64))
        .unwrap();
    assert_eq!(beyond, 0, "nothing beyond the used length");
}

#[test]
fn more_buffers_than_one_turn_handles_are_all_filled() {
    let driver = Driver::new(Box::new(Rng::new()));
    let ring = driver.start(0, 1).remove(0);
    for _ in 0..20 {
        for _ in 0..16 {
            ring.add(&driver, &[(0x40000, 8, true)]);
        }
        driver.kick(&ring);
        for _ in 0..16 {
            assert_eq!(ring.used(&driver).1, 8);
        }
    }
}

#[test]
fn a_buffer_that_cannot_be_written_needs_a_reset() {
    let driver = Driver::new(Box::new(Rng::new()));
    let ring = driver.start(0, 1).remove(0);
    ring.add(&driver, &[(0xffff_ffff_0000, 64, true)]);
    driver.kick(&ring);
    driver.expect_needs_reset();
}
