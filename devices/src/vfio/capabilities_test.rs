use super::*;
use crate::vfio::bars;
use crate::vfio::fake;

const SIZES: [u64; 6] = [0x4000, 0, 0x20, 0x100, 0, 0];

fn facts() -> Facts {
    Facts {
        on_root_bus: true,
        has_reset: true,
        msi: 4,
        msix: 65,
    }
}

fn build_from(image: &Image, facts: Facts) -> VirtualConfig {
    build(image, bars::decode(image, &SIZES), facts)
}

fn built() -> VirtualConfig {
    build_from(&fake::image(), facts())
}

fn bytes<const N: usize>(config: &VirtualConfig, offset: u16) -> [u8; N] {
    chunk(&config.bytes[..], offset)
}

/// Offsets of what the guest finds in its list.
fn visible(config: &VirtualConfig) -> Vec<(u16, u8)> {
    let [mut at] = bytes(config, 0x34);
    let mut found = Vec::new();
    while at != 0 {
        let [id, next] = bytes(config, at.into());
        found.push((at.into(), id));
        at = next;
        assert!(found.len() < 50, "a loop");
    }
    found
}

fn visible_extended(config: &VirtualConfig) -> Vec<(u16, u32)> {
    let mut at = 0x100;
    let mut found = Vec::new();
    while at != 0 {
        let header = u32::from_le_bytes(bytes(config, at));
        if header == 0 {
            break;
        }
        found.push((at, header & 0xffff));
        at = u16::try_from(header >> 20).expect("12 bits");
        assert!(found.len() < 500, "a loop");
    }
    found
}

#[test]
fn the_header_is_the_hosts_but_of_one_function_and_without_addresses() {
    let config = built();
    assert_eq!(bytes(&config, 0), [0x36, 0x1b, 0x10, 0x00]);
    assert_eq!(bytes(&config, 4), [0, 0, 0x10, 0], "everything is off");
    assert_eq!(bytes(&config, 8), [0x02, 0x02, 0x08, 0x01]);
    assert_eq!(bytes(&config, 0x0c), [0, 0, 0, 0]);
    assert_eq!(bytes(&config, 0x10), [4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes(&config, 0x18), [0; 8], "I/O and the prefetch bit");
    assert_eq!(bytes(&config, 0x2c), [0xf4, 0x1a, 0x00, 0x11]);
    assert_eq!(bytes(&config, 0x30), [0; 4], "no expansion ROM");
    assert_eq!(
        bytes(&config, 0x3c),
        [0, 0],
        "no pin before it is connected"
    );
}

#[test]
fn known_capabilities_stay_where_they_are_and_others_are_gone() {
    let config = built();
    assert_eq!(
        visible(&config),
        [(0x40, 0x11), (0x60, 1), (0x80, 0x10), (0xc0, 5), (0xe0, 9)]
    );
    // VPD: neither its bytes nor the host's registers can be seen or written.
    assert_eq!(bytes(&config, 0xf0), [0; 16]);
    assert!(config.live[0xf0..0x100].iter().all(|live| *live == 0));
    assert!(config.writable[0xf0..0x100].iter().all(|bits| *bits == 0));
    // What belongs to no capability can be read.
    assert_eq!(config.live[0x4c..0x60], [0xff; 0x14]);
    assert_eq!(config.writable[0x4c..0x60], [0; 0x14]);
    assert_eq!(config.live[0x40..0x4c], [0; 12]);
}

#[test]
fn extended_capabilities_that_the_host_keeps_are_stepped_over() {
    let config = built();
    assert_eq!(
        visible_extended(&config),
        [(0x100, 0), (0x148, 3), (0x1a0, 0x0b), (0x200, 1)]
    );
    assert_eq!(bytes(&config, 0x104), [0; 4], "nothing of ATS");
    assert_eq!(bytes(&config, 0x14c), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(bytes(&config, 0x160), [0; 8], "nothing of SR-IOV");
    assert_eq!(bytes(&config, 0x1a4), [0x34, 0x12, 0x00, 0x02]);
    assert_eq!(config.forward[0x1a8..0x1c0], [0xff; 0x18]);
    assert_eq!(config.forward[0x1c0..], [0; 0xe40], "up to its length");
    assert_eq!(config.live[0x204..0x22c], [0xff; 0x28]);
    assert_eq!(
        config.forward[0x200..0x230],
        [0; 0x30],
        "errors are the host's"
    );
}

#[test]
fn an_integrated_endpoint_has_no_link_and_one_behind_a_port_has() {
    let config = built();
    assert_eq!(bytes(&config, 0x82), [0x92, 0x00]);
    // Extended tags, role-based errors, FLR; 128-byte payloads.
    assert_eq!(bytes(&config, 0x84), [0x20, 0x80, 0x00, 0x10]);
    assert_eq!(
        bytes(&config, 0x88),
        [0x10, 0x29],
        "relaxed ordering, 512-byte reads"
    );
    assert_eq!(bytes(&config, 0x8c), [0; 8]);
    assert_eq!(bytes(&config, 0xa4), [0; 24]);
    let behind = Facts {
        on_root_bus: false,
        has_reset: false,
        ..facts()
    };
    let config = build_from(&fake::image(), behind);
    assert_eq!(bytes(&config, 0x82), [0x02, 0x00]);
    assert_eq!(
        bytes(&config, 0x84),
        [0x20, 0x80, 0x00, 0x00],
        "no reset, no FLR"
    );
    assert_eq!(bytes(&config, 0x8c), [0x43, 0x00, 0x00, 0x05], "no ASPM");
    assert_eq!(config.live[0x92..0x94], [0xff, 0x13]);
    assert_eq!(bytes(&config, 0xac), [0x0e, 0, 0, 0]);
}

#[test]
fn a_device_that_is_not_pci_express_has_no_extended_capabilities() {
    let mut image = fake::image();
    image[0x80] = 0x0c;
    let config = build_from(&image, facts());
    assert_eq!(visible_extended(&config), []);
    assert!(config.live[0x100..].iter().all(|live| *live == 0));
}

#[test]
fn power_management_wakes_nobody() {
    let config = built();
    // Version 3 and D1; no soft reset, D0.
    assert_eq!(bytes(&config, 0x62), [0x03, 0x02, 0x08, 0x00]);
    assert_eq!(config.writable[0x62..0x68], [0, 0, 3, 0, 0, 0]);
}

#[test]
fn message_capabilities_follow_what_vfio_offers() {
    let config = built();
    assert_eq!(bytes(&config, 0xc2), [0x84, 0x01]);
    assert_eq!(config.writable[0xc2..0xc4], [0x71, 0]);
    assert_eq!(config.writable[0xd0..0xd8], [0x0f, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        bytes(&config, 0x42),
        [0x40, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]
    );
    let fewer = Facts {
        msi: 3,
        msix: 8,
        ..facts()
    };
    let config = build_from(&fake::image(), fewer);
    assert_eq!(bytes(&config, 0xc2), [0x82, 0x01], "two of MSI");
    assert_eq!(bytes(&config, 0x42), [0x07, 0x00], "eight of MSI-X");
    let none = Facts {
        msi: 0,
        msix: 0,
        ..facts()
    };
    let config = build_from(&fake::image(), none);
    assert_eq!(visible(&config), [(0x60, 1), (0x80, 0x10), (0xe0, 9)]);
    assert_eq!((config.layout.msi, config.layout.msix), (None, None));
}

#[test]
fn a_table_that_leaves_its_bar_is_not_shown() {
    for (at, value) in [
        (0x44, 2),
        (0x44, 1),
        (0x44, 7),
        (0x45, 0x40),
        (0x48, 3),
        (0x4b, 0xff),
    ] {
        let mut image = fake::image();
        image[at] = value;
        let config = build_from(&image, facts());
        assert_eq!(config.layout.msix, None, "{value:#x} at {at:#x}");
        assert!(visible(&config).iter().all(|(_, id)| *id != 0x11));
    }
}

#[test]
fn lists_that_loop_overlap_or_leave_their_place_end() {
    let facts = facts();
    // To itself, back, into the header, to the end.
    for next in [0x40, 0x60, 0x10, 0x3f, 0xfc, 0xff] {
        let mut image = fake::image();
        image[0x61] = next;
        visible(&build_from(&image, facts));
    }
    // Each register its own capability: all of one kind, all overlapping.
    for id in [0x01, 0x05, 0x09, 0x10, 0x11, 0xff, 0x00] {
        let mut image = fake::image();
        for at in (0x40..0x100).step_by(4) {
            image[at] = id;
            image[at + 1] = u8::try_from(at + 4).unwrap_or(0);
        }
        let config = build_from(&image, facts);
        let seen = visible(&config);
        if id != 0x09 {
            assert!(seen.len() <= 1, "{id:#x}: {seen:?}");
        }
    }
    let mut image = fake::image();
    for at in (0x100..0x1000).step_by(4) {
        let next = u32::try_from(at + 4).unwrap_or(0) & 0xffc;
        let header = 0x1000b | next << 20;
        image[at..at + 4].copy_from_slice(&header.to_le_bytes());
    }
    visible_extended(&build_from(&image, facts));
    image.fill(0xff);
    assert_eq!(visible(&build_from(&image, facts)), []);
    image[0xffc..].copy_from_slice(&0x1000_0001_u32.to_le_bytes());
    image[0x100..0x104].copy_from_slice(&0xffc0_000f_u32.to_le_bytes());
    visible_extended(&build_from(&image, facts));
}

proptest::proptest! {
    #[test]
    fn any_image_makes_a_configuration_space_whose_lists_end(
        seed in proptest::collection::vec(proptest::prelude::any::<u8>(), 4096),
        pointer in 0x40_u8..,
        sizes in proptest::array::uniform6(proptest::prelude::any::<u64>()),
        msi in 0_u32..40,
        msix in 0_u32..4000,
        on_root_bus: bool,
    ) {
        let mut image: Box<Image> = Box::new([0; 4096]);
        image.copy_from_slice(&seed);
        image[6] |= 0x10;
        image[0x34] = pointer;
        let facts = Facts { on_root_bus, has_reset: true, msi, msix };
        let config = build(&image, bars::decode(&image, &sizes), facts);
        visible(&config);
        if config.layout.pcie.is_some() {
            visible_extended(&config);
        }
        let nothing_of_the_header_is_forwarded = config.forward[..0x40].iter().all(|byte| *byte == 0);
        assert!(nothing_of_the_header_is_forwarded);
    }
}
