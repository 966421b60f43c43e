use super::*;
use crate::vfio::bars;
use crate::vfio::fake;
use crate::vfio::services::{HostServices, HostState, Pasids};

const SIZES: [u64; 6] = [0x4000, 0, 0x20, 0x100, 0, 0];

fn facts() -> Facts {
    Facts {
        on_root_bus: true,
        has_reset: true,
        shown: Shown::default(),
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

/// 16-bit PASIDs, of which some are privileged, and ATS.
const SHOWN: Shown = Shown {
    pasids: Some(Pasids {
        bits: 16,
        privileged: true,
    }),
    ats: true,
    pri: false,
};

fn built_with(image: &Image, shown: Shown) -> VirtualConfig {
    let facts = Facts { shown, ..facts() };
    build_from(image, facts)
}

/// The place of the extended capability `id`.
fn place_of(config: &VirtualConfig, id: u32) -> Option<u16> {
    let found = visible_extended(config).into_iter();
    found
        .filter(|(_, other)| *other == id)
        .map(|(at, _)| at)
        .next()
}

/// PASID as a device has it whose driver is the host's: 18 bits, execute and privileged requests,
/// enabled with both.
fn add_pasid(image: &mut Image, at: usize, next: u32) {
    let header = 0x0001_001b | next << 20;
    image[at..at + 4].copy_from_slice(&header.to_le_bytes());
    image[at + 4..at + 8].copy_from_slice(&[0x06, 0x12, 0x07, 0x00]);
}

#[test]
fn ats_stays_where_it_is_and_its_control_register_is_the_guests() {
    let mut image = fake::image();
    // Enabled by the host, with global invalidations and 5 of them in the queue; what is above the
    // low byte is not known here.
    image[0x104..0x108].copy_from_slice(&[0x65, 0x01, 0x00, 0x80]);
    let config = built_with(&image, SHOWN);
    assert_eq!(place_of(&config, 0x0f), Some(0x100));
    assert_eq!(bytes(&config, 0x104), [0x65, 0, 0, 0], "off after reset");
    assert_eq!(config.writable[0x104..0x108], [0, 0, 0x1f, 0x80]);
    assert_eq!(config.live[0x100..0x108], [0; 8]);
    assert_eq!(
        config.forward[0x100..0x108],
        [0; 8],
        "the host's is its own"
    );
    let without = Shown {
        ats: false,
        ..SHOWN
    };
    assert_eq!(place_of(&built_with(&image, without), 0x0f), None);
}

#[test]
fn pasid_has_what_the_host_offers_without_execute_requests() {
    let config = built_with(&fake::image(), SHOWN);
    let at = place_of(&config, 0x1b).expect("shown");
    assert_eq!(bytes(&config, at), [0x1b, 0x00, 0x01, 0x00], "the last");
    assert_eq!(bytes(&config, at + 4), [0x04, 0x10, 0, 0]);
    let at = usize::from(at);
    assert_eq!(config.writable[at..at + 8], [0, 0, 0, 0, 0, 0, 5, 0]);
    assert_eq!(config.live[at..at + 8], [0; 8]);
    assert_eq!(config.forward[at..at + 8], [0; 8]);

    let plain = Pasids {
        bits: 20,
        privileged: false,
    };
    let shown = Shown {
        pasids: Some(plain),
        ..Shown::default()
    };
    let config = built_with(&fake::image(), shown);
    let at = place_of(&config, 0x1b).expect("shown");
    assert_eq!(bytes(&config, at + 4), [0, 0x14, 0, 0]);
    assert_eq!(config.writable[usize::from(at) + 6..][..2], [1, 0]);
    assert_eq!(place_of(&built(), 0x1b), None, "unless it is asked for");
}

#[test]
fn pasid_goes_where_the_device_has_it_if_that_can_be_seen() {
    for (at, next) in [(0x158, 0x160), (0x15c, 0), (0xff8, 0)] {
        let mut image = fake::image();
        add_pasid(&mut image, at, next);
        let config = built_with(&image, SHOWN);
        assert_eq!(
            place_of(&config, 0x1b).map(usize::from),
            Some(at),
            "{at:#x}"
        );
    }
}

#[test]
fn bytes_that_only_look_like_pasid_are_not_taken_for_it() {
    let elsewhere = |change: &dyn Fn(&mut Image)| {
        let mut image = fake::image();
        add_pasid(&mut image, 0x300, 0);
        change(&mut image);
        let place = place_of(&built_with(&image, SHOWN), 0x1b).expect("shown");
        assert_ne!(place, 0x300);
        assert_eq!(chunk(&image[..], place), [0; 8], "nothing else is there");
    };
    elsewhere(&|image| image[0x306] = 0); // not enabled
    elsewhere(&|image| image[0x305] = 15); // narrower
    elsewhere(&|image| image[0x305] = 21); // wider than any
    elsewhere(&|image| image[0x304] = 0x16); // a reserved bit
    elsewhere(&|image| image[0x302] = 2); // another version
    elsewhere(&|image| image[0x303] = 0x14); // leads to no capability
    // It is a register of a capability that the guest has.
    let mut image = fake::image();
    add_pasid(&mut image, 0x1b0, 0);
    let place = place_of(&built_with(&image, SHOWN), 0x1b);
    assert_ne!(place, Some(0x1b0));
}

#[test]
fn pasid_overlaps_nothing_that_the_guest_finds() {
    let config = built_with(&fake::image(), SHOWN);
    let at = place_of(&config, 0x1b).expect("shown");
    // After ATS: the host's device has zeroes there.
    assert_eq!(at, 0x108);
    // Vendor-specific registers up to the end, but for eight bytes.
    let mut image = fake::image();
    let mut put = |at: usize, header: u32, length: u32| {
        image[at..at + 4].copy_from_slice(&header.to_le_bytes());
        image[at + 4..at + 8].copy_from_slice(&(length << 20).to_le_bytes());
        image[at + 8..at + 0x10].fill(0x77);
    };
    put(0x100, 0x8001_000b, 0x700);
    put(0x800, 0x0001_000b, 0x7f8);
    image[0x1000 - 8..].fill(0x55);
    let config = built_with(&image, SHOWN);
    assert_eq!(place_of(&config, 0x1b), Some(0xff8));
    image[0x806..0x808].copy_from_slice(&[0x00, 0x80]);
    let config = built_with(&image, SHOWN);
    assert_eq!(place_of(&config, 0x1b), None, "there is no room");
}

#[test]
fn prefixes_for_pasids_are_shown_with_them() {
    let mut image = fake::image();
    assert_eq!(bytes(&built(), 0xa4), [0; 4]);
    assert_eq!(bytes(&built_with(&image, SHOWN), 0xa4), [0, 0, 0x20, 0]);
    image[0xa6] = 0xef;
    assert_eq!(bytes(&built_with(&image, SHOWN), 0xa4), [0, 0, 0xe0, 0]);
}

/// PRI at 148 in place of the serial number: enabled, a request was answered with a failure, in
/// use; 32 requests, 8 allowed.
fn with_pri() -> Box<Image> {
    let mut image = fake::image();
    image[0x148..0x158].copy_from_slice(&[
        0x13, 0x00, 0x01, 0x16, 0x01, 0x00, 0x01, 0x80, 32, 0, 0, 0, 8, 0, 0, 0,
    ]);
    image
}

#[test]
fn pri_is_stopped_at_first_and_has_the_devices_capacity() {
    let shown = Shown { pri: true, ..SHOWN };
    let config = built_with(&with_pri(), shown);
    assert_eq!(place_of(&config, 0x13), Some(0x148));
    let registers = [0, 0, 0, 0x81, 32, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(bytes(&config, 0x14c), registers);
    let writable = [3, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(config.writable[0x14c..0x158], writable);
    assert_eq!(config.live[0x148..0x158], [0; 16]);
    assert_eq!(config.forward[0x148..0x158], [0; 16]);
    let mut image = with_pri();
    image[0x14f] = 0;
    let config = built_with(&image, shown);
    assert_eq!(bytes(&config, 0x14e), [0, 1], "responses need no PASID");
    assert_eq!(place_of(&built_with(&image, SHOWN), 0x13), None);
}

#[test]
fn what_the_host_has_enabled_is_read_from_its_control_registers() {
    let services = |image: &Image| {
        let HostServices { ats, pri } = host_services(image);
        (ats, pri)
    };
    let mut image = fake::image();
    assert_eq!(services(&image), (HostState::Disabled, HostState::Absent));
    image = with_pri();
    image[0x107] = 0x80;
    assert_eq!(services(&image), (HostState::Enabled, HostState::Enabled));
    image[0x14c] = 0xfe;
    image[0x100] = 0x0e;
    assert_eq!(services(&image), (HostState::Absent, HostState::Disabled));
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
        shown: bool,
    ) {
        let mut image: Box<Image> = Box::new([0; 4096]);
        image.copy_from_slice(&seed);
        image[6] |= 0x10;
        image[0x34] = pointer;
        let pasids = Pasids { bits: 20, privileged: true };
        let shown = Shown { pasids: shown.then_some(pasids), ats: shown, pri: shown };
        let facts = Facts { on_root_bus, has_reset: true, shown, msi, msix };
        let config = build(&image, bars::decode(&image, &sizes), facts);
        visible(&config);
        if config.layout.pcie.is_some() {
            visible_extended(&config);
        }
        let nothing_of_the_header_is_forwarded = config.forward[..0x40].iter().all(|byte| *byte == 0);
        assert!(nothing_of_the_header_is_forwarded);
    }
}
