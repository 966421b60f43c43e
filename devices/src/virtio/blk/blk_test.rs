//! The block device, driven as a guest does, whoever makes its system calls.

use std::fs;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use super::{Block, BlockError, BlockOptions};
use crate::virtio::testing::{A_WHILE, Driver, EVENT_IDX, INDIRECT, MEMORY_SIZE, Ring, eventually};

const HEADER: u64 = 0x40000;
const STATUS: u64 = 0x41000;
const DATA: u64 = 0x100000;

/// FLUSH, DISCARD, WRITE_ZEROES.
const ALL: u64 = 1 << 9 | 1 << 13 | 1 << 14;

/// 4 MiB: sector n is filled with the low byte of n, plus one.
fn image() -> TempFile {
    let file = TempFile::new().unwrap();
    for sector in 0..8192_u64 {
        let byte = (sector % 255) as u8 + 1;
        file.as_file()
            .write_all_at(&[byte; 512], sector * 512)
            .unwrap();
    }
    file
}

fn options(file: &TempFile) -> BlockOptions {
    BlockOptions {
        path: file.as_path().to_owned(),
        readonly: false,
        serial: Some("disk-1".to_owned()),
        queues: 1,
    }
}

struct Disk {
    driver: Driver,
    ring: Ring,
    file: TempFile,
}

fn disk_with(features: u64, change: impl FnOnce(&mut BlockOptions)) -> Disk {
    let file = image();
    let mut options = options(&file);
    change(&mut options);
    let mut block = Block::open(&options).unwrap();
    block.synchronous = module_path!().ends_with("synchronous_test");
    let driver = Driver::new(Box::new(block));
    let ring = driver.start(features, 1).remove(0);
    Disk { driver, ring, file }
}

fn disk(features: u64) -> Disk {
    disk_with(features, |_| {})
}

impl Disk {
    fn header(&self, kind: u32, sector: u64) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.driver
            .memory
            .write_slice(&bytes, GuestAddress(HEADER))
            .unwrap();
        self.driver
            .memory
            .write_obj(0xee_u8, GuestAddress(STATUS))
            .unwrap();
    }

    /// One request with `data` between header and status; its status byte and used length.
    fn request(&self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        self.header(kind, sector);
        let mut buffers = vec![(HEADER, 16, false)];
        buffers.extend(data);
        buffers.push((STATUS, 1, true));
        let head = self.ring.add(&self.driver, &buffers);
        self.driver.kick(&self.ring);
        let (used_head, length) = self.ring.used(&self.driver);
        assert_eq!(used_head, u32::from(head));
        (
            self.driver.memory.read_obj(GuestAddress(STATUS)).unwrap(),
            length,
        )
    }

    fn range_request(&self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.fill(DATA, &bytes);
        self.request(kind, 0, &[(DATA, 16, false)]).0
    }

    fn fill(&self, address: u64, data: &[u8]) {
        self.driver
            .memory
            .write_slice(data, GuestAddress(address))
            .unwrap();
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.driver
            .memory
            .read_slice(&mut data, GuestAddress(address))
            .unwrap();
        data
    }

    /// The device still works after a reset.
    fn recovers(mut self) {
        self.driver.expect_needs_reset();
        eventually("configuration interrupt", || self.driver.interrupts(0) == 1);
        self.ring = self.driver.start(ALL | INDIRECT, 1).remove(0);
        assert_eq!(self.request(0, 3, &[(DATA, 512, true)]), (0, 513));
        assert_eq!(self.bytes(DATA, 512), [4; 512]);
    }
}

#[test]
fn the_configuration_describes_the_image() {
    let disk = disk(ALL);
    let config = |at: u64| u32::from_le_bytes(disk.driver.read(0x200 + at));
    assert_eq!(u64::from_le_bytes(disk.driver.read(0x200)), 8192);
    assert_eq!(config(12), 254);
    assert_eq!(config(20), 512);
    assert_eq!((config(36), config(40)), (1 << 22, 1));
    assert_eq!((config(48), config(52)), (1 << 16, 1));
    assert_eq!(config(0x80), 0);
}

#[test]
fn sectors_are_read_into_several_segments() {
    let disk = disk(ALL);
    let data = [
        (DATA, 100, true),
        (DATA + 0x1000, 0, true),
        (DATA + 0x2000, 924, true),
    ];
    assert_eq!(disk.request(0, 7, &data), (0, 1025));
    assert_eq!(disk.bytes(DATA, 101), [vec![8; 100], vec![0]].concat());
    assert_eq!(
        disk.bytes(DATA + 0x2000, 925),
        [vec![8; 412], vec![9; 512], vec![0]].concat()
    );
    eventually("interrupt", || disk.driver.interrupts(1) == 1);
}

#[test]
fn a_large_write_arrives_whole() {
    let disk = disk(ALL);
    let pattern: Vec<u8> = (0..1_u32 << 20).map(|n| (n / 7 % 251) as u8).collect();
    disk.fill(DATA, &pattern);
    assert_eq!(disk.request(1, 16, &[(DATA, 1 << 20, false)]), (0, 1));
    assert_eq!(disk.request(4, 0, &[]), (0, 1));
    let stored = fs::read(disk.file.as_path()).unwrap();
    assert_eq!(stored[8192..8192 + (1 << 20)], pattern);
    assert_eq!(stored[8191], 16);
    assert_eq!(stored[8192 + (1 << 20)], ((16 + 2048) % 255) as u8 + 1);

    disk.fill(DATA, &vec![0; 1 << 20]);
    assert_eq!(
        disk.request(0, 16, &[(DATA, 1 << 20, true)]),
        (0, (1 << 20) + 1)
    );
    assert_eq!(disk.bytes(DATA, 1 << 20), pattern);
}

#[test]
fn discard_and_write_zeroes_leave_zeroes_and_nothing_else_changed() {
    let disk = disk(ALL);
    let mut expected = fs::read(disk.file.as_path()).unwrap();
    assert_eq!(disk.range_request(11, 8, 16, 0), 0);
    assert_eq!(disk.range_request(13, 100, 3, 0), 0);
    assert_eq!(disk.range_request(13, 200, 8, 1), 0);
    for (sector, count) in [(8, 16), (100, 3), (200, 8)] {
        expected[sector * 512..(sector + count) * 512].fill(0);
    }
    assert!(fs::read(disk.file.as_path()).unwrap() == expected);
}

#[test]
fn ranges_that_the_configuration_forbids_are_refused() {
    let disk = disk(ALL);
    let before = fs::read(disk.file.as_path()).unwrap();
    assert_eq!(disk.range_request(11, 8190, 3, 0), 1, "beyond the end");
    assert_eq!(
        disk.range_request(11, u64::MAX, 1, 0),
        1,
        "sector overflows"
    );
    assert_eq!(disk.range_request(11, 0, (1 << 22) + 1, 0), 1, "too many");
    assert_eq!(disk.range_request(11, 0, 0, 0), 1, "none");
    assert_eq!(disk.range_request(11, 0, 1, 1), 2, "unmap flag");
    assert_eq!(disk.range_request(13, 0, 1, 2), 2, "unknown flag");
    assert_eq!(disk.request(11, 0, &[(DATA, 32, false)]).0, 1, "two ranges");
    assert!(fs::read(disk.file.as_path()).unwrap() == before);
}

#[test]
fn the_serial_number_is_padded_and_cut_to_the_buffer() {
    let disk = disk(ALL);
    disk.fill(DATA, &[0xcc; 32]);
    assert_eq!(disk.request(8, 0, &[(DATA, 20, true)]), (0, 21));
    assert_eq!(
        disk.bytes(DATA, 21),
        *b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xcc"
    );
    assert_eq!(disk.request(8, 0, &[(DATA, 4, true)]), (0, 5));
    assert_eq!(disk.request(8, 0, &[(DATA, 32, true)]).0, 0);
}

#[test]
fn requests_beyond_the_end_and_of_odd_length_fail_with_ioerr() {
    let disk = disk(ALL);
    for (sector, length) in [
        (8192, 512),
        (8191, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 100),
    ] {
        assert_eq!(
            disk.request(0, sector, &[(DATA, length, true)]).0,
            1,
            "{sector} {length}"
        );
        assert_eq!(
            disk.request(1, sector, &[(DATA, length, false)]).0,
            1,
            "{sector} {length}"
        );
    }
    assert_eq!(disk.request(0, 8191, &[(DATA, 512, true)]), (0, 513));
}

#[test]
fn unknown_and_unnegotiated_requests_are_unsupported() {
    let disk = disk(0);
    for kind in [2, 3, 4, 9, 11, 13, 0xffff_ffff] {
        assert_eq!(disk.request(kind, 0, &[]).0, 2, "{kind}");
    }
    assert_eq!(
        disk.request(1, 0, &[(DATA, 512, false)]).0,
        0,
        "write-through"
    );
}

#[test]
fn a_readonly_disk_refuses_writes_and_offers_nothing_that_writes() {
    let disk = disk_with(1 << 5 | 1 << 9, |options| options.readonly = true);
    assert_eq!(disk.driver.offered() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    let before = fs::read(disk.file.as_path()).unwrap();
    assert_eq!(disk.request(1, 0, &[(DATA, 512, false)]).0, 1);
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]).0, 0);
    assert!(fs::read(disk.file.as_path()).unwrap() == before);
}

#[test]
fn a_data_buffer_outside_memory_fails_that_request_only() {
    let disk = disk(ALL);
    let nowhere = MEMORY_SIZE as u64 - 256;
    assert_eq!(disk.request(0, 0, &[(nowhere, 512, true)]).0, 1);
    assert_eq!(disk.request(1, 0, &[(0xffff_0000_0000, 512, false)]).0, 1);
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(disk.driver.status(), 15);
}

#[test]
fn an_indirect_table_carries_a_request() {
    let disk = disk(ALL | INDIRECT);
    disk.header(0, 5);
    let table = 0x50000;
    Ring::chain(
        &disk.driver,
        table,
        0,
        16,
        &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)],
    );
    Ring::descriptor(&disk.driver, disk.ring.descriptors, 9, (table, 48, 4, 0));
    disk.ring.offer(&disk.driver, 9);
    disk.driver.kick(&disk.ring);
    assert_eq!(disk.ring.used(&disk.driver), (9, 513));
    assert_eq!(disk.bytes(DATA, 512), [6; 512]);
}

/// A request of `segments` between header and status, in an indirect table.
fn indirect(disk: &Disk, kind: u32, sector: u64, segments: &[(u64, u32, bool)]) -> (u8, u32) {
    disk.header(kind, sector);
    let mut buffers = vec![(HEADER, 16, false)];
    buffers.extend(segments);
    buffers.push((STATUS, 1, true));
    let table = 0x50000;
    Ring::chain(&disk.driver, table, 0, 256, &buffers);
    let length = 16 * u32::try_from(buffers.len()).unwrap();
    Ring::descriptor(
        &disk.driver,
        disk.ring.descriptors,
        9,
        (table, length, 4, 0),
    );
    disk.ring.offer(&disk.driver, 9);
    disk.driver.kick(&disk.ring);
    let (head, used) = disk.ring.used(&disk.driver);
    assert_eq!(head, 9);
    (disk.bytes(STATUS, 1)[0], used)
}

#[test]
fn a_request_of_all_segments_that_a_chain_can_have_is_served_wherever_they_are() {
    let disk = disk(ALL | INDIRECT);
    // 254 segments of 127 to 129 bytes, 63 sectors and a half, and the rest in the last one.
    let mut segments = Vec::new();
    let mut expected = Vec::new();
    let stored = fs::read(disk.file.as_path()).unwrap();
    let (mut done, mut address) = (0, DATA);
    for number in 0..254_u32 {
        let length = match number {
            253 => 64 * 512 - done,
            _ => 127 + number % 3,
        };
        segments.push((address, length, true));
        let range = [done, done + length].map(|at| 100 * 512 + at as usize);
        expected.push((address, stored[range[0]..range[1]].to_vec()));
        done += length;
        address += 0x1001;
    }
    assert_eq!(indirect(&disk, 0, 100, &segments), (0, 64 * 512 + 1));
    for (address, bytes) in &expected {
        assert_eq!(disk.bytes(*address, bytes.len()), *bytes, "{address:#x}");
    }
    for segment in &mut segments {
        segment.2 = false;
    }
    assert_eq!(indirect(&disk, 1, 1000, &segments), (0, 1));
    let copy = fs::read(disk.file.as_path()).unwrap();
    assert!(copy[1000 * 512..1064 * 512] == stored[100 * 512..164 * 512]);
    assert!(copy[..1000 * 512] == stored[..1000 * 512]);
    assert!(copy[1064 * 512..] == stored[1064 * 512..]);
}

/// Offers reads of `sectors`, two each, all at once, and checks that each is served.
fn reads(disk: &Disk, sectors: &[u64]) {
    let place = |number: usize| 0x20_0000 + 0x1_0000 * number as u64;
    let mut heads = Vec::new();
    for (number, sector) in sectors.iter().enumerate() {
        disk.fill(place(number), &[0; 8]);
        disk.fill(place(number) + 8, &sector.to_le_bytes());
        disk.fill(place(number) + 0x2000, &[0xee]);
        let buffers = [
            (place(number), 16, false),
            (place(number) + 0x1000, 1024, true),
            (place(number) + 0x2000, 1, true),
        ];
        heads.push(u32::from(disk.ring.add(&disk.driver, &buffers)));
    }
    disk.driver.kick(&disk.ring);
    let mut served: Vec<u32> = sectors
        .iter()
        .map(|_| disk.ring.used(&disk.driver).0)
        .collect();
    for (number, sector) in sectors.iter().enumerate() {
        assert_eq!(disk.bytes(place(number) + 0x2000, 1), [0], "{sector}");
        let byte = |sector: u64| u8::try_from(sector % 255 + 1).unwrap();
        let expected = [[byte(*sector); 512], [byte(*sector + 1); 512]].concat();
        assert_eq!(
            disk.bytes(place(number) + 0x1000, 1024),
            expected,
            "{sector}"
        );
    }
    heads.sort_unstable();
    served.sort_unstable();
    assert_eq!(served, heads);
}

#[test]
fn reads_that_are_there_together_are_served_whether_the_host_has_them_in_memory_or_not() {
    let disk = disk(ALL);
    let file = disk.file.as_file();
    for sectors in [[0, 4000, 8190, 100, 7], [8000, 1, 2, 3, 4]] {
        file.sync_all().unwrap();
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // One that it has then.
        assert_eq!(
            disk.request(0, sectors[2], &[(DATA, 1024, true)]),
            (0, 1025)
        );
        reads(&disk, &sectors);
        reads(&disk, &sectors);
    }
}

#[test]
fn what_came_before_a_broken_chain_is_served() {
    let disk = disk(ALL);
    disk.header(0, 7);
    let buffers = [(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)];
    let head = disk.ring.add(&disk.driver, &buffers);
    disk.ring.offer(&disk.driver, 16);
    disk.driver.kick(&disk.ring);
    assert_eq!(disk.ring.used(&disk.driver), (u32::from(head), 513));
    assert_eq!(disk.bytes(DATA, 512), [8; 512]);
    disk.recovers();
}

#[test]
fn segments_may_overlap_and_what_comes_later_stays() {
    let disk = disk(ALL);
    let data = [
        (DATA, 1024, true),
        (DATA + 512, 512, true),
        (DATA, 512, true),
    ];
    assert_eq!(disk.request(0, 7, &data), (0, 2049));
    assert_eq!(
        disk.bytes(DATA, 1024),
        [vec![11; 512], vec![10; 512]].concat()
    );
}

#[test]
fn a_request_longer_than_the_disk_or_than_memory_fails_and_pins_nothing_of_it() {
    let disk = disk(ALL);
    let long = 0xffff_fe00;
    assert_eq!(disk.request(0, 0, &[(DATA, long, true)]).0, 1);
    assert_eq!(disk.request(1, 0, &[(DATA, long, false)]).0, 1);
    let memory = (MEMORY_SIZE as u64 - (2 << 20), 4 << 20, true);
    assert_eq!(disk.request(0, 0, &[memory]).0, 1);
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]), (0, 513));
}

#[test]
fn a_file_that_has_become_shorter_fails_reads_beyond_its_end() {
    let disk = disk(ALL);
    disk.file.as_file().set_len(512 * 9 - 100).unwrap();
    assert_eq!(disk.request(0, 7, &[(DATA, 1024, true)]).0, 1);
    assert_eq!(disk.request(0, 7, &[(DATA, 512, true)]), (0, 513));
}

/// Offers descriptor 0 after `prepare` has written the table; the device must give up, and work
/// again after a reset.
fn broken(prepare: impl FnOnce(&Disk)) {
    let disk = disk(ALL | INDIRECT);
    disk.header(0, 0);
    prepare(&disk);
    disk.ring.offer(&disk.driver, 0);
    disk.driver.kick(&disk.ring);
    disk.recovers();
}

fn put(disk: &Disk, index: u16, descriptor: (u64, u32, u16, u16)) {
    Ring::descriptor(&disk.driver, disk.ring.descriptors, index, descriptor);
}

#[test]
fn a_chain_that_loops_needs_a_reset() {
    broken(|disk| {
        put(disk, 0, (HEADER, 16, 1, 1));
        put(disk, 1, (DATA, 512, 1, 0));
    });
}

#[test]
fn a_chain_that_leaves_its_table_needs_a_reset() {
    broken(|disk| put(disk, 0, (HEADER, 16, 1, 16)));
}

#[test]
fn a_readable_buffer_after_a_writable_one_needs_a_reset() {
    broken(|disk| {
        put(disk, 0, (DATA, 512, 3, 1));
        put(disk, 1, (HEADER, 16, 0, 0));
    });
}

#[test]
fn a_request_without_room_for_its_status_needs_a_reset() {
    broken(|disk| put(disk, 0, (HEADER, 16, 0, 0)));
}

#[test]
fn a_nested_indirect_table_needs_a_reset() {
    broken(|disk| {
        put(disk, 0, (0x50000, 16, 4, 0));
        Ring::descriptor(&disk.driver, 0x50000, 0, (0x51000, 16, 4, 0));
    });
}

#[test]
fn an_indirect_table_of_odd_length_needs_a_reset() {
    broken(|disk| put(disk, 0, (0x50000, 17, 4, 0)));
}

#[test]
fn a_status_byte_outside_memory_needs_a_reset() {
    broken(|disk| {
        put(disk, 0, (HEADER, 16, 1, 1));
        put(disk, 1, (0xffff_ffff_f000, 1, 2, 0));
    });
}

#[test]
fn an_available_index_that_runs_away_needs_a_reset() {
    let disk = disk(ALL);
    disk.driver
        .memory
        .write_obj(17_u16, GuestAddress(disk.ring.available + 2))
        .unwrap();
    disk.driver.kick(&disk.ring);
    disk.recovers();
}

#[test]
fn a_head_beyond_the_queue_needs_a_reset() {
    let disk = disk(ALL);
    disk.ring.offer(&disk.driver, 16);
    disk.driver.kick(&disk.ring);
    disk.recovers();
}

#[test]
fn without_event_indexes_a_flag_suppresses_interrupts() {
    let disk = disk(ALL);
    disk.driver
        .memory
        .write_obj(1_u16, GuestAddress(disk.ring.available))
        .unwrap();
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]).0, 0);
    std::thread::sleep(A_WHILE);
    assert_eq!(disk.driver.interrupts(1), 0);
    disk.driver
        .memory
        .write_obj(0_u16, GuestAddress(disk.ring.available))
        .unwrap();
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]).0, 0);
    eventually("interrupt", || disk.driver.interrupts(1) == 1);
}

#[test]
fn with_event_indexes_the_interrupt_comes_when_the_driver_asked_for_it() {
    let disk = disk(ALL | EVENT_IDX);
    // used_event = 1: interrupt once the second request is done.
    disk.driver
        .memory
        .write_obj(1_u16, GuestAddress(disk.ring.available + 4 + 32))
        .unwrap();
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]).0, 0);
    std::thread::sleep(A_WHILE);
    assert_eq!(disk.driver.interrupts(1), 0);
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]).0, 0);
    eventually("interrupt", || disk.driver.interrupts(1) == 1);
}

#[test]
fn an_image_of_odd_size_is_refused_with_the_remedy() {
    let file = TempFile::new().unwrap();
    assert!(matches!(
        Block::open(&options(&file)),
        Err(BlockError::Empty(_))
    ));
    for size in [511, 1025] {
        file.as_file().set_len(size).unwrap();
        let error = Block::open(&options(&file)).map(|_| ()).unwrap_err();
        assert!(matches!(error, BlockError::Size { .. }));
        assert!(error.to_string().contains("truncate -s %512"), "{error}");
    }
}

#[test]
fn an_image_has_one_writer_or_several_readers() {
    let file = image();
    let writer = Block::open(&options(&file)).unwrap();
    assert!(matches!(
        Block::open(&options(&file)),
        Err(BlockError::InUse(_))
    ));
    drop(writer);
    let readonly = BlockOptions {
        readonly: true,
        ..options(&file)
    };
    let _one = Block::open(&readonly).unwrap();
    let _two = Block::open(&readonly).unwrap();
    assert!(matches!(
        Block::open(&options(&file)),
        Err(BlockError::InUse(_))
    ));
}

/// Opening a pipe waits for whoever writes to it.
#[test]
fn an_image_that_is_a_pipe_or_a_directory_is_refused() {
    let directory = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let pipe = directory.as_path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for path in [pipe, directory.as_path().to_owned()] {
        let options = BlockOptions {
            path,
            readonly: true,
            serial: None,
            queues: 1,
        };
        assert!(matches!(Block::open(&options), Err(BlockError::Kind(_))));
    }
}

#[test]
fn a_long_serial_and_a_missing_image_are_refused() {
    let file = image();
    let long = BlockOptions {
        serial: Some("x".repeat(21)),
        ..options(&file)
    };
    assert!(matches!(Block::open(&long), Err(BlockError::Serial(_))));
    let missing = BlockOptions {
        path: "/nonexistent/disk.img".into(),
        ..options(&file)
    };
    let message = Block::open(&missing).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/disk.img"), "{message}");
}
