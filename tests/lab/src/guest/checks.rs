//! The table of checks that a plan can name.

use anyhow::{Context, Result, bail, ensure};

use super::{
    Guest, asleep, assigned_edu, balloon, console, dirty_pages, disk, disk_bench, disk_queues,
    disk_speed, edu, edu_group, edu_msi, fio, hot_plug, hot_plug_levels, huge_pages, interrupts,
    iommu, level3, map_benchmark, moves_unplug, net_bench, net_queues, network, nvme, pasid,
    pauses, plugged, power, random, restart, service, sva, taken, vsock,
};
use crate::kernel_log;
use crate::plan::Check;

type Run = fn(&Guest, &str) -> Result<String>;

/// Name, what it shows, code.
const CHECKS: &[(&str, Run)] = &[
    ("scalable", iommu::scalable),
    ("legacy", iommu::legacy),
    ("no-unit", iommu::no_unit),
    ("groups", iommu::groups),
    ("translation", iommu::translation),
    ("invalidation", iommu::invalidation),
    ("intremap", iommu::interrupt_remapping),
    ("disk", disk::check),
    ("net", network::check),
    ("net-queues", net_queues::check),
    ("ping", network::ping),
    ("vsock", vsock::check),
    ("rng", random::check),
    ("console", console::virtio),
    ("serial", console::serial),
    ("asleep", asleep::check),
    ("edu", edu::dma_and_msi),
    ("edu-intx", edu::intx),
    ("edu-msi", edu_msi::check),
    ("edu-stays-mapped", edu::stay_mapped),
    ("edu-fault", edu::fault),
    ("dma-map-benchmark", map_benchmark::check),
    ("nvme", nvme::file_system),
    ("nvme-load", nvme::load),
    ("nvme-speed", nvme::speed),
    ("disk-queues", disk_queues::check),
    ("disk-speed", disk_speed::check),
    ("fio", fio::check),
    ("systemd", service::systemd),
    ("disk-bench", disk_bench::check),
    ("net-bench", net_bench::check),
    ("device-mode", iommu::device_mode),
    ("link", network::assigned),
    ("edu-domains", assigned_edu::domains),
    ("edu-group", edu_group::check),
    ("edu-isolation", assigned_edu::isolation),
    ("edu-unmap", assigned_edu::unmap),
    ("edu-remap", assigned_edu::remap),
    ("dirty-pages", dirty_pages::check),
    ("crash-kernel", restart::crash_kernel),
    ("taken-back", taken::check),
    ("power", power::check),
    ("plugged-rng", hot_plug::plugged_rng),
    ("pauses", pauses::check),
    ("balloon", balloon::check),
    ("virtio-mem", plugged::check),
    ("moves", pauses::moves),
    ("moves-unplug", moves_unplug::check),
    ("hot-plug", hot_plug::check),
    ("map-by-address", hot_plug::map_by_address),
    ("hot-plug-levels", hot_plug_levels::check),
    ("huge-pages", huge_pages::check),
    ("level3", level3::check),
    ("level3-bench", level3::measure),
    ("look", level3::look),
    ("map-cost", map_benchmark::cost),
    ("map-speed", map_benchmark::speed),
    ("map-time", map_benchmark::time),
    ("map-count", assigned_edu::count_maps),
    ("sva", sva::check),
    ("sva-present", sva::present),
    ("sva-goes-on", sva::go_on),
    ("pasid", pasid::check),
    ("smp", interrupts::processors),
    ("interrupts", interrupts::check),
    ("nofaults", no_faults),
    ("log", log_contains),
];

/// Whether a plan can have a check of this name.
#[cfg(test)]
pub(crate) fn is_known(name: &str) -> bool {
    CHECKS.iter().any(|(known, _)| *known == name)
}

pub(super) fn run(guest: &Guest, check: &Check) -> Result<String> {
    let Some((_, run)) = CHECKS.iter().find(|(name, _)| *name == check.name) else {
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        bail!("no such check; there are {}", names.join(" "));
    };
    run(guest, &check.argument)
}

/// The kernel reported no DMA or interrupt-remapping fault and no queue error; or faults of the
/// function that the argument names, which there must be, and no others.
fn no_faults(_guest: &Guest, argument: &str) -> Result<String> {
    let log = kernel_log::read()?;
    let (expected, bad): (Vec<&String>, Vec<&String>) = log
        .iter()
        .filter(|line| kernel_log::is_fault(line))
        .partition(|line| {
            let header = line.contains("DRHD: handling fault");
            let named = line.contains(&format!("Request device [0000:{argument}]"));
            !argument.is_empty() && (header || named)
        });
    ensure!(
        argument.is_empty() || !expected.is_empty(),
        "no fault of {argument}"
    );
    ensure!(
        bad.is_empty(),
        "{} fault lines, first: {}",
        bad.len(),
        bad.first().map_or("", |line| line.as_str())
    );
    Ok(format!("{} lines of kernel log", log.len()))
}

/// The kernel log contains the argument, in which `_` stands for a space.
fn log_contains(_guest: &Guest, argument: &str) -> Result<String> {
    let wanted = argument.replace('_', " ");
    let log = kernel_log::read()?;
    log.into_iter()
        .find(|line| line.contains(&wanted))
        .with_context(|| format!("no line with '{wanted}'"))
}
