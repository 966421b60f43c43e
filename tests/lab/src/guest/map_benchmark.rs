//! The kernel's own measurement of mapping for DMA (CONFIG_DMA_MAP_BENCHMARK), in the name of edu:
//! threads map and unmap pages, again and again, through the function's default domain.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::agent::Agent;
use super::{Guest, edu, tally, vfio};
use crate::pci;
use crate::sys::ioctl::{self, MapBenchmark, ioctl};

const DRIVER: &str = "dma_map_benchmark";
const FILE: &str = "/sys/kernel/debug/dma_map_benchmark";
/// The kernel's count of invalidations of the IOTLB, with their latencies.
const LATENCIES: &str = "/sys/kernel/debug/iommu/intel/dmar_perf_latency";
/// How long each number of threads is measured.
const SECONDS: u32 = 3;
/// Maps to the device and from it, or from it only, which spares the kernel filling the pages.
const FROM_DEVICE: u32 = 2;

fn open() -> Result<File> {
    pci::bind(&edu::find()?, DRIVER)?;
    vfio::open_node(Path::new(FILE))
}

fn measure(
    file: &File,
    seconds: u32,
    threads: u32,
    pages: u32,
    direction: u32,
) -> Result<MapBenchmark> {
    let mut run = MapBenchmark {
        threads,
        seconds,
        // Any NUMA node.
        node: -1,
        dma_bits: 32,
        dma_dir: direction,
        granule: pages,
        ..Default::default()
    };
    ioctl(file, &ioctl::MAP_BENCHMARK, &mut run)
        .with_context(|| format!("{threads} threads, {pages} pages"))?;
    // Without a unit the one or the other may take less than a unit of time.
    ensure!(
        run.average_map + run.average_unmap > 0,
        "{threads} threads: map {}, unmap {} units of 100 ns",
        run.average_map,
        run.average_unmap
    );
    Ok(run)
}

/// Reports the latencies for each number of threads in the argument (`1/2`). They only need to be
/// there.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let file = open()?;
    let mut results = Vec::new();
    for threads in argument.split('/') {
        let threads = threads.parse().context("dma-map-benchmark=THREADS/...")?;
        let run = measure(&file, SECONDS, threads, 1, 0)?;
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

/// What one thread takes to map so many pages at once and to unmap them.
fn times(pages: u32, run: &MapBenchmark) -> String {
    format!(
        "map_{pages}_ns={} unmap_{pages}_ns={}",
        run.average_map * 100,
        run.average_unmap * 100
    )
}

/// For each number of pages in the argument (`1/256`): these times, and what a map and its unmap
/// cost below. The kernel does not say how many there were: what a round takes besides the two is
/// left out of account.
pub(super) fn speed(_guest: &Guest, argument: &str) -> Result<String> {
    const SECONDS: u32 = 2;
    let file = open()?;
    let mut agent = Agent::open()?;
    let mut results = Vec::new();
    for pages in argument.split('/') {
        let pages: u32 = pages.parse().context("map-speed=PAGES/...")?;
        tally::count_beside_idle(&mut agent, &format!("map-unmap-of-{pages}"), || {
            let run = measure(&file, SECONDS, 1, pages, FROM_DEVICE)?;
            results.push(times(pages, &run));
            let round = run.average_map + run.average_unmap;
            Ok(u64::from(SECONDS) * 10_000_000 / round)
        })?;
    }
    Ok(results.join(" "))
}

/// For each number of pages in the argument (`1/256`): what one thread takes to map them at once
/// and to unmap them, and nothing else.
pub(super) fn time(_guest: &Guest, argument: &str) -> Result<String> {
    let file = open()?;
    let results = argument.split('/').map(|pages| {
        let pages = pages.parse().context("map-time=PAGES/...")?;
        let run = measure(&file, 1, 1, pages, FROM_DEVICE)?;
        Ok(times(pages, &run))
    });
    Ok(results.collect::<Result<Vec<_>>>()?.join(" "))
}

/// For each number of pages in the argument (`1/256`): how long one thread takes to map them at
/// once and to unmap them; then, in a run of its own, how many ioctls the VMM issues meanwhile,
/// which the agent counts.
pub(super) fn cost(_guest: &Guest, argument: &str) -> Result<String> {
    let file = open()?;
    let mut agent = Agent::open()?;
    // Measures the latency of IOTLB invalidations.
    fs::write(LATENCIES, "1").context(LATENCIES)?;
    let mut results = Vec::new();
    for pages in argument.split('/') {
        let pages: u32 = pages.parse().context("map-cost=PAGES/...")?;
        let run = measure(&file, SECONDS, 1, pages, FROM_DEVICE)?;
        results.push(times(pages, &run));
        agent.request("count")?;
        let before = invalidations()?;
        measure(&file, SECONDS, 1, pages, FROM_DEVICE)?;
        // One for a map, one for an unmap.
        let maps = (invalidations()? - before) / 2;
        agent.request(&format!("counted what=maps-of-{pages} times={maps}"))?;
    }
    Ok(results.join(" "))
}

/// How many invalidations of the IOTLB the kernel has waited for.
fn invalidations() -> Result<u64> {
    let text = fs::read_to_string(LATENCIES).context(LATENCIES)?;
    count(&text).with_context(|| format!("{LATENCIES}: {text}"))
}

/// A row is a name, seven counts by latency, and the least, greatest and average latency.
fn count(text: &str) -> Option<u64> {
    let row = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("inv_iotlb"))?;
    let counts = row.split_whitespace().take(7);
    counts.map(|word| word.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidations_of_all_latencies_are_counted() {
        let text = "IOMMU: dmar0 Register Base Address: fed90000\n  <0.1us  0.1us-1us\n\
            inv_iotlb   1  2   3 4 5 6 7   100 900  200\n inv_devtlb 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(count(text), Some(28));
        assert_eq!(count("nothing"), None);
    }
}
