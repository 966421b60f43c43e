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
    let config = full()
        .with_scalable(Scalable::new(Stages::Second))
        .with_caching_mode(true);
    let caps = config.capabilities().unwrap();
    assert_eq!(caps.cap.into_bits(), 0xC0D2_078C_226F_0686);
    assert_eq!(caps.ecap.into_bits(), 0x0001_6800_00F0_0FDB);
}

#[test]
fn each_width_offers_its_depth_and_the_smaller_ones() {
    for (bits, stages, sagaw, mgaw, five_levels) in [
        (39, Stages::Second, 0x0200, 0x0026_0000, 0),
        (48, Stages::Nested, 0x0600, 0x002F_0000, 0),
        (
            57,
            Stages::Nested,
            0x0E00,
            0x0038_0000,
            0x1000_0000_0000_0000,
        ),
    ] {
        let config = full()
            .with_address_width(AddressWidth::from_bits(bits).unwrap())
            .with_scalable(Scalable::new(stages));
        let cap = config.capabilities().unwrap().cap.into_bits();
        assert_eq!(cap & 0x1F00, sagaw, "{bits}");
        assert_eq!(cap & 0x003F_0000, mgaw, "{bits}");
        assert_eq!(cap & 0x1000_0000_0000_0000, five_levels, "{bits}");
    }
    assert_eq!(AddressWidth::from_bits(40), None);
}

#[test]
fn a_unit_can_be_narrower_than_its_tables_but_not_than_others() {
    let narrowed = |bits, to| {
        let width = AddressWidth::from_bits(bits).unwrap();
        let config = UnitConfig::legacy(46).with_address_width(width);
        let caps = config.with_guest_address_width(to).capabilities();
        caps.map(|caps| (caps.cap.sagaw(), caps.guest_address_width()))
    };
    for (bits, least, sagaw) in [(39, 31, 0x02), (48, 40, 0x06), (57, 49, 0x0E)] {
        for to in least..=bits {
            assert_eq!(narrowed(bits, to), Ok((sagaw, to)), "{bits} to {to}");
        }
        for to in [0, least - 1, bits + 1, u8::MAX] {
            assert_eq!(narrowed(bits, to), Err(ConfigError::GuestAddressWidth(to)));
        }
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
fn flags_that_walks_set_need_walks_that_snoop() {
    let scalable = Scalable::new(Stages::Nested).with_pasid_bits(20);
    let snooped = |on| scalable.with_walks(WalkFeatures::ALL.with_snooped(on));
    let ecap = |config: UnitConfig| config.capabilities().unwrap().ecap.into_bits();
    let both = ecap(full().with_scalable(snooped(true)));
    let neither = ecap(full().with_scalable(snooped(false)));
    // EAFS, SSADS, SMPWCS.
    assert_eq!(both ^ neither, 1 << 34 | 1 << 45 | 1 << 48);
    assert_eq!(neither & both, neither);
}

#[test]
fn sharing_address_spaces_adds_what_each_part_of_it_means() {
    let ecap = |config: UnitConfig| config.capabilities().unwrap().ecap.into_bits();
    let base = 0x0001_E800_04F0_0FDB;
    // PASID, PSS 20 bits, SRS, EAFS, RPS.
    let pasids = full().with_scalable(Scalable::new(Stages::Nested).with_pasid_bits(20));
    assert_eq!(ecap(pasids), base | 0x0002_019C_8000_0000);
    let one_bit = full().with_scalable(Scalable::new(Stages::Second).with_pasid_bits(1));
    assert_eq!(ecap(one_bit), 0x0003_6900_80F0_0FDB);
    // DT, NWFS: also without scalable mode.
    let device_tlb = plain().with_device_tlb(true);
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
    let refused = |config: UnitConfig, words: [&str; 2]| {
        let message = config.capabilities().unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    let with = |scalable| full().with_scalable(scalable);
    let nested = Scalable::new(Stages::Nested);
    refused(
        UnitConfig::scalable(31),
        ["host_address_width is 31", "32 to 52"],
    );
    refused(
        UnitConfig::scalable(53),
        ["host_address_width is 53", "32 to 52"],
    );
    refused(
        with(nested.with_pasid_bits(21)),
        ["pasid_bits is 21", "at most 20"],
    );
    refused(
        sharing().with_device_tlb(false),
        ["page_requests is on", "device_tlb on"],
    );
    for stages in [Stages::First, Stages::Both, Stages::Nested] {
        refused(
            with(nested.with_stages(stages)).with_address_width(AddressWidth::Bits39),
            ["address_width is 39", "48 or 57"],
        );
    }
}
