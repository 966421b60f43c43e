//! Capability words and refusals.

use super::*;
use crate::unit::testing::{full, plain, sharing};

#[test]
fn everything_on_advertises_every_feature_that_works() {
    let caps = full().capabilities().unwrap();
    assert_eq!(caps.cap.into_bits(), 0xC1D2_078C_226F_0606);
    assert_eq!(caps.ecap.into_bits(), 0x0001_E800_04F0_0FDB);
}

#[test]
fn a_legacy_unit_advertises_nothing_of_scalable_mode_or_interrupts() {
    let caps = plain().capabilities().unwrap();
    assert_eq!(caps.cap.into_bits(), 0x80D2_078C_226F_0606);
    assert_eq!(caps.ecap.into_bits(), 0x0000_0000_0000_0FC3);
}

#[test]
fn second_stage_alone_matches_what_a_shadowed_guest_is_shown() {
    let config = UnitConfig {
        first_stage: false,
        nested: false,
        caching_mode: true,
        ..full()
    };
    let caps = config.capabilities().unwrap();
    assert_eq!(caps.cap.into_bits(), 0xC0D2_078C_226F_0686);
    assert_eq!(caps.ecap.into_bits(), 0x0001_6800_00F0_0FDB);
}

#[test]
fn each_width_offers_its_depth_and_the_smaller_ones() {
    for (aw_bits, sagaw, mgaw, five_levels) in [
        (39, 0x0200, 0x0026_0000, 0),
        (48, 0x0600, 0x002F_0000, 0),
        (57, 0x0E00, 0x0038_0000, 0x1000_0000_0000_0000),
    ] {
        let wide = aw_bits != 39;
        let config = UnitConfig {
            aw_bits,
            first_stage: wide,
            nested: wide,
            ..full()
        };
        let cap = config.capabilities().unwrap().cap.into_bits();
        assert_eq!(cap & 0x1F00, sagaw, "{aw_bits}");
        assert_eq!(cap & 0x003F_0000, mgaw, "{aw_bits}");
        assert_eq!(cap & 0x1000_0000_0000_0000, five_levels, "{aw_bits}");
    }
}

#[test]
fn what_is_not_implemented_is_never_advertised() {
    let caps = full().capabilities().unwrap();
    // RWBF, PLMR, PHMR, PI, ECMDS.
    assert_eq!(caps.cap.into_bits() & 0x2800_0000_0000_0070, 0);
    // DT, MTS, PRS, ERS, SRS, NWFS, EAFS, PSS, PASID, DIT, PDS, VCS, RPS and all above.
    assert_eq!(caps.ecap.into_bits() & 0xFFFE_17FE_E200_0004, 0);
    let caps = sharing().capabilities().unwrap();
    assert_eq!(caps.cap.into_bits() & 0x2800_0000_0000_0070, 0);
    // MTS, ERS, DIT, VCS, TDXCS and all above: ADMS, RPRIVS, HPTS, PTRS, SSIRWS, SMS, ...
    assert_eq!(caps.ecap.into_bits() & 0xFFFC_1200_4200_0000, 0);
}

#[test]
fn sharing_address_spaces_adds_what_each_part_of_it_means() {
    let ecap = |config: UnitConfig| config.capabilities().unwrap().ecap.into_bits();
    let base = 0x0001_E800_04F0_0FDB;
    // PASID, PSS 20 bits, SRS, EAFS, RPS.
    let pasids = UnitConfig {
        pasid_bits: 20,
        ..full()
    };
    assert_eq!(ecap(pasids), base | 0x0002_019C_8000_0000);
    let one_bit = UnitConfig {
        pasid_bits: 1,
        first_stage: false,
        nested: false,
        ..full()
    };
    assert_eq!(ecap(one_bit), 0x0003_6900_80F0_0FDB);
    // DT, NWFS: also without scalable mode.
    let device_tlb = UnitConfig {
        device_tlb: true,
        ..plain()
    };
    assert_eq!(ecap(device_tlb), 0x0000_0002_0000_0FC7);
    // All of it, with PRS and PDS.
    assert_eq!(ecap(sharing()), base | 0x0002_059E_A000_0004);
    // CAP has nothing of it.
    assert_eq!(
        sharing().capabilities().unwrap().cap,
        full().capabilities().unwrap().cap
    );
}

#[test]
fn a_refusal_names_the_field_its_value_and_the_remedy() {
    let message = |config: UnitConfig| config.capabilities().unwrap_err().to_string();
    let odd = message(UnitConfig {
        aw_bits: 40,
        ..full()
    });
    assert!(
        odd.contains("aw_bits is 40") && odd.contains("39, 48 or 57"),
        "{odd}"
    );
    let narrow = message(UnitConfig {
        host_address_width: 31,
        ..full()
    });
    assert!(narrow.contains("host_address_width is 31"), "{narrow}");
    let short = message(UnitConfig {
        aw_bits: 39,
        ..full()
    });
    assert!(
        short.contains("first_stage") && short.contains("48 or 57"),
        "{short}"
    );
    let long = message(UnitConfig {
        pasid_bits: 21,
        ..full()
    });
    assert!(
        long.contains("pasid_bits is 21") && long.contains("at most 20"),
        "{long}"
    );
    let none = message(UnitConfig {
        second_stage: false,
        ..plain()
    });
    assert!(none.contains("second_stage"), "{none}");
}

#[test]
fn a_feature_is_refused_without_the_ones_it_needs() {
    let needs = |config: UnitConfig| match config.capabilities() {
        Err(ConfigError::Needs { field, needs }) => (field, needs),
        other => panic!("{other:?}"),
    };
    let none = plain();
    let first_stage = UnitConfig {
        first_stage: true,
        ..none.clone()
    };
    assert_eq!(needs(first_stage), ("first_stage", "scalable"));
    let nested = UnitConfig {
        nested: true,
        ..none.clone()
    };
    assert_eq!(needs(nested), ("nested", "scalable"));
    let nested = UnitConfig {
        nested: true,
        scalable: true,
        ..none.clone()
    };
    assert_eq!(needs(nested), ("nested", "first_stage"));
    let nested = UnitConfig {
        second_stage: false,
        ..full()
    };
    assert_eq!(needs(nested), ("nested", "second_stage"));
    let pasids = UnitConfig {
        pasid_bits: 20,
        ..none.clone()
    };
    assert_eq!(needs(pasids), ("pasid_bits", "scalable"));
    let page_requests = UnitConfig {
        page_requests: true,
        ..none.clone()
    };
    assert_eq!(needs(page_requests), ("page_requests", "scalable"));
    let page_requests = UnitConfig {
        device_tlb: false,
        ..sharing()
    };
    assert_eq!(needs(page_requests), ("page_requests", "device_tlb"));
    let x2apic = UnitConfig {
        x2apic: true,
        ..none
    };
    assert_eq!(needs(x2apic), ("x2apic", "interrupt_remapping"));
}
