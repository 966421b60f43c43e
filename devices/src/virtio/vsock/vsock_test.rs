//! The socket device, with a kernel for tests.

use std::io;
use std::sync::Arc;

use super::{Vsock, VsockError, remedy};
use crate::virtio::testing::{Driver, eventually};
use crate::virtio::vhost::fake::Fake;
use crate::virtio::vhost::{Place, Queues};

/// Address 0x1234_5678, behind no unit; the kernel has whatever there is.
fn machine() -> (Driver, Arc<Fake>) {
    let memory = crate::virtio::testing::memory();
    let kernel = Fake::new(&memory);
    let place = Place::Direct(Arc::clone(&memory));
    let queues = Queues::new(Arc::clone(&kernel), place, 0..2).unwrap();
    let device = Vsock::new(queues, 0x1234_5678, u64::MAX);
    let port = crate::Dma::direct(Arc::clone(&memory));
    let driver = Driver::with_memory(Box::new(device), 0, memory, port);
    (driver, kernel)
}

#[test]
fn the_device_is_a_socket_device_with_its_address() {
    let (driver, _) = machine();
    // 0x1040 and virtio device 19.
    assert_eq!([driver.config_byte(2), driver.config_byte(3)], [0x53, 0x10]);
    assert_eq!(
        driver.read::<8>(0x200),
        [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]
    );
    // SEQPACKET is all that it has of its own.
    assert_eq!(driver.offered() & 0xff_ffff, 2);
}

#[test]
fn the_kernel_serves_both_directions_and_nobody_the_events() {
    let (driver, kernel) = machine();
    let rings = driver.start(2, 3);
    eventually("the kernel has started", || kernel.running());
    // SEQPACKET and VERSION_1.
    assert_eq!(kernel.state.lock().unwrap().features, 0x1_0000_0002);
    // A chain that leads nowhere: nobody looks at it.
    rings[2].add(&driver, &[(0xffff_0000_0000, 8, true)]);
    driver.kick(&rings[2]);
    for index in [0, 1] {
        rings[index].add(&driver, &[(0x8_0000, 64, index == 0)]);
        eventually("a used buffer", || {
            kernel.turn(index, 0x11);
            rings[index].try_used(&driver).is_some()
        });
        let vector = u32::from(rings[index].index) + 1;
        eventually("an interrupt", || driver.interrupts(vector) == 1);
    }
    assert_eq!(rings[2].try_used(&driver), None);
    assert_eq!(driver.interrupts(3), 0);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_driver_that_leaves_the_events_out_is_served_and_one_without_a_direction_is_not() {
    let (driver, kernel) = machine();
    driver.start(0, 2);
    eventually("the kernel has started", || kernel.running());
    driver.start(0, 1);
    driver.expect_needs_reset();
    assert!(!kernel.running());
    driver.start(0, 3);
    eventually("the kernel has started", || kernel.running());
    driver.set_status(0);
    eventually("reset completes", || driver.status() == 0);
    assert!(!kernel.running());
}

#[test]
fn an_address_that_is_refused_is_named_with_the_remedy() {
    let error = |code| VsockError::Address {
        cid: 7,
        remedy: remedy(&io::Error::from_raw_os_error(code)),
        error: io::Error::from_raw_os_error(code),
    };
    let used = error(libc::EADDRINUSE).to_string();
    assert!(used.starts_with("cid 7 cannot be the guest's: "), "{used}");
    assert!(
        used.ends_with("another guest has it; choose another"),
        "{used}"
    );
    let reserved = error(libc::EINVAL).to_string();
    assert!(reserved.ends_with("from 3 to 4294967294"), "{reserved}");
}
