//! A disk with several queues.

use std::fs;
use std::thread;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use super::{Block, BlockOptions};
use crate::virtio::testing::{Driver, Ring};

/// FLUSH, MQ.
const FEATURES: u64 = 1 << 9 | 1 << 12;
/// Header, status and data of a queue.
const PLACE: u64 = 0x10_0000;

fn disk(queues: u16) -> (Driver, TempFile) {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = BlockOptions {
        path: file.as_path().to_owned(),
        readonly: false,
        serial: None,
        queues,
    };
    (Driver::new(Box::new(Block::open(&options).unwrap())), file)
}

/// One request of a queue; its status.
fn request(driver: &Driver, ring: &Ring, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u8 {
    let place = PLACE * (u64::from(ring.index) + 1);
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    driver
        .memory
        .write_slice(&header, GuestAddress(place))
        .unwrap();
    let status = place + 0x100;
    driver
        .memory
        .write_obj(0xee_u8, GuestAddress(status))
        .unwrap();
    let mut buffers = vec![(place, 16, false)];
    buffers.extend(data);
    buffers.push((status, 1, true));
    ring.add(driver, &buffers);
    driver.kick(ring);
    ring.used(driver);
    driver.memory.read_obj(GuestAddress(status)).unwrap()
}

#[test]
fn the_queues_are_offered_and_one_alone_is_not() {
    for (queues, offered) in [(1, 0), (4, 1 << 12), (16, 1 << 12)] {
        let (driver, _file) = disk(queues);
        assert_eq!(driver.offered() & 1 << 12, offered);
        assert_eq!(driver.read::<2>(18), queues.to_le_bytes());
        let shown = if queues == 1 { 0 } else { queues };
        assert_eq!(driver.read::<2>(0x200 + 34), shown.to_le_bytes());
    }
}

#[test]
fn a_driver_that_knows_of_one_queue_only_is_served() {
    let (driver, _file) = disk(4);
    let ring = driver.start(0, 1).remove(0);
    let data = [(PLACE + 0x1000, 512, true)];
    assert_eq!(request(&driver, &ring, 0, 0, &data), 0);
}

#[test]
fn what_queues_write_at_the_same_time_arrives_and_each_sees_what_others_have_flushed() {
    let (driver, file) = disk(4);
    let rings = driver.start(FEATURES, 4);
    // Of each block of four sectors, queue n writes the nth, with its number and the block's.
    let byte = |queue: u64, block: u64| u8::try_from(queue * 50 + block % 50 + 1).unwrap();
    thread::scope(|scope| {
        for ring in &rings {
            let driver = &driver;
            scope.spawn(move || {
                let queue = u64::from(ring.index);
                let data = PLACE * (queue + 1) + 0x1000;
                for block in 0..200 {
                    let bytes = [byte(queue, block); 512];
                    driver
                        .memory
                        .write_slice(&bytes, GuestAddress(data))
                        .unwrap();
                    let sector = block * 4 + queue;
                    let status = request(driver, ring, 1, sector, &[(data, 512, false)]);
                    assert_eq!(status, 0);
                    if block % 16 == 0 {
                        assert_eq!(request(driver, ring, 4, 0, &[]), 0);
                    }
                    let back = request(driver, ring, 0, sector, &[(data, 512, true)]);
                    assert_eq!(back, 0);
                    let mut found = [0; 512];
                    driver
                        .memory
                        .read_slice(&mut found, GuestAddress(data))
                        .unwrap();
                    assert_eq!(found, bytes);
                }
            });
        }
    });
    let stored = fs::read(file.as_path()).unwrap();
    for (sector, bytes) in (0..800).zip(stored.chunks(512)) {
        assert_eq!(bytes, [byte(sector % 4, sector / 4); 512], "{sector}");
    }
}
