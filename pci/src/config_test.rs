use std::sync::atomic::Ordering;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::{BarKind, BarWindow, ConfigBuilder, ConfigChange, ConfigSpace, Identity};

pub(crate) const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    class: [0x01, 0x80, 0x02],
    revision: 0x01,
    subsystem_vendor: 0xabcd,
    subsystem_device: 0x1234,
};

/// BAR 0: 32-bit, 4 KiB. BAR 2: 64-bit, 16 KiB. MSI (4 vectors) at 0x40, MSI-X (3 vectors) at 0x58,
/// PCI Express at 0x64, ATS at 0x100, PASID at 0x108, PRI at 0x110.
pub(crate) fn full() -> ConfigSpace {
    let mut builder = ConfigBuilder::endpoint(IDENTITY);
    builder
        .add_bar(0, BarKind::Memory32, 0x1000)
        .add_bar(2, BarKind::Memory64 { prefetchable: true }, 0x4000)
        .set_interrupt_pin(1);
    assert_eq!(builder.add_msi(2), 0x40);
    assert_eq!(builder.add_msix(3, 2, 0x0, 0x800), 0x58);
    assert_eq!(builder.add_pcie_endpoint(), 0x64);
    assert_eq!(builder.add_ats(), 0x100);
    assert_eq!(builder.add_pasid(20, false, true), 0x108);
    assert_eq!(builder.add_pri(32), 0x110);
    builder.build()
}

/// Every writable bit of [`full`], by hand: offset, mask.
const WRITABLE: &[(usize, &[u8])] = &[
    (0x04, &[0x46, 0x05]),
    (0x0c, &[0xff]),
    (0x10, &[0x00, 0xf0, 0xff, 0xff]),
    (0x18, &[0x00, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    (0x3c, &[0xff]),
    // MSI: control, address, data, mask.
    (0x42, &[0x71, 0x00]),
    (
        0x44,
        &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ),
    (0x50, &[0x0f]),
    // MSI-X: control.
    (0x5a, &[0x00, 0xc0]),
    // PCI Express: device control.
    (0x6c, &[0x1f, 0x78]),
    // ATS, PASID and PRI: control; PRI: allocation.
    (0x106, &[0x1f, 0x80]),
    (0x10e, &[0x05]),
    (0x114, &[0x03]),
    (0x11c, &[0xff, 0xff, 0xff, 0xff]),
];

pub(crate) fn bytes(config: &ConfigSpace) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    config.read(0, &mut bytes);
    bytes
}

fn writable() -> Vec<u8> {
    let mut mask = vec![0; 4096];
    for (offset, bits) in WRITABLE {
        mask[*offset..offset + bits.len()].copy_from_slice(bits);
    }
    mask
}

#[test]
fn the_header_holds_the_identity() {
    let config = full();
    let expected = [
        0xf4, 0x1a, 0x42, 0x10, 0, 0, 0x10, 0, 0x01, 0x02, 0x80, 0x01, 0, 0, 0, 0,
    ];
    assert_eq!(bytes(&config)[..16], expected);
    assert_eq!(config.read_u32(0x2c), 0x1234_abcd);
    assert_eq!(config.read_u32(0x10), 0);
    assert_eq!(config.read_u32(0x18), 0x0c);
    assert_eq!(config.read_u32(0x3c), 0x0000_0100);
}

#[test]
fn capabilities_are_linked_in_order() {
    let config = full();
    assert_eq!(config.read_u8(0x34), 0x40);
    assert_eq!(
        (
            config.read_u16(0x40),
            config.read_u16(0x58),
            config.read_u16(0x64)
        ),
        (0x5805, 0x6411, 0x0010)
    );
    assert_eq!(config.read_u32(0x100), 0x1081_000f);
    assert_eq!(config.read_u32(0x108), 0x1101_001b);
    assert_eq!(config.read_u32(0x110), 0x0001_0013);
    let plain = ConfigBuilder::endpoint(IDENTITY).build();
    assert_eq!(
        (
            plain.read_u16(0x06),
            plain.read_u8(0x34),
            plain.read_u32(0x100)
        ),
        (0, 0, 0)
    );
}

#[test]
fn the_pci_express_capability_is_an_integrated_endpoint_with_function_level_reset() {
    let config = full();
    assert_eq!(config.read_u16(0x66), 0x0092);
    let device = config.read_u32(0x68);
    assert_eq!(device & 1 << 28, 1 << 28);
    assert_eq!(device & 7, 0, "128-byte payloads");
    assert_eq!(config.read_u32(0x70), 0, "no link");
    assert_eq!(
        config.read_u32(0x88) & 1 << 21,
        1 << 21,
        "End-End TLP prefixes"
    );
}

#[test]
fn the_capabilities_for_address_translation_read_as_linux_expects() {
    let config = full();
    assert_eq!(
        config.read_u16(0x104),
        0x0020,
        "page-aligned requests, queue depth 32"
    );
    assert_eq!(config.read_u16(0x10c), 0x1404, "20 bits, privileged mode");
    assert_eq!(
        config.read_u16(0x116),
        0x8100,
        "stopped, responses need a PASID"
    );
    assert_eq!(config.read_u32(0x118), 32);
}

#[test]
fn a_bar_answers_sizing_and_holds_an_address() {
    let mut config = full();
    config.write(0x10, &[0xff; 4]);
    assert_eq!(config.read_u32(0x10), 0xffff_f000);
    config.write(0x18, &[0xff; 8]);
    assert_eq!(
        (config.read_u32(0x18), config.read_u32(0x1c)),
        (0xffff_c00c, 0xffff_ffff)
    );
    assert!(config.write(0x18, &0x12_3456_7fff_u64.to_le_bytes()).decode);
    assert_eq!(config.bar_address(2), Some(0x12_3456_4000));
    config.set_bar_address(0, 0xc000_1234);
    assert_eq!(config.bar_address(0), Some(0xc000_1000));
    // Neither BAR 1 nor the high half of BAR 2 is a BAR.
    config.set_bar_address(1, 0xffff_ffff);
    config.set_bar_address(3, 0xffff_ffff);
    config.set_bar_address(6, 0xffff_ffff);
    assert_eq!(
        (
            config.bar_address(1),
            config.bar_address(3),
            config.bar_address(usize::MAX)
        ),
        (None, None, None)
    );
    assert_eq!(config.read_u32(0x14), 0);
}

#[test]
fn windows_exist_while_memory_space_is_enabled_and_the_address_is_usable() {
    let mut config = full();
    config.set_bar_address(2, 0x8_0000_0000);
    assert_eq!(config.decoded_bars().count(), 0);
    assert!(config.write(0x04, &[2, 0]).decode);
    let window = BarWindow {
        bar: 2,
        base: 0x8_0000_0000,
        size: 0x4000,
    };
    assert_eq!(config.decoded_bars().collect::<Vec<_>>(), [window]);
    config.set_bar_address(2, u64::MAX);
    assert_eq!(
        config
            .decoded_bars()
            .map(|window| window.base)
            .collect::<Vec<_>>(),
        [0xffff_ffff_ffff_c000]
    );
    assert!(!config.write(0x04, &[2, 0]).decode, "nothing changed");
}

#[test]
fn the_bus_master_flag_follows_the_command_register() {
    let mut config = full();
    let flag = config.bus_master_flag();
    assert_eq!(config.write(0x04, &[4]).bus_master, Some(true));
    assert!(flag.load(Ordering::Acquire));
    assert_eq!(config.write(0x04, &[4]).bus_master, None);
    // The upper byte alone does not touch it.
    assert_eq!(
        config.write(0x05, &[4]),
        ConfigChange {
            intx: true,
            ..ConfigChange::default()
        }
    );
    config.reset();
    assert!(!flag.load(Ordering::Acquire));
}

#[test]
fn changes_name_the_capability_that_was_written() {
    let mut config = full();
    let quiet = ConfigChange::default();
    assert_eq!(
        config.write(0x42, &[0, 0]),
        ConfigChange { msi: true, ..quiet }
    );
    assert_eq!(
        config.write(0x54, &[0; 4]),
        ConfigChange { msi: true, ..quiet }
    );
    assert_eq!(
        config.write(0x58, &[0; 4]),
        ConfigChange {
            msix: true,
            ..quiet
        }
    );
    assert_eq!(
        config.write(0x5b, &[0x80]),
        ConfigChange {
            msix: true,
            ..quiet
        }
    );
    assert_eq!(config.msix_control(), Some((true, false)));
    assert_eq!(config.write(0x5c, &[0; 4]), quiet);
    assert_eq!(config.write(0x0c, &[0; 4]), quiet);
}

#[test]
fn function_level_reset_is_reported_for_any_access_width_and_reads_as_zero() {
    for (offset, data) in [
        (0x6c, &[0x10, 0xa8][..]),
        (0x6d, &[0x80]),
        (0x6c, &[0, 0x80, 0, 0]),
        (0x68, &[0x80; 8]),
    ] {
        let mut config = full();
        assert!(config.write(offset, data).function_reset, "{offset:#x}");
        assert_eq!(config.read_u16(0x6c) & 0x8000, 0);
    }
    assert!(!full().write(0x6c, &[0x80, 0x7f]).function_reset);
    assert!(!full().write(0x6e, &[0x80, 0x80]).function_reset);
}

#[test]
fn reset_returns_every_byte_to_its_initial_value() {
    let mut config = full();
    let initial = bytes(&config);
    config.write(0, &[0xff; 4096]);
    assert_ne!(bytes(&config), initial);
    config.reset();
    assert_eq!(bytes(&config), initial);
}

#[test]
fn the_pin_is_asserted_unless_something_keeps_it_quiet() {
    let mut config = full();
    assert!(!config.intx_level());
    config.set_interrupt_status(true);
    assert!(config.intx_level());
    assert_eq!(config.read_u16(0x06), 0x18);
    for (offset, value) in [(0x05_u16, 0x04_u8), (0x42, 0x01), (0x5b, 0x80)] {
        config.write(offset, &[value]);
        assert!(!config.intx_level(), "{offset:#x}");
        config.write(offset, &[0]);
        assert!(config.intx_level());
    }
    config.set_interrupt_status(false);
    assert!(!config.intx_level());
}

#[test]
fn write_one_to_clear_bits_clear_and_never_set() {
    let mut builder = ConfigBuilder::endpoint(IDENTITY);
    let offset = builder.add_capability(0x09, &[0x0f], &[]);
    builder.set_write_one_to_clear(offset + 2, &[0x05]);
    let mut config = builder.build();
    config.write(offset + 2, &[0xf1]);
    assert_eq!(config.read_u8(offset + 2), 0x0e);
    config.write(offset + 2, &[0xff]);
    assert_eq!(config.read_u8(offset + 2), 0x0a);
}

#[test]
fn accesses_beyond_the_end_read_ones_and_write_nothing() {
    let mut config = full();
    let mut data = [0; 4];
    config.read(0xffe, &mut data);
    assert_eq!(data, [0, 0, 0xff, 0xff]);
    config.read(u16::MAX, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(config.write(u16::MAX, &[0xff; 8]), ConfigChange::default());
}

proptest! {
    #[test]
    fn writes_change_writable_bits_and_nothing_else(
        writes in vec((any::<u16>().prop_map(|offset| offset % 0x140), vec(any::<u8>(), 0..9)), 1..40),
        far in vec((any::<u16>(), vec(any::<u8>(), 0..70)), 0..4),
    ) {
        let mut config = full();
        let mask = writable();
        for (offset, data) in writes.iter().chain(&far) {
            let before = bytes(&config);
            config.write(*offset, data);
            let after = bytes(&config);
            for (at, (old, new)) in before.iter().zip(&after).enumerate() {
                let written = at.checked_sub(usize::from(*offset)).and_then(|index| data.get(index));
                let expected = written.map_or(*old, |value| old & !mask[at] | value & mask[at]);
                prop_assert_eq!(*new, expected, "byte {:#x}", at);
            }
            let _ = config.decoded_bars().count();
            let _ = config.take_pending_msi();
        }
    }
}
