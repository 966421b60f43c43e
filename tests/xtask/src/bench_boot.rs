//! `cargo xtask bench boot`: boot time and memory, beside QEMU's microvm and q35.

use std::time::Duration;

use anyhow::Result;
use lab::agent::bench_boot::Bench;
use lab::scenario::BOOT;

use crate::Where;
use crate::bench::{self, bundle_qemu};
use crate::bench_samples::{Samples, median, ratio};
use crate::build::{self, Extras};
use crate::level0::{self, Time};
use crate::place::{self, Place};

/// What the others are compared with.
const BASE: &str = "qemu-microvm";
/// Time of a round.
const ROUND: Duration = Duration::from_secs(80);

/// The benchmark.
pub(crate) fn run(wanted: Where, rounds: u32) -> Result<bool> {
    let stage = build::stage(Extras::default())?;
    let place = place::choose(wanted, &stage)?;
    level0::install()?;
    bundle_qemu(&stage)?;
    println!(
        "one vCPU, 512 MiB, the same kernel (ELF, PVH) and initramfs for all; {rounds} rounds, alternating"
    );
    bench::run(
        "bench-boot",
        |directory, report| match place {
            Place::Host => Bench {
                files: stage.directory.clone(),
                output: directory.to_owned(),
                rounds,
            }
            .run(report),
            Place::Level1 => {
                bench::in_level1(&stage, &BOOT, Time::Real, rounds, ROUND, directory, report)
            }
        },
        print,
    )
}

fn print(samples: &Samples) {
    println!(
        "\n{:14} {:>10} {:>10} {:>10} {:>12} {:>22}",
        "", "median", "min", "max", "to microvm", "VMM memory, median"
    );
    for name in samples.names() {
        let milliseconds = |value: Option<u64>| {
            value.map_or("-".to_owned(), |value| {
                format!("{} ms", Duration::from_nanos(value).as_millis())
            })
        };
        let times = samples.of(name, "boot (ns)");
        println!(
            "{name:14} {:>10} {:>10} {:>10} {:>12} {:>18} KiB",
            milliseconds(median(times)),
            milliseconds(times.iter().min().copied()),
            milliseconds(times.iter().max().copied()),
            ratio(median(times), median(samples.of(BASE, "boot (ns)"))),
            median(samples.of(name, "memory_kib")).unwrap_or(0)
        );
    }
}
