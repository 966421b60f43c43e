//! The machine's remapping unit: what it is asked to be, and what it can be in front of the host's
//! devices.

use std::sync::Arc;

use anyhow::Context as _;
use intel_vtd::{Interrupts, Scalable, Stages, UnitConfig, WalkFeatures};

use crate::assign::{self, BoundDevice};
use crate::config::{Config, IommuConfig, SettledUnit};
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
    let walks = match &config.settled {
        None => WalkFeatures::ALL.with_snooped(config.page_walk_coherency),
        Some(settled) => WalkFeatures::ALL
            .with_pages_of_1g(settled.pages_of_1g)
            .with_supervisor_requests(settled.supervisor_requests)
            .with_extended_accessed(settled.extended_accessed)
            .with_snooped(settled.snooped_walks),
    };
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
    let unit = UnitConfig::legacy(physical_bits);
    let settled = config.settled.map(|settled| settled.address_bits);
    let narrower = settled.filter(|bits| *bits != config.address_width.bits());
    let unit = match narrower {
        Some(bits) => unit.with_guest_address_width(bits),
        None => unit,
    };
    unit.with_address_width(config.address_width)
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
    let is_open = unit.settled.is_none();
    let unit = match is_open {
        true => assign::choose_first_stage(unit, config.assigns(), host_devices),
        false => unit,
    };
    let asked = unit_config(&unit, config.assigns(), physical_bits);
    let asked = match is_open && config.assigns() {
        true => assign::limit(asked, host_devices),
        false => asked,
    };
    let events = Arc::clone(local_apics) as _;
    let unit = Unit::new(Arc::clone(memory), &asked, events).context("--device intel-iommu")?;
    Ok(Some((unit, asked)))
}

/// `config`, in which nothing is open any more: it asks for `unit`, whatever devices the host has.
pub(super) fn settle(config: IommuConfig, unit: &UnitConfig) -> IommuConfig {
    let walks = unit.scalable.map(|scalable| scalable.walks);
    let has = |can: fn(&WalkFeatures) -> bool| walks.as_ref().is_some_and(can);
    IommuConfig {
        first_stage: Some(unit.stages().first()),
        caching_mode: Some(unit.caching_mode),
        snoop_control: unit.snoop_control,
        settled: Some(SettledUnit {
            address_bits: unit.input_width(),
            pages_of_1g: has(|walks| walks.pages_of_1g),
            supervisor_requests: has(|walks| walks.supervisor_requests),
            extended_accessed: has(|walks| walks.extended_accessed),
            snooped_walks: has(|walks| walks.snooped),
        }),
        ..config
    }
}

#[cfg(test)]
mod tests {
    use intel_vtd::AddressWidth;

    use super::*;
    use crate::cli::testing::config;
    use crate::cli::written;

    fn moved(options: &str, change: impl FnOnce(UnitConfig) -> UnitConfig) {
        let config = config(&format!("--kernel k --object iommufd,id=i {options}"));
        let asked = config.iommu.expect("a unit");
        let unit = change(unit_config(&asked, true, 46));
        let settled = settle(asked, &unit);
        // As it is told to the one that goes on with the machine.
        let config = Config {
            iommu: Some(settled),
            ..config
        };
        let text = written(&config).expect("text");
        assert!(
            text.iter().any(|option| option.contains("x-settled=")),
            "{text:?}"
        );
        assert_eq!(unit_config(&settled, true, 46), unit, "{text:?}");
    }

    #[test]
    fn a_unit_that_was_decided_by_devices_of_one_host_is_the_same_without_them() {
        moved("--device intel-iommu", |unit| unit);
        moved("--device intel-iommu,x-flts=on", |unit| {
            let mut unit = unit.with_snoop_control(false).with_guest_address_width(47);
            let scalable = unit.scalable.as_mut().expect("scalable mode");
            scalable.walks = WalkFeatures::ALL
                .with_pages_of_1g(false)
                .with_snooped(false)
                .with_extended_accessed(false);
            unit
        });
        moved(
            "--device intel-iommu,aw-bits=57,x-flts=on,pasid-bits=20",
            |unit| {
                let mut unit = unit;
                let scalable = unit.scalable.as_mut().expect("scalable mode");
                scalable.walks = WalkFeatures::ALL.with_supervisor_requests(false);
                assert_eq!(unit.address_width, AddressWidth::Bits57);
                unit
            },
        );
        moved("--device intel-iommu,x-scalable-mode=off", |unit| unit);
    }
}
