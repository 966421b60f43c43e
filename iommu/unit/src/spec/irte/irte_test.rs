//! Layout, validity and source check of interrupt remapping table entries.

use super::*;

#[test]
fn each_field_lies_where_section_9_9_puts_it() {
    let entry = Irte::from_bits(0x0000_0000_0006_1234_89AB_CDEF_00C3_0F3D);
    assert!(entry.present() && !entry.fault_disable() && entry.logical());
    assert!(entry.redirection_hint() && entry.level() && !entry.posted());
    assert_eq!(entry.delivery_mode(), 1);
    assert_eq!(entry.available(), 0xF);
    assert_eq!(entry.vector(), 0xC3);
    assert_eq!(entry.destination(), 0x89AB_CDEF);
    assert_eq!(entry.source(), 0x1234);
    assert_eq!(entry.qualifier(), 2);
    assert_eq!(entry.verification(), 1);
}

#[test]
fn every_reserved_bit_makes_an_entry_invalid() {
    let reserved = (12..=15).chain(24..=31).chain(84..=127);
    for bit in reserved {
        assert!(!Irte::from_bits(1 | 1 << bit).is_valid(true), "{bit}");
    }
    let free = (0..=4).chain(8..=11).chain(16..=23).chain(32..=82);
    for bit in free {
        assert!(Irte::from_bits(1 | 1 << bit).is_valid(true), "{bit}");
    }
}

#[test]
fn without_extended_mode_only_bits_15_to_8_are_a_destination() {
    for bit in 32..=63 {
        let entry = Irte::from_bits(1 | 1 << bit);
        assert_eq!(entry.is_valid(false), (40..=47).contains(&bit), "{bit}");
    }
    let entry = Irte::from_bits(0x0000_AB00_0000_0001);
    assert_eq!(entry.apic_id(false), 0xAB);
    assert_eq!(entry.apic_id(true), 0xAB00);
}

#[test]
fn delivery_modes_3_and_6_and_validation_type_3_are_invalid() {
    for mode in 0..8_u128 {
        let valid = Irte::from_bits(1 | mode << 5).is_valid(true);
        assert_eq!(valid, mode != 3 && mode != 6, "{mode}");
    }
    assert!(!Irte::from_bits(1 | 3 << 82).is_valid(true));
}

#[test]
fn the_qualifier_tells_which_function_bits_count() {
    // SID 0x1230, SVT 1.
    let entry = |qualifier: u128| Irte::from_bits(1 | 0x1230 << 64 | qualifier << 80 | 1 << 82);
    let accepted = |qualifier| {
        (0x1228..0x1240)
            .filter(|source| entry(qualifier).accepts(*source))
            .collect::<Vec<u16>>()
    };
    assert_eq!(accepted(0), [0x1230]);
    assert_eq!(accepted(1), [0x1230, 0x1234]);
    assert_eq!(accepted(2), [0x1230, 0x1232, 0x1234, 0x1236]);
    assert_eq!(
        accepted(3),
        [
            0x1230, 0x1231, 0x1232, 0x1233, 0x1234, 0x1235, 0x1236, 0x1237
        ]
    );
}

#[test]
fn a_bus_range_accepts_its_ends_and_an_empty_one_nothing() {
    let range = |sid: u128| Irte::from_bits(1 | sid << 64 | 2 << 82);
    assert!(range(0x1014).accepts(0x1000) && range(0x1014).accepts(0x14FF));
    assert!(!range(0x1014).accepts(0x0FFF) && !range(0x1014).accepts(0x1500));
    assert!(!range(0x1410).accepts(0x1200));
}

#[test]
fn without_verification_every_source_is_accepted() {
    let entry = Irte::from_bits(1 | 0x1230 << 64);
    assert!(entry.accepts(0) && entry.accepts(0xFFFF));
}
