//! `cargo xtask bench nested`: assigned devices three levels deep.

use anyhow::Result;
use lab::scenario::NESTED;

use crate::bench;
use crate::build::{self, Extras};
use crate::level0::{self, Time};

/// Who the others are compared with.
const BASE: &str = "no-unit";

/// The benchmark. It needs a host that nests, so that it always runs in level 1.
pub(crate) fn run(rounds: u32) -> Result<bool> {
    let stage = build::stage(Extras {
        host: true,
        ..Extras::default()
    })?;
    level0::install()?;
    println!(
        "level 3: one vCPU, 256 MiB, a disk and an edu of level 2, whose unit is nido's; {rounds} rounds, alternating: \
         no unit, first-stage tables nested (lazy as Linux is by default, and strict), second-stage tables shadowed"
    );
    bench::run(
        "bench-nested",
        |directory, report| {
            bench::in_level1(
                &stage,
                &NESTED,
                Time::Real,
                rounds,
                NESTED.limit,
                directory,
                report,
            )
        },
        |samples| samples.print(BASE),
    )
}
