use super::*;
use crate::vfio::bars;
use crate::vfio::capabilities::{Facts, build};
use crate::vfio::fake;
use crate::vfio::services::{Pasids, Shown};

fn config() -> VirtualConfig {
    config_with(Shown::default())
}

fn config_with(shown: Shown) -> VirtualConfig {
    config_of(&fake::image(), shown)
}

fn config_of(image: &Image, shown: Shown) -> VirtualConfig {
    let facts = Facts {
        on_root_bus: true,
        has_reset: true,
        shown,
        msi: 4,
        msix: 65,
    };
    let sizes = [0x4000, 0, 0x20, 0x100, 0, 0];
    build(image, bars::decode(image, &sizes), facts)
}

fn read<const N: usize>(config: &VirtualConfig, offset: u16) -> [u8; N] {
    let mut data = [0; N];
    config.read(offset, &mut data, |_, data| data.fill(0xa5));
    data
}

#[test]
fn the_guest_enables_ats_and_pasid_without_the_device_and_a_reset_disables_them() {
    let mut config = config_with(Shown {
        pasids: Some(Pasids {
            bits: 20,
            privileged: true,
        }),
        ats: true,
        pri: false,
    });
    // ATS at 100, PASID at 108: nothing of them comes from the host, which reads as a5.
    let disabled = [[0x20, 0, 0, 0], [4, 20, 0, 0]];
    assert_eq!([read(&config, 0x104), read(&config, 0x10c)], disabled);
    assert_eq!(config.write(0x106, &[0xff, 0xff]), Effects::default());
    assert_eq!(config.write(0x10e, &[0xff, 0xff]), Effects::default());
    assert_eq!(read(&config, 0x104), [0x20, 0, 0x1f, 0x80]);
    assert_eq!(read(&config, 0x10c), [4, 20, 5, 0], "no execute requests");
    // What they can do is not the guest's to change, nor what they are.
    for at in [0x100, 0x104, 0x108, 0x10c] {
        config.write(at, &[0, 0]);
    }
    assert_eq!(read(&config, 0x100), [0x0f, 0, 0x81, 0x14]);
    assert_eq!(read(&config, 0x104), [0x20, 0, 0x1f, 0x80]);
    assert_eq!(read(&config, 0x108), [0x1b, 0, 1, 0]);
    assert_eq!(read(&config, 0x10c), [4, 20, 5, 0]);
    config.reset();
    assert_eq!([read(&config, 0x104), read(&config, 0x10c)], disabled);
}

#[test]
fn pri_is_stopped_while_it_is_not_enabled_and_its_reset_reads_as_0() {
    let mut image = fake::image();
    image[0x148..0x150].copy_from_slice(&[0x13, 0, 1, 0x16, 1, 0, 0, 0x80]);
    let shown = Shown {
        pri: true,
        ..Shown::default()
    };
    let mut config = config_of(&image, shown);
    assert_eq!(read(&config, 0x14c), [0, 0, 0, 0x81]);
    config.write(0x14c, &[2, 0]);
    assert_eq!(read(&config, 0x14c), [0, 0, 0, 0x81], "reset");
    config.write(0x154, &[0x20, 0, 0, 0]);
    config.write(0x14c, &[1, 0]);
    assert_eq!(read(&config, 0x14c), [1, 0, 0, 0x80], "enabled");
    config.write(0x14e, &[0xff, 0xff]);
    assert_eq!(read(&config, 0x14c), [1, 0, 0, 0x80], "nothing to clear");
    assert_eq!(read(&config, 0x154), [0x20, 0, 0, 0]);
    config.reset();
    assert_eq!(read(&config, 0x14c), [0, 0, 0, 0x81]);
    assert_eq!(read(&config, 0x154), [0; 4]);
}

#[test]
fn sizing_a_bar_shows_its_size_and_type() {
    let mut config = config();
    let effects = config.write(0x10, &[0xff; 4]);
    assert!(effects.decode);
    config.write(0x14, &[0xff; 4]);
    config.write(0x18, &[0xff; 4]);
    config.write(0x1c, &[0xff; 4]);
    config.write(0x30, &[0xff; 4]);
    assert_eq!(
        read(&config, 0x10),
        [0x04, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]
    );
    assert_eq!(read(&config, 0x18), [0; 4], "I/O is hidden");
    assert_eq!(read(&config, 0x1c), [0x00, 0xff, 0xff, 0xff]);
    assert_eq!(read(&config, 0x30), [0; 4], "the ROM is hidden");
}

#[test]
fn windows_are_decoded_in_d0_with_memory_space_enabled() {
    let mut config = config();
    config.assign_bar(0, 0x40_0000_4000);
    config.assign_bar(3, 0xe000_0100);
    config.assign_bar(1, 0xdead_0000);
    assert_eq!(config.windows(), []);
    let effects = config.write(4, &[2, 0]);
    assert!(effects.decode && effects.command);
    let windows = [(0, 0x40_0000_4000, 0x4000), (3, 0xe000_0100, 0x100)];
    let windows = windows.map(|(bar, base, size)| BarWindow { bar, base, size });
    assert_eq!(config.windows(), windows);
    let effects = config.write(0x64, &[3]);
    assert_eq!((effects.decode, effects.power), (true, Some(3)));
    assert_eq!(config.windows(), []);
    let effects = config.write(0x64, &[0]);
    assert_eq!((effects.decode, effects.power), (true, Some(0)));
    assert_eq!(config.windows(), windows);
    config.write(0x10, &[0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(config.windows(), windows[1..], "zero is no address");
    config.write(0x10, &[0xff; 8]);
    assert_eq!(config.windows().len(), 2);
}

#[test]
fn a_power_state_that_the_device_lacks_is_not_entered() {
    let mut config = config();
    config.write(0x64, &[1, 0]);
    assert_eq!(config.power_state(), 1, "D1 exists");
    let effects = config.write(0x64, &[2, 0]);
    assert_eq!((effects.power, effects.decode), (None, false));
    assert_eq!(read(&config, 0x64), [0x09, 0]);
}

#[test]
fn live_bits_come_from_the_host_and_others_do_not() {
    let config = config();
    assert_eq!(read(&config, 0x06), [0x10, 0x00], "bit 3 of a5 is clear");
    let mut data = [0; 4];
    config.read(4, &mut data, |_, data| data.fill(0xff));
    assert_eq!(data, [0, 0, 0x18, 0]);
    assert_eq!(read(&config, 0xe0), [0x09, 0x00, 0x10, 0xa5]);
}

#[test]
fn accesses_beyond_the_end_read_ones_and_write_nothing() {
    let mut config = config();
    assert_eq!(read(&config, 0xffe), [0xff; 4]);
    assert_eq!(config.write(0xffe, &[1; 4]), Effects::default());
    assert_eq!(config.write(0xffff, &[]), Effects::default());
}

#[test]
fn vendor_specific_registers_go_to_the_host_with_the_width_of_the_access() {
    let mut config = config();
    let effects = config.write(0xe0, &[1, 2, 3, 4]);
    assert_eq!(effects.forward, [(0xe3, vec![4])]);
    let effects = config.write(0xec, &[1, 2, 3, 4]);
    assert_eq!(effects.forward, [(0xec, vec![1, 2, 3, 4])]);
    assert_eq!(config.write(0xf0, &[1, 2]).forward, []);
}

#[test]
fn writes_are_recognized_by_any_byte_that_they_touch() {
    let mut config = config();
    assert!(config.write(0x42, &[0, 0x80]).msix);
    assert!(config.write(0x40, &[0; 4]).msix);
    assert!(!config.write(0x44, &[0; 4]).msix);
    assert!(config.write(0xd0, &[0; 4]).msi);
    assert!(!config.write(0xd8, &[0; 4]).msi);
    assert!(config.write(0x88, &[0, 0x80]).reset);
    assert!(config.write(0x89, &[0x80]).reset);
    assert!(!config.write(0x88, &[0x80]).reset);
    assert_eq!(read(&config, 0x88), [0, 0], "it reads as zero");
}
