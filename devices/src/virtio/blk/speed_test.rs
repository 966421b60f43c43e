//! How long requests take, by io_uring and by calls that block. It measures, and proves nothing:
//! `cargo test --release -p devices virtio::blk::speed -- --ignored --nocapture`

use std::collections::BTreeMap;
use std::env;
use std::os::unix::fs::FileExt as _;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use super::{Block, BlockOptions};
use crate::virtio::testing::{BASE_FEATURES, Driver, Ring};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
/// Bytes of the disk.
const SIZE: u64 = 1 << 30;
/// How long each measurement takes.
const LASTS: Duration = Duration::from_millis(700);

/// What is measured: a name, requests under way, bytes of each, of 100 requests how many write and
/// how many flush, and whether the host has the disk in memory.
type Load = (&'static str, u64, u32, [u64; 2], bool);

const LOADS: [Load; 11] = [
    ("read 4k, in memory, 1", 1, 4096, [0, 0], true),
    ("read 4k, in memory, 32", 32, 4096, [0, 0], true),
    ("read 128k, in memory, 1", 1, 128 << 10, [0, 0], true),
    ("read 128k, in memory, 32", 32, 128 << 10, [0, 0], true),
    ("read 4k, cold, 1", 1, 4096, [0, 0], false),
    ("read 4k, cold, 32", 32, 4096, [0, 0], false),
    ("write 4k, 1", 1, 4096, [100, 0], true),
    ("write 4k, 32", 32, 4096, [100, 0], true),
    ("write 128k, 1", 1, 128 << 10, [100, 0], true),
    ("70/29/1 read/write/flush 4k, 32", 32, 4096, [29, 1], true),
    ("70/29/1 the same, cold", 32, 4096, [29, 1], false),
];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn place(slot: u64) -> u64 {
    0x10_0000 + 0x2_1000 * slot
}

fn offer(driver: &Driver, ring: &Ring, slot: u64, (kind, sector): (u32, u64), length: u32) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    let at = place(slot);
    driver
        .memory
        .write_slice(&header, GuestAddress(at))
        .unwrap();
    let mut buffers = vec![(at, 16, false)];
    if kind != FLUSH {
        buffers.push((at + 0x1000, length, kind == READ));
    }
    buffers.push((at + 0x100, 1, true));
    let first = u16::try_from(3 * slot).unwrap();
    Ring::chain(driver, ring.descriptors, first, ring.size, &buffers);
    ring.offer(driver, first);
    driver.kick(ring);
}

/// By kind: how many there were, and their times.
fn measure(
    driver: &Driver,
    ring: &Ring,
    load: &Load,
    random: &mut Random,
) -> BTreeMap<u32, Vec<Duration>> {
    let (_, depth, length, [writes, flushes], _) = *load;
    let pick = |random: &mut Random| {
        let kind = match random.below(100) {
            n if n < writes => WRITE,
            n if n < writes + flushes => FLUSH,
            _ => READ,
        };
        let sector = random.below(SIZE / u64::from(length)) * u64::from(length) / 512;
        (kind, sector)
    };
    let mut times = BTreeMap::<u32, Vec<Duration>>::new();
    let mut under_way = Vec::new();
    for slot in 0..depth {
        let what = pick(random);
        under_way.push((what.0, Instant::now()));
        offer(driver, ring, slot, what, length);
    }
    let start = Instant::now();
    let mut left = depth;
    while left != 0 {
        let Some((head, _)) = ring.try_used(driver) else {
            yield_now();
            continue;
        };
        let head = u16::try_from(head / 3).unwrap();
        let slot = u64::from(head);
        let (kind, since) = under_way[usize::from(head)];
        times.entry(kind).or_default().push(since.elapsed());
        if start.elapsed() < LASTS {
            let what = pick(random);
            under_way[usize::from(head)] = (what.0, Instant::now());
            offer(driver, ring, slot, what, length);
        } else {
            left -= 1;
        }
    }
    times
}

#[test]
#[ignore = "measures"]
fn speed() {
    let directory = env::var("SPEED_DIRECTORY").unwrap_or_else(|_| "/tmp".to_owned());
    let file = TempFile::new_in(directory.as_ref()).unwrap();
    let piece = vec![0x5a; 1 << 20];
    for at in (0..SIZE).step_by(1 << 20) {
        file.as_file().write_all_at(&piece, at).unwrap();
    }
    file.as_file().sync_all().unwrap();
    let only = env::var("SPEED_LOAD").unwrap_or_default();
    for load in LOADS.iter().filter(|load| load.0.contains(&only)) {
        for round in 0..3 {
            for synchronous in [true, false] {
                let options = BlockOptions {
                    path: file.as_path().to_owned(),
                    readonly: false,
                    serial: None,
                    queues: 1,
                };
                let mut block = Block::open(&options).unwrap();
                block.synchronous = synchronous;
                let driver = Driver::new(Box::new(block));
                assert!(driver.negotiate(BASE_FEATURES | 1 << 9));
                let ring = driver.queue(0, 256);
                driver.set_status(15);
                file.as_file().sync_all().unwrap();
                if !load.4 {
                    fadvise(file.as_file(), 0, None, Advice::DontNeed).unwrap();
                }
                let mut random = Random(0x1234_5678_9abc_def1 + round * 77);
                let times = measure(&driver, &ring, load, &mut random);
                let name = if synchronous { "blocking" } else { "io_uring" };
                print!("{:34} {name}", load.0);
                for (kind, mut times) in times {
                    times.sort_unstable();
                    let at =
                        |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6;
                    let kind = match kind {
                        READ => "read",
                        WRITE => "write",
                        _ => "flush",
                    };
                    print!(
                        "  {kind}: {:6} median {:7.1} p90 {:8.1} p99 {:8.1} us",
                        times.len(),
                        at(50),
                        at(90),
                        at(99)
                    );
                }
                println!();
            }
        }
    }
}
