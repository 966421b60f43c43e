//! PASIDs, ATS and PRI for each answer of the host and each wish of the user.

use intel_vtd::spec::registers::{Capability, Caps, ExtendedCapability};
use intel_vtd::{Scalable, Stages};
use intel_vtd_host::IntelInfo;
use intel_vtd_host::TableReach;

use super::*;
use crate::config::HostDevice;

/// ECAP.FSTS and ECAP.SRS.
const FIRST_STAGE: u64 = 1 << 47 | 1 << 31;

fn config(pasid: Option<bool>, ats: Option<bool>) -> VfioConfig {
    VfioConfig {
        device: HostDevice::Descriptor(9),
        iommufd: "a".to_owned(),
        needs_reset: true,
        pasid,
        ats,
        pri: None,
    }
}

fn host(pasid_bits: u8, ecap: u64) -> HostCapabilities {
    HostCapabilities {
        intel: Some(IntelInfo {
            caps: Caps {
                cap: Capability::new(),
                ecap: ExtendedCapability::from_bits(ecap),
            },
            no_read_only_parent: true,
        }),
        plain: TableReach {
            address_bits: 47,
            page_size: 0x1000,
        },
        dirty_tracking: None,
        nesting_parent: None,
        pasid_bits,
        privileged_pasids: true,
        ats: true,
    }
}

fn services(ats: HostState) -> HostServices {
    HostServices {
        ats,
        pri: HostState::Absent,
    }
}

/// A unit with everything, in scalable mode.
fn unit() -> UnitConfig {
    UnitConfig::legacy(46)
        .with_scalable(Scalable::new(Stages::Both).with_pasid_bits(20))
        .with_device_tlb(true)
}

fn chosen(config: &VfioConfig, bits: u8, ats: HostState, unit: Option<&UnitConfig>) -> Shown {
    choose(config, &host(bits, FIRST_STAGE), services(ats), unit).expect("nothing was refused")
}

fn shown(bits: u8, ats: bool) -> Shown {
    Shown {
        pasids: Some(Pasids {
            bits,
            privileged: true,
        }),
        ats,
        pri: false,
    }
}

fn refused(
    config: &VfioConfig,
    host: &HostCapabilities,
    ats: HostState,
    unit: Option<&UnitConfig>,
) -> String {
    let error = choose(config, host, services(ats), unit).expect_err("refused");
    error.to_string()
}

#[test]
fn what_unit_and_host_have_is_shown_unless_it_is_turned_off() {
    let (auto, unit) = (config(None, None), unit());
    let with = |config: &VfioConfig| chosen(config, 20, HostState::Enabled, Some(&unit));
    assert_eq!(with(&auto), shown(20, true));
    assert_eq!(with(&config(Some(true), Some(true))), shown(20, true));
    assert_eq!(with(&config(Some(false), Some(false))), Shown::default());
    assert_eq!(with(&config(None, Some(false))), shown(20, false));
    let narrow = unit
        .clone()
        .with_scalable(Scalable::new(Stages::Both).with_pasid_bits(12));
    let width = |bits, unit| chosen(&auto, bits, HostState::Enabled, Some(unit)).pasids;
    assert_eq!(width(20, &narrow), shown(12, true).pasids);
    assert_eq!(width(16, &unit), shown(16, true).pasids);
}

#[test]
fn privileged_requests_are_shown_if_device_and_unit_have_them() {
    let privileged = |host: &HostCapabilities, unit: &UnitConfig| {
        let shown = choose(
            &config(None, None),
            host,
            services(HostState::Absent),
            Some(unit),
        );
        shown.expect("chosen").pasids.expect("PASIDs").privileged
    };
    let (host, mut unit) = (host(20, FIRST_STAGE), unit());
    assert!(privileged(&host, &unit));
    let without = HostCapabilities {
        privileged_pasids: false,
        ..host.clone()
    };
    assert!(!privileged(&without, &unit));
    let mut scalable = unit.scalable.expect("scalable mode");
    scalable.walks.supervisor_requests = false;
    unit.scalable = Some(scalable);
    assert!(!privileged(&host, &unit));
}

#[test]
fn what_is_left_open_is_hidden_where_it_cannot_be_had() {
    let (auto, unit) = (config(None, None), unit());
    let nothing = Shown::default();
    assert_eq!(chosen(&auto, 0, HostState::Absent, Some(&unit)), nothing);
    assert_eq!(chosen(&auto, 0, HostState::Disabled, Some(&unit)), nothing);
    assert_eq!(chosen(&auto, 20, HostState::Enabled, None), nothing);
    let plain = UnitConfig::legacy(46);
    assert_eq!(chosen(&auto, 20, HostState::Enabled, Some(&plain)), nothing);
}

#[test]
fn pasids_that_cannot_be_had_are_refused_with_the_reason_and_the_remedy() {
    let on = config(Some(true), None);
    let error = |bits, unit: Option<&UnitConfig>| {
        refused(&on, &host(bits, FIRST_STAGE), HostState::Absent, unit)
    };
    for unit in [None, Some(&UnitConfig::legacy(46))] {
        let error = error(20, unit);
        assert!(
            error.contains("no remapping unit that takes them"),
            "{error}"
        );
        assert!(error.contains("pasid-bits=20"), "{error}");
    }
    let none = error(0, Some(&unit()));
    assert!(none.contains("IOMMU_GET_HW_INFO tells of 0 bits"), "{none}");
    assert!(none.ends_with("drop pasid=on"), "{none}");
    let shadow = unit().with_scalable(Scalable::new(Stages::Second).with_pasid_bits(20));
    let second = error(20, Some(&shadow));
    assert!(second.contains("write x-flts=on"), "{second}");
    // A host without first-stage tables puts second-stage ones behind PASIDs.
    let old = host(20, 0);
    let shown = choose(&on, &old, services(HostState::Absent), Some(&shadow)).expect("shown");
    assert_eq!(shown.pasids.map(|pasids| pasids.bits), Some(20));
}

#[test]
fn ats_that_cannot_be_had_is_refused_with_the_reason_and_the_remedy() {
    let on = config(None, Some(true));
    let error = |ats, unit: Option<&UnitConfig>| refused(&on, &host(0, 0), ats, unit);
    let unit = unit();
    let no_unit = error(HostState::Enabled, None);
    assert!(no_unit.contains("device-iotlb=on"), "{no_unit}");
    let absent = error(HostState::Absent, Some(&unit));
    assert!(absent.contains("has no ATS capability"), "{absent}");
    let disabled = error(HostState::Disabled, Some(&unit));
    assert!(
        disabled.contains("the host's kernel has not enabled ATS"),
        "{disabled}"
    );
    for error in [no_unit, absent, disabled] {
        assert!(error.ends_with("drop ats=on"), "{error}");
    }
}

#[test]
fn ats_is_hidden_where_the_hosts_iommu_does_not_let_the_device_have_it() {
    let unit = unit();
    let host = HostCapabilities {
        ats: false,
        ..host(20, FIRST_STAGE)
    };
    let chosen = |on| {
        let services = services(HostState::Enabled);
        choose(&config(None, on), &host, services, Some(&unit))
    };
    assert_eq!(chosen(None).expect("hidden"), shown(20, false));
    let error = chosen(Some(true)).expect_err("refused").to_string();
    assert!(
        error.contains("IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED"),
        "{error}"
    );
    assert!(error.ends_with("drop ats=on"), "{error}");
}

#[test]
fn pri_is_shown_beside_ats_where_unit_and_host_take_page_requests() {
    let unit = unit().with_scalable(
        Scalable::new(Stages::Both)
            .with_pasid_bits(20)
            .with_page_requests(true),
    );
    let choose = |pri, ats, host_pri, unit| {
        let config = VfioConfig {
            pri,
            ..config(None, ats)
        };
        let services = HostServices {
            ats: HostState::Enabled,
            pri: host_pri,
        };
        choose(&config, &host(20, FIRST_STAGE), services, unit)
            .map(|shown| shown.pri)
            .map_err(|error| error.to_string())
    };
    let (enabled, with) = (HostState::Enabled, Some(&unit));
    assert_eq!(choose(None, None, enabled, with), Ok(true));
    assert_eq!(choose(Some(true), None, enabled, with), Ok(true));
    assert_eq!(choose(Some(false), None, enabled, with), Ok(false));
    let plain = UnitConfig::legacy(46);
    let cases = [
        (None, enabled, None, "svm=on"),
        (None, enabled, Some(&plain), "svm=on"),
        (Some(false), enabled, with, "write ats=on"),
        (None, HostState::Absent, with, "has no PRI capability"),
        (None, HostState::Disabled, with, "has not enabled PRI"),
    ];
    for (ats, host_pri, unit, reason) in cases {
        assert_eq!(choose(None, ats, host_pri, unit), Ok(false), "{reason}");
        let error = choose(Some(true), ats, host_pri, unit).expect_err(reason);
        assert!(error.contains(reason), "{error}");
        assert!(error.ends_with("drop pri=on"), "{error}");
    }
}

#[test]
fn people_are_told_in_a_line() {
    assert_eq!(
        Description(shown(16, true)).to_string(),
        "16-bit PASIDs, ATS, no PRI"
    );
    assert_eq!(
        Description(Shown::default()).to_string(),
        "no PASIDs, no ATS, no PRI"
    );
}
