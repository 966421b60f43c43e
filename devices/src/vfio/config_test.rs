use super::*;
use crate::vfio::bars;
use crate::vfio::capabilities::{Facts, build};
use crate::vfio::fake;

fn config() -> VirtualConfig {
    let image = fake::image();
    let facts = Facts {
        on_root_bus: true,
        has_reset: true,
        msi: 4,
        msix: 65,
    };
    let sizes = [0x4000, 0, 0x20, 0x100, 0, 0];
    build(&image, bars::decode(&image, &sizes), facts)
}

fn read<const N: usize>(config: &VirtualConfig, offset: u16) -> [u8; N] {
    let mut data = [0; N];
    config.read(offset, &mut data, |_, data| data.fill(0xa5));
    data
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
