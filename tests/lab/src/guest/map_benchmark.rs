//! The kernel's own measurement of mapping for DMA (CONFIG_DMA_MAP_BENCHMARK), in the name of edu: threads map and unmap a
//! page each, again and again, through the function's default domain.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Guest, edu, vfio};
use crate::sys::ioctl::{self, MapBenchmark, ioctl};

const DRIVER: &str = "dma_map_benchmark";
const FILE: &str = "/sys/kernel/debug/dma_map_benchmark";
/// How long each number of threads is measured.
const SECONDS: u32 = 3;

/// Reports the latencies for each number of threads in the argument (`1/2`). They only need to be there.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let address = edu::find()?;
    vfio::bind(&address, DRIVER)?;
    let file = vfio::open_node(Path::new(FILE))?;
    let mut results = Vec::new();
    for threads in argument.split('/') {
        let threads = threads.parse().context("dma-map-benchmark=THREADS/...")?;
        let mut run = MapBenchmark {
            threads,
            seconds: SECONDS,
            // Any NUMA node.
            node: -1,
            dma_bits: 32,
            // Pages at once.
            granule: 1,
            ..Default::default()
        };
        ioctl(&file, &ioctl::MAP_BENCHMARK, &mut run)
            .with_context(|| format!("{threads} threads"))?;
        ensure!(
            run.average_map > 0 && run.average_unmap > 0,
            "{threads} threads: map {}, unmap {} units of 100 ns",
            run.average_map,
            run.average_unmap
        );
        let microseconds = |hundreds: u64| format!("{}.{} us", hundreds / 10, hundreds % 10);
        results.push(format!(
            "threads={threads}: map {} (deviation {}), unmap {} (deviation {})",
            microseconds(run.average_map),
            microseconds(run.map_deviation),
            microseconds(run.average_unmap),
            microseconds(run.unmap_deviation)
        ));
    }
    Ok(results.join("; "))
}
