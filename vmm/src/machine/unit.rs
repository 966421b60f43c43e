//! The machine's remapping unit: what it is asked to be, and what it can be in front of the host's
//! devices.

use std::sync::Arc;

use anyhow::Context as _;
use intel_vtd::{Interrupts, Scalable, Stages, UnitConfig, WalkFeatures};

use crate::assign::{self, BoundDevice};
use crate::config::{Config, IommuConfig};
use crate::irq::{LocalApics, Unit};
use crate::memory::Memory;

/// What the remapping unit is asked to be. `assigns` tells whether devices of the host may be
/// behind it.
pub(crate) fn unit_config(config: &IommuConfig, assigns: bool, physical_bits: u8) -> UnitConfig {
    let stages = if config.shows_first_stage(assigns) {
        Stages::Nested
    } else {
        Stages::Second
    };
    let walks = WalkFeatures::ALL.with_snooped(config.page_walk_coherency);
    let scalable = config.scalable.then(|| {
        Scalable::new(stages)
            .with_walks(walks)
            .with_pasid_bits(config.pasid_bits)
            .with_page_requests(config.page_requests)
    });
    let interrupts = if config.intremap {
        Interrupts::Remapped { x2apic: true }
    } else {
        Interrupts::Off
    };
    UnitConfig::legacy(physical_bits)
        .with_address_width(config.address_width)
        .with_scalable(scalable)
        .with_interrupts(interrupts)
        .with_device_tlb(config.device_iotlb)
        .with_caching_mode(config.has_caching_mode(assigns))
        .with_snoop_control(config.snoop_control)
        .with_page_walk_coherency(config.page_walk_coherency)
        .with_keep_translations(config.keep_translations)
}

/// Creates the unit, if there is to be one, for a machine that begins with these devices of the
/// host. What it was asked to be is beside it.
pub(super) fn create(
    config: &Config,
    host_devices: &[BoundDevice],
    memory: &Memory,
    local_apics: &Arc<LocalApics>,
    physical_bits: u8,
) -> anyhow::Result<Option<(Arc<Unit>, UnitConfig)>> {
    let Some(unit) = config.iommu else {
        return Ok(None);
    };
    let unit = assign::choose_first_stage(unit, config.assigns(), host_devices);
    let asked = unit_config(&unit, config.assigns(), physical_bits);
    let asked = if config.assigns() {
        assign::limit(asked, host_devices)
    } else {
        asked
    };
    let events = Arc::clone(local_apics) as _;
    let unit = Unit::new(Arc::clone(memory), &asked, events).context("--device intel-iommu")?;
    Ok(Some((unit, asked)))
}
