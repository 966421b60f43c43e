//! What translation and invalidation cost: `cargo bench -p intel-vtd`, or with a table of ratios `cargo xtask bench iommu`.
//!
//! Names are `group/case`. Every group has its own base to compare with, measured in the same run, because the
//! absolute figures of a shared machine mean little.

mod clock;
mod dma;
mod queue;
mod tables;
mod virtio;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    dma::run(&mut criterion);
    virtio::run(&mut criterion);
    queue::run(&mut criterion);
    criterion.final_summary();
}
