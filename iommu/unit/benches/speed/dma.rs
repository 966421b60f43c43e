//! Access through views: hits, walks, threads, larger pieces.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, SamplingMode, measurement::WallTime};
use intel_vtd::{DmaPin, DmaPort, DmaView};
use vm_memory::{Bytes, GuestAddress, Permissions};

use super::clock::Clock;
use super::tables::{DATA, Memory, World};

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Four times what a view remembers, so that a sweep never hits.
const SWEEP: u64 = 1024;

pub(crate) fn run(criterion: &mut Criterion) {
    hits(&mut group(criterion, "read8"));
    sweeps(&mut group(criterion, "sweep"));
    threads(&mut group(criterion, "threads"));
    copies(&mut group(criterion, "copy4k"));
    pins(&mut group(criterion, "pin"));
}

pub(crate) fn group<'a>(criterion: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    // Samples of equal length, each long enough for the kernel's accounting of processor time.
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// Measures `rounds`, which runs as often as it is told, by the processor time of this thread.
pub(crate) fn measure(group: &mut Group<'_>, name: &str, mut rounds: impl FnMut(u64)) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let clock = Clock::start();
            rounds(count);
            clock.elapsed()
        });
    });
}

fn read8(memory: &impl Bytes<GuestAddress, E: std::fmt::Debug>, address: u64) {
    black_box(
        memory
            .read_obj::<u64>(black_box(GuestAddress(address)))
            .unwrap(),
    );
}

/// One address again and again.
fn hits(group: &mut Group<'_>) {
    let world = World::with_first_stage(16);
    measure(group, "raw", |rounds| {
        (0..rounds).for_each(|_| read8(&*world.memory, DATA + 0x1008));
    });
    let mut view = DmaPort::direct(world.memory.clone()).view();
    measure(group, "no-unit", |rounds| {
        let transaction = view.begin();
        (0..rounds).for_each(|_| read8(&transaction, DATA + 0x1008));
    });
    let mut view = world.port().view();
    measure(group, "hit", |rounds| {
        let transaction = view.begin();
        (0..rounds).for_each(|_| read8(&transaction, 0x1008));
    });
    measure(group, "begin+hit", |rounds| {
        (0..rounds).for_each(|_| read8(&view.begin(), 0x1008));
    });
}

/// A word of each page in turn, neighbours in different sets of the processor's cache.
#[derive(Default)]
struct Sweep(u64);

impl Sweep {
    fn next(&mut self) -> u64 {
        let page = self.0 % SWEEP;
        self.0 += 1;
        (page << 12) + ((page % 64) << 6)
    }
}

fn misses(group: &mut Group<'_>, name: &str, world: &World) {
    let mut view = world.port().view();
    let before = view.walks();
    let mut sweep = Sweep::default();
    measure(group, name, |rounds| {
        let transaction = view.begin();
        (0..rounds).for_each(|_| read8(&transaction, sweep.next()));
    });
    let walks = view.walks() - before;
    assert_eq!(walks, sweep.0, "every read of {name} is to walk");
}

/// Every read walks, except where there is nothing to walk.
fn sweeps(group: &mut Group<'_>) {
    let world = World::with_first_stage(SWEEP);
    let mut sweep = Sweep::default();
    measure(group, "raw", |rounds| {
        (0..rounds).for_each(|_| read8(&*world.memory, DATA + sweep.next()));
    });
    misses(group, "first-stage", &world);
    misses(group, "second-stage", &World::with_second_stage(SWEEP));
    misses(group, "nested", &World::with_nested(SWEEP));
}

/// Hits on several threads at once, each with a view of its own: the mean of their processor times.
fn threads(group: &mut Group<'_>) {
    let world = World::with_first_stage(64);
    let all = thread::available_parallelism().map_or(2, usize::from);
    let mut counts = vec![1, 2, all.max(4)];
    counts.dedup();
    for count in counts {
        group.bench_function(format!("{count}"), |bencher| {
            bencher.iter_custom(|rounds| together(&world, count, rounds));
        });
    }
}

fn together(world: &World, count: usize, rounds: u64) -> Duration {
    let barrier = Barrier::new(count);
    let worker = |mut view: DmaView<Memory>, address: u64| {
        barrier.wait();
        let clock = Clock::start();
        for _ in 0..rounds {
            read8(&view.begin(), address);
        }
        clock.elapsed()
    };
    let total: Duration = thread::scope(|scope| {
        let handles: Vec<_> = (0..count)
            .map(|index| {
                let (view, address) = (world.port().view(), (index as u64) << 12);
                scope.spawn(move || worker(view, address))
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .sum()
    });
    total / u32::try_from(count).unwrap()
}

/// 4 KiB at once.
fn copies(group: &mut Group<'_>) {
    let world = World::with_first_stage(16);
    let mut bytes = vec![0; 4096];
    measure(group, "raw", |rounds| {
        for _ in 0..rounds {
            let at = black_box(GuestAddress(DATA + 0x1000));
            world.memory.read_slice(&mut bytes, at).unwrap();
        }
    });
    let mut view = world.port().view();
    for (name, address) in [("hit", 0x1000), ("two-pages", 0x1800)] {
        measure(group, name, |rounds| {
            for _ in 0..rounds {
                let at = black_box(GuestAddress(address));
                view.begin().read_slice(&mut bytes, at).unwrap();
            }
        });
    }
}

/// The pages of a disk's request: pinned, and released. What it spares is a copy of them.
fn pins(group: &mut Group<'_>) {
    let world = World::with_first_stage(64);
    let direct = DmaPort::direct(world.memory.clone());
    for (name, port, address) in [("no-unit", direct, DATA), ("hit", world.port(), 0)] {
        for (pages, size) in [(1, "4k"), (32, "128k")] {
            let (mut view, mut pin) = (port.view(), DmaPin::new());
            measure(group, &format!("{name}-{size}"), |rounds| {
                for _ in 0..rounds {
                    let range = [(black_box(GuestAddress(address)), pages << 12)];
                    let pinned = view.begin().pin(&mut pin, range, Permissions::Write);
                    black_box(pinned.unwrap().len());
                }
            });
        }
    }
    let mut view = world.port().view();
    let mut bytes = vec![0; 32 << 12];
    measure(group, "copy-128k", |rounds| {
        for _ in 0..rounds {
            let at = black_box(GuestAddress(0));
            view.begin().read_slice(&mut bytes, at).unwrap();
        }
    });
}
