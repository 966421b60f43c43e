//! A disk that is saved and restored.

use std::os::unix::fs::FileExt as _;

use pci::PciFunction as _;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use super::{Block, BlockOptions};
use crate::virtio::moving::Queue;
use crate::virtio::testing::{A_WHILE, Driver, PACKED, eventually};

const HEADER: u64 = 0x80000;
const DATA: u64 = 0x100000;
const SECTORS: u64 = 64;
/// VIRTIO_BLK_F_MQ.
const MQ: u64 = 1 << 12;

fn image(sectors: u64) -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(512 * sectors).unwrap();
    file
}

fn disk(file: &TempFile, queues: u16, synchronous: bool) -> Block {
    let mut block = Block::open(&BlockOptions {
        path: file.as_path().to_owned(),
        readonly: false,
        serial: None,
        queues,
    })
    .unwrap();
    block.synchronous = synchronous;
    block
}

/// Another device on the same file.
fn again(disk: &Block) -> Box<Block> {
    Box::new(disk.part(0))
}

/// Makes request `number` available: `kind` (0 reads, 1 writes) of one sector, to be filled with
/// `byte`.
fn offer(driver: &Driver, queue: &Queue, number: u64, (kind, sector): (u32, u64), byte: u8) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    let (at, data) = (HEADER + 0x20 * number, DATA + 512 * number);
    let put = |at, bytes: &[u8]| driver.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    put(at, &header);
    put(at + 0x10, &[0xee]);
    put(data, &[byte; 512]);
    queue.add(
        driver,
        &[
            (at, 16, false),
            (data, 512, kind == 0),
            (at + 0x10, 1, true),
        ],
    );
}

fn status(driver: &Driver, number: u64) -> u8 {
    let at = GuestAddress(HEADER + 0x20 * number + 0x10);
    driver.memory.read_obj(at).unwrap()
}

#[test]
fn requests_are_carried_out_once_wherever_the_disk_is() {
    for (features, synchronous) in [(0, false), (0, true), (PACKED, false), (PACKED, true)] {
        let file = image(SECTORS);
        let disk = disk(&file, 1, synchronous);
        let mut driver = Driver::new(again(&disk));
        let queue = driver.start_queues(features, 1).remove(0);
        for round in 0..30_u8 {
            for number in 0..4 {
                let sector = (u64::from(round) + number) % SECTORS;
                offer(&driver, &queue, number, (1, sector), round + 1);
            }
            queue.kick(&driver);
            // They have ended, or have not begun.
            driver.move_to(again(&disk));
            for _ in 0..4 {
                assert_eq!(queue.used(&driver), 1);
            }
            assert_eq!([0, 1, 2, 3].map(|number| status(&driver, number)), [0; 4]);
            assert_eq!(queue.try_used(&driver), None);
            for number in 0..4 {
                let mut sector = [0; 512];
                let at = 512 * ((u64::from(round) + number) % SECTORS);
                file.as_file().read_exact_at(&mut sector, at).unwrap();
                assert_eq!(sector, [round + 1; 512]);
            }
            offer(&driver, &queue, 0, (0, round.into()), 0);
            queue.kick(&driver);
            assert_eq!(queue.used(&driver), 513);
        }
    }
}

#[test]
fn each_queue_of_several_goes_on() {
    let file = image(SECTORS);
    let disk = disk(&file, 4, false);
    let mut driver = Driver::new(again(&disk));
    let queues = driver.start_queues(MQ, 3);
    for round in 0..20_u8 {
        for (number, queue) in (0..).zip(&queues) {
            offer(&driver, queue, number, (1, number), round);
            queue.kick(&driver);
        }
        driver.move_to(again(&disk));
        for queue in &queues {
            assert_eq!(queue.used(&driver), 1);
        }
    }
}

#[test]
fn a_disk_of_another_size_or_with_other_queues_is_refused() {
    let (file, other) = (image(SECTORS), image(SECTORS + 1));
    let driver = Driver::new(again(&disk(&file, 2, false)));
    driver.start_queues(MQ, 2);
    let section = driver.saved();
    let refusal = |device: &Block| {
        let refused = driver.restored(again(device), &section);
        refused.map(|_| ()).expect_err("another one").to_string()
    };
    let text = "its size is 64 sectors in the saved machine and 65 sectors here";
    assert_eq!(refusal(&disk(&other, 2, false)), text);
    let other = image(SECTORS);
    let text = refusal(&disk(&other, 1, false));
    assert!(text.starts_with("its configuration is "), "{text}");
}

#[test]
fn a_read_that_waits_keeps_a_disk_from_being_saved() {
    let pipe = TempFile::new().unwrap();
    let disk = Block::of_a_pipe(&pipe);
    let driver = Driver::new(again(&disk));
    let queue = driver.start_queues(0, 1).remove(0);
    offer(&driver, &queue, 0, (0, 0), 0);
    queue.kick(&driver);
    eventually("it reads", || {
        driver.function.park();
        std::thread::sleep(A_WHILE / 4);
        let saved = driver.function.save();
        let reads =
            saved.is_err_and(|error| error.to_string() == "it is at work; pause the guest before");
        if !reads {
            driver.function.resume();
        }
        reads
    });
    std::fs::write(pipe.as_path(), [9; 512]).unwrap();
    eventually("it parks", || driver.function.parked().is_ok());
    driver.function.save().expect("it is over");
}
