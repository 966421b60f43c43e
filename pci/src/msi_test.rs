use crate::{ConfigBuilder, ConfigSpace, Identity, MsiMessage};

const MSI: u16 = 0x40;

/// Four vectors, enabled, bus master on, two of them allocated, data 0x4100.
fn enabled() -> ConfigSpace {
    let mut builder = ConfigBuilder::endpoint(Identity::default());
    assert_eq!(builder.add_msi(2), MSI);
    let mut config = builder.build();
    assert_eq!(
        config.read_u16(MSI + 2),
        0x0184,
        "64-bit, maskable, four vectors"
    );
    config.write(0x04, &[4]);
    config.write(MSI + 4, &0xfee0_1004_u32.to_le_bytes());
    config.write(MSI + 8, &0x0000_0100_u32.to_le_bytes());
    config.write(MSI + 0xc, &0x4103_u16.to_le_bytes());
    config.write(MSI + 2, &[0x11]);
    config
}

#[test]
fn a_vector_replaces_the_low_bits_of_the_data() {
    let mut config = enabled();
    let message = |data| {
        Some(MsiMessage {
            address: 0x100_fee0_1004,
            data,
        })
    };
    assert_eq!(config.msi_notify(0), message(0x4102));
    assert_eq!(config.msi_notify(1), message(0x4103));
    assert_eq!(config.msi_notify(2), None, "not allocated");
    assert_eq!(config.msi_notify(255), None);
}

#[test]
fn more_vectors_than_offered_are_not_allocated() {
    let mut config = enabled();
    config.write(MSI + 2, &[0x71]);
    assert!(config.msi_notify(3).is_some());
    assert_eq!(config.msi_notify(4), None);
}

#[test]
fn nothing_is_sent_while_disabled_or_without_bus_master() {
    let mut config = enabled();
    config.write(MSI + 2, &[0x10]);
    assert_eq!(config.msi_notify(0), None);
    config.write(MSI + 2, &[0x11]);
    config.write(0x04, &[0]);
    assert_eq!(config.msi_notify(0), None);
    assert_eq!(config.read_u32(MSI + 0x14), 0, "not pending either");
}

#[test]
fn a_masked_vector_stays_pending_until_it_is_unmasked() {
    let mut config = enabled();
    config.write(MSI + 0x10, &[0x03]);
    assert_eq!((config.msi_notify(1), config.msi_notify(1)), (None, None));
    assert_eq!(config.read_u32(MSI + 0x14), 2);
    assert_eq!(config.take_pending_msi(), []);
    config.write(MSI + 0x10, &[0x01]);
    assert_eq!(
        config.take_pending_msi(),
        [MsiMessage {
            address: 0x100_fee0_1004,
            data: 0x4103
        }]
    );
    assert_eq!(config.take_pending_msi(), []);
    assert_eq!(config.read_u32(MSI + 0x14), 0);
}

#[test]
fn a_function_without_msi_sends_nothing() {
    let mut config = ConfigBuilder::endpoint(Identity::default()).build();
    assert!(!config.msi_enabled());
    assert_eq!(
        (config.msi_notify(0), config.take_pending_msi()),
        (None, Vec::new())
    );
}
