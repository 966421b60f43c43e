//! What it costs to follow the guest's tables, beside what the host's calls cost: `cargo bench -p
//! intel-vtd-host --features fake-host`, or `cargo xtask bench host` with a table of ratios.
//!
//! Names are `group/case`. The first case of a group is what the others are compared with: where
//! cost follows the change, they take the same time.

#[path = "../../../unit/benches/speed/clock.rs"]
mod clock;
mod guest;
mod nothing;
mod relay;
mod tables;

use std::time::Duration;

use clock::Clock;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};

pub(crate) type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    tables::bindings(&mut criterion);
    tables::devices(&mut criterion);
    tables::areas(&mut criterion);
    tables::toggle(&mut criterion);
    relay::run(&mut criterion);
    criterion.final_summary();
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    // Samples of equal length, each long enough for the kernel's accounting of processor time.
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// Measures `rounds`, which runs as often as it is told, by the processor time of this thread.
fn measure(group: &mut Group<'_>, name: &str, mut rounds: impl FnMut(u64)) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let clock = Clock::start();
            rounds(count);
            clock.elapsed()
        });
    });
}
