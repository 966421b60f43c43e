//! `cargo xtask bench shadow`: an assigned device behind shadowed tables, beside QEMU.

use std::time::Duration;

use anyhow::Result;
use lab::scenario::{SHADOW, SHADOW_MAPS};

use crate::bench::{self, bundle_qemu};
use crate::build::{self, Extras};
use crate::level0::{self, Time};

/// Who the others are compared with.
const BASE: &str = "qemu";
/// Time of a round: of one run of each VMM.
const ROUND: Duration = Duration::from_secs(300);

/// The benchmark, in time or in instructions. It needs the devices of level 0, so that it always
/// runs in level 1.
pub(crate) fn run(rounds: u32, instructions: bool) -> Result<bool> {
    let (scenario, time) = if instructions {
        (&SHADOW_MAPS, Time::Instructions)
    } else {
        (&SHADOW, Time::Real)
    };
    let stage = build::stage(Extras::default())?;
    level0::install()?;
    bundle_qemu(&stage)?;
    println!(
        "one vCPU, 512 MiB, second-stage tables, caching mode, strict; an assigned nvme and an assigned edu; \
         {rounds} rounds, alternating"
    );
    bench::run(
        "bench-shadow",
        |directory, report| {
            bench::in_level1(&stage, scenario, time, rounds, ROUND, directory, report)
        },
        |samples| samples.print(BASE),
    )
}
