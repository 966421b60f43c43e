use super::*;
use crate::vfio::bars;
use crate::vfio::capabilities::{self, Facts};
use crate::vfio::fake;
use crate::vfio::services::Shown;

/// Message control of the made-up device's MSI-X and MSI; the latter has 64-bit addresses, masks
/// and four vectors.
const MSIX: u16 = 0x42;
const MSI: u16 = 0xc2;

fn config() -> VirtualConfig {
    let image = fake::image();
    let facts = Facts {
        on_root_bus: true,
        has_reset: true,
        shown: Shown::default(),
        msi: 4,
        msix: 65,
    };
    let bars = bars::decode(&image, &[0x4000, 0, 0x20, 0x100, 0, 0]);
    capabilities::build(&image, bars, facts)
}

fn message(data: u32) -> Option<MsiMessage> {
    Some(MsiMessage {
        address: 0x1_fee0_1004,
        data,
    })
}

#[test]
fn a_device_that_nobody_has_set_up_does_not_interrupt() {
    assert_eq!(wanted(&config(), true), Wanted::Off);
}

#[test]
fn the_pin_is_used_once_memory_is_on_and_only_if_there_is_one() {
    let mut config = config();
    config.write(0x04, &[0x02, 0x00]);
    assert_eq!(wanted(&config, true), Wanted::Intx);
    assert_eq!(wanted(&config, false), Wanted::Off);
}

#[test]
fn messages_are_used_whether_or_not_memory_is_on() {
    let mut config = config();
    config.write(MSI, &[0x01, 0x00]);
    let one = Wanted::Msi(vec![Some(MsiMessage {
        address: 0,
        data: 0,
    })]);
    assert_eq!(wanted(&config, true), one);
    config.write(0x04, &[0x02, 0x00]);
    assert_eq!(wanted(&config, true), one);
}

#[test]
fn msix_comes_before_msi_and_masked_vectors_do_not_turn_it_off() {
    let mut config = config();
    config.write(MSI, &[0x01, 0x00]);
    config.write(MSIX, &[0x00, 0x80]);
    assert_eq!(wanted(&config, true), Wanted::Msix);
    config.write(MSIX, &[0x00, 0xc0]);
    assert_eq!(wanted(&config, true), Wanted::Msix);
    // The function mask alone enables nothing.
    config.write(MSIX, &[0x00, 0x40]);
    assert!(matches!(wanted(&config, true), Wanted::Msi(_)));
}

#[test]
fn an_msi_vector_sends_its_number_in_the_low_bits_of_the_data_unless_it_is_masked() {
    let mut config = config();
    config.write(0xc4, &[0x04, 0x10, 0xe0, 0xfe, 0x01, 0, 0, 0]);
    config.write(0xcc, &[0x4f, 0x00]);
    config.write(0xd0, &[0b0101, 0, 0, 0]);
    // Two vectors, then four.
    config.write(MSI, &[0x11, 0x00]);
    assert_eq!(
        wanted(&config, true),
        Wanted::Msi(vec![None, message(0x4f)])
    );
    config.write(MSI, &[0x21, 0x00]);
    assert_eq!(
        wanted(&config, true),
        Wanted::Msi(vec![None, message(0x4d), None, message(0x4f)])
    );
}

#[test]
fn no_more_vectors_are_used_than_the_capability_offers() {
    let mut config = config();
    config.write(MSI, &[0x71, 0x00]);
    let Wanted::Msi(messages) = wanted(&config, true) else {
        panic!("MSI is enabled");
    };
    assert_eq!(messages.len(), 4);
}
