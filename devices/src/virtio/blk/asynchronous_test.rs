//! What only io_uring can do: requests that wait hold up no others. The disk is a pipe, where a read
//! waits until something is written.

use std::io::Write as _;
use std::thread::sleep;

use pci::PciFunction as _;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use super::Block;
use crate::virtio::testing::{A_WHILE, BASE_FEATURES, Driver, Ring, eventually};

/// FLUSH.
const FEATURES: u64 = 1 << 9;
/// Of each request: header, data at `+ 0x200`, status at `+ 0x100`.
const PLACE: u64 = 0x10_0000;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

struct Disk {
    driver: Driver,
    ring: Ring,
    file: TempFile,
}

/// With a queue of 256 entries.
fn disk() -> Disk {
    let file = TempFile::new().unwrap();
    let driver = Driver::new(Box::new(Block::of_a_pipe(&file)));
    let ring = started(&driver);
    Disk { driver, ring, file }
}

fn started(driver: &Driver) -> Ring {
    assert!(driver.negotiate(BASE_FEATURES | FEATURES));
    let ring = driver.queue(0, 256);
    driver.set_status(15);
    ring
}

fn place(number: u64) -> u64 {
    PLACE + 0x1000 * number
}

impl Disk {
    /// Offers a request with 512 bytes of data, filled with `byte`; its head.
    fn offer(&self, number: u64, kind: u32, byte: u8) -> u32 {
        let memory = &self.driver.memory;
        let at = place(number);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 12]);
        memory.write_slice(&header, GuestAddress(at)).unwrap();
        memory
            .write_slice(&[0xee], GuestAddress(at + 0x100))
            .unwrap();
        memory
            .write_slice(&[byte; 512], GuestAddress(at + 0x200))
            .unwrap();
        let mut buffers = vec![(at, 16, false)];
        match kind {
            FLUSH => {}
            GET_ID => buffers.push((at + 0x200, 20, true)),
            _ => buffers.push((at + 0x200, 512, kind == READ)),
        }
        buffers.push((at + 0x100, 1, true));
        u32::from(self.ring.add(&self.driver, &buffers))
    }

    fn status(&self, number: u64) -> u8 {
        let at = GuestAddress(place(number) + 0x100);
        self.driver.memory.read_obj(at).unwrap()
    }

    fn data(&self, number: u64) -> Vec<u8> {
        let mut data = vec![0; 512];
        let at = GuestAddress(place(number) + 0x200);
        self.driver.memory.read_slice(&mut data, at).unwrap();
        data
    }

    fn kick(&self) {
        self.driver.kick(&self.ring);
    }

    fn used(&self) -> u32 {
        self.ring.used(&self.driver).0
    }

    /// Writes to the pipe.
    fn feed(&self, bytes: &[u8]) {
        let pipe = std::fs::OpenOptions::new()
            .write(true)
            .open(self.file.as_path());
        pipe.unwrap().write_all(bytes).unwrap();
    }
}

#[test]
fn a_read_that_waits_holds_up_no_write_and_ends_after_it() {
    let disk = disk();
    let read = disk.offer(0, READ, 0);
    let write = disk.offer(1, WRITE, 0x77);
    disk.kick();
    let mut used = [disk.used(), disk.used()];
    // Only what is written can be read, but who is told first is open.
    used.sort_unstable();
    assert_eq!(used, [read, write]);
    assert_eq!((disk.status(0), disk.status(1)), (0, 0));
    assert_eq!(disk.data(0), [0x77; 512]);
}

#[test]
fn requests_sent_later_are_served_while_one_waits() {
    let disk = disk();
    let read = disk.offer(0, READ, 0);
    disk.kick();
    for number in 1..20 {
        let id = disk.offer(number, GET_ID, 0);
        // A pipe cannot be made stable, so it fails.
        let flush = disk.offer(number + 20, FLUSH, 0);
        disk.kick();
        let mut used = [disk.used(), disk.used()];
        used.sort_unstable();
        assert_eq!(used, [id, flush]);
        assert_eq!((disk.status(number), disk.status(number + 20)), (0, 1));
    }
    disk.feed(&[5; 512]);
    assert_eq!(disk.used(), read);
    assert_eq!(disk.data(0), [5; 512]);
}

#[test]
fn a_read_goes_on_when_it_has_got_a_part() {
    let disk = disk();
    let read = disk.offer(0, READ, 0);
    disk.kick();
    for (length, byte) in [(100, 1), (1, 2), (411, 3)] {
        assert_eq!(disk.ring.try_used(&disk.driver), None);
        disk.feed(&vec![byte; length]);
        sleep(A_WHILE / 10);
    }
    assert_eq!(disk.ring.used(&disk.driver), (read, 513));
    assert_eq!(
        disk.data(0),
        [vec![1; 100], vec![2; 1], vec![3; 411]].concat()
    );
}

#[test]
fn there_are_32_under_way_and_the_others_follow() {
    let disk = disk();
    for number in 0..60 {
        disk.offer(number, READ, 0);
    }
    let id = disk.offer(60, GET_ID, 0);
    disk.kick();
    sleep(A_WHILE);
    assert_eq!(disk.ring.try_used(&disk.driver), None);
    let mut heads = Vec::new();
    for _ in 0..28 {
        disk.feed(&[9; 512]);
        heads.push(disk.used());
    }
    assert!(!heads.contains(&id));
    // The 29th that ends makes room for it.
    disk.feed(&[9; 512]);
    heads.extend([disk.used(), disk.used()]);
    assert!(heads.contains(&id));
    for _ in 29..60 {
        disk.feed(&[9; 512]);
        heads.push(disk.used());
    }
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), 61);
    for number in 0..60 {
        assert_eq!(disk.data(number), [9; 512]);
    }
}

#[test]
fn a_flood_of_requests_that_need_no_call_is_served_to_its_end_while_one_waits() {
    let disk = disk();
    let read = disk.offer(0, READ, 0);
    disk.kick();
    for round in 0..300 {
        for number in 1..80 {
            disk.offer(number, GET_ID, 0);
        }
        disk.kick();
        for number in 1..80 {
            disk.used();
            assert_eq!(disk.status(number), 0, "round {round}");
        }
    }
    disk.feed(&[5; 512]);
    assert_eq!(disk.used(), read);
}

#[test]
fn a_reset_ends_what_is_under_way_and_nothing_reaches_the_guest_afterwards() {
    let mut disk = disk();
    for round in 0..3 {
        for number in 0..40 {
            disk.offer(number, READ, 0x33);
        }
        disk.kick();
        if round == 0 {
            sleep(A_WHILE);
        }
        // Waits until it is complete.
        disk.ring = started(&disk.driver);
        disk.feed(&[9; 512]);
        sleep(A_WHILE);
        assert_eq!(disk.ring.try_used(&disk.driver), None);
        for number in 0..40 {
            assert_eq!(disk.status(number), 0xee);
            assert_eq!(disk.data(number), [0x33; 512]);
        }
        disk.offer(0, READ, 0);
        disk.kick();
        disk.used();
        assert_eq!(disk.data(0), [9; 512]);
    }
}

#[test]
fn a_disk_that_is_taken_away_gives_up_what_is_under_way() {
    let disk = disk();
    disk.offer(0, READ, 0x33);
    disk.kick();
    sleep(A_WHILE);
    let Disk { driver, file, .. } = disk;
    let memory = driver.memory.clone();
    drop(driver);
    let pipe = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file.as_path());
    pipe.unwrap().write_all(&[9; 512]).unwrap();
    sleep(A_WHILE);
    let mut data = [0; 512];
    memory
        .read_slice(&mut data, GuestAddress(place(0) + 0x200))
        .unwrap();
    assert_eq!(data, [0x33; 512]);
}

#[test]
fn what_came_before_a_broken_chain_is_served_and_then_a_reset_is_needed() {
    let disk = disk();
    let read = disk.offer(0, READ, 0);
    disk.ring.offer(&disk.driver, 256);
    disk.kick();
    sleep(A_WHILE);
    assert_eq!(disk.driver.status() & 64, 0);
    disk.feed(&[5; 512]);
    assert_eq!(disk.used(), read);
    disk.driver.expect_needs_reset();
}

#[test]
fn a_disk_parks_when_what_it_has_taken_has_ended_and_takes_the_rest_afterwards() {
    let disk = disk();
    for number in 0..60 {
        disk.offer(number, READ, 0);
    }
    disk.kick();
    sleep(A_WHILE);
    let function = &disk.driver.function;
    function.park();
    sleep(A_WHILE);
    assert!(function.parked().is_err(), "32 are under way");
    disk.feed(&[9; 32 * 512]);
    for _ in 0..32 {
        disk.used();
    }
    eventually("it parks", || function.parked().is_ok());
    disk.feed(&[9; 28 * 512]);
    sleep(A_WHILE);
    assert_eq!(disk.ring.try_used(&disk.driver), None);
    function.resume();
    for _ in 32..60 {
        disk.used();
    }
}

#[test]
fn a_pause_that_is_given_up_leaves_no_request_behind_while_one_waits() {
    let disk = disk();
    let read = disk.offer(0, READ, 0);
    disk.kick();
    sleep(A_WHILE);
    let function = &disk.driver.function;
    for number in 1..20 {
        function.park();
        // Sent before vCPUs stopped, and noticed after that.
        let id = disk.offer(number, GET_ID, 0);
        disk.kick();
        assert!(function.parked().is_err());
        function.resume();
        assert_eq!(disk.used(), id);
    }
    disk.feed(&[5; 512]);
    assert_eq!(disk.used(), read);
}

#[test]
fn a_disk_that_is_reset_while_it_is_parked_serves_nothing_of_what_was_queued() {
    let disk = disk();
    let function = &disk.driver.function;
    function.park();
    eventually("it parks", || function.parked().is_ok());
    disk.offer(0, READ, 0x33);
    disk.kick();
    disk.feed(&[9; 512]);
    function.reset();
    assert!(function.is_quiet());
    sleep(A_WHILE);
    assert_eq!(disk.ring.try_used(&disk.driver), None);
    assert_eq!((disk.status(0), disk.data(0)), (0xee, vec![0x33; 512]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// Whatever ends when: each request is returned once, and what is written is what is read.
    #[test]
    fn reads_get_what_writes_put_in_any_order(kinds in prop::collection::vec(any::<bool>(), 1..40)) {
        let disk = disk();
        let reads = kinds.iter().filter(|is_read| **is_read).count();
        // A read waits all the time, or else a write would be alone, and made at once: not to a pipe.
        let waiting = kinds.len() - reads + 1;
        let kinds = std::iter::repeat_n(true, waiting).chain(kinds);
        let mut count = 0;
        for is_read in kinds {
            disk.offer(count, if is_read { READ } else { WRITE }, 0x55);
            disk.kick();
            count += 1;
        }
        disk.feed(&vec![0x55; 512 * (reads + 1)]);
        let mut heads: Vec<_> = (0..count).map(|_| disk.used()).collect();
        heads.sort_unstable();
        heads.dedup();
        prop_assert_eq!(heads.len() as u64, count);
        for number in 0..count {
            prop_assert_eq!(disk.status(number), 0);
            prop_assert_eq!(disk.data(number), [0x55; 512]);
        }
    }
}
