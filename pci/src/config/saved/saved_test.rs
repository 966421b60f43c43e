use std::sync::atomic::Ordering;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::config_test::{IDENTITY, bytes, full};
use crate::{BarKind, ConfigBuilder, ConfigSpace, ConfigState, Identity};

#[derive(Clone, Debug)]
enum Step {
    Write(u16, Vec<u8>),
    Interrupt(bool),
    Notify(u8),
    TakePending,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![0..0x120_u16, 0..0x1000_u16];
    prop_oneof![
        6 => (offset, vec(any::<u8>(), 1..8)).prop_map(|(offset, data)| Step::Write(offset, data)),
        1 => any::<bool>().prop_map(Step::Interrupt),
        2 => (0..4_u8).prop_map(Step::Notify),
        1 => Just(Step::TakePending),
    ]
}

/// What a step says, in a form that can be compared.
fn act(config: &mut ConfigSpace, step: &Step) -> String {
    match step {
        Step::Write(offset, data) => format!("{:?}", config.write(*offset, data)),
        Step::Interrupt(pending) => {
            config.set_interrupt_status(*pending);
            config.intx_level().to_string()
        }
        Step::Notify(vector) => format!("{:?}", config.msi_notify(*vector)),
        Step::TakePending => format!("{:?}", config.take_pending_msi()),
    }
}

proptest! {
    #[test]
    fn a_restored_one_goes_on_as_the_saved_one_does(
        before in vec(step(), 0..40),
        after in vec(step(), 0..40),
    ) {
        let (mut saved, mut restored) = (full(), full());
        for step in &before {
            act(&mut saved, step);
        }
        let gate = restored.bus_master_flag();
        restored.restore(&saved.save()).expect("the same function");
        prop_assert_eq!(gate.load(Ordering::Acquire), saved.command().bus_master);
        prop_assert_eq!(bytes(&restored), bytes(&saved));
        for step in &after {
            prop_assert_eq!(act(&mut restored, step), act(&mut saved, step), "{:?}", step);
        }
        prop_assert_eq!(bytes(&restored), bytes(&saved));
        restored.reset();
        prop_assert_eq!(bytes(&restored), bytes(&full()), "a reset is one of this function");
    }

    /// Any change of a bit that neither software nor the function can change is found.
    #[test]
    fn a_flipped_bit_is_refused_or_one_that_changes(at in 0..0x120_usize, bit in 0..8_u8) {
        let mut state = full().save();
        let mut damaged = state.bytes.as_slice().to_vec();
        damaged[at] ^= 1 << bit;
        state.bytes = damaged.clone().into();
        let mut config = full();
        match config.restore(&state) {
            Ok(()) => prop_assert_eq!(bytes(&config), damaged),
            Err(_) => prop_assert_eq!(bytes(&config), bytes(&full())),
        }
    }
}

/// Why what `change` has made of [`full`] is refused there.
fn refusal(change: impl FnOnce(&mut ConfigState)) -> String {
    let mut state = full().save();
    change(&mut state);
    let mut config = full();
    let error = config.restore(&state).expect_err("refused");
    assert_eq!(bytes(&config), bytes(&full()), "nothing has changed");
    error.to_string()
}

fn flip(at: usize, bits: u8) -> String {
    refusal(|state| {
        let mut bytes = state.bytes.as_slice().to_vec();
        bytes[at] ^= bits;
        state.bytes = bytes.into();
    })
}

#[test]
fn the_first_difference_is_named() {
    let cases = [
        (
            0x00,
            "the vendor id is 0x10421af5 in the saved machine and 0x10421af4 here",
        ),
        (
            0x02,
            "the device id is 0x10431af4 in the saved machine and 0x10421af4 here",
        ),
        (
            0x08,
            "the revision is 0x01800200 in the saved machine and 0x01800201 here",
        ),
        (
            0x0b,
            "the class is 0x00800201 in the saved machine and 0x01800201 here",
        ),
        (
            0x0e,
            "the header type is 0x00010000 in the saved machine and 0x00000000 here",
        ),
        (
            0x18,
            "the kind of BAR 2 is 0x0000000d in the saved machine and 0x0000000c here",
        ),
        (
            0x2e,
            "the subsystem device id is 0x1235abcd in the saved machine and 0x1234abcd here",
        ),
        (
            0x34,
            "the place of the first capability is 0x00000041 in the saved machine and 0x00000040 here",
        ),
        (
            0x3d,
            "the interrupt pin is 0x00000000 in the saved machine and 0x00000100 here",
        ),
        (
            0x58,
            "register 0x0 of capability 0x11 (MSI-X) is 0x00026410 in the saved machine and 0x00026411 here",
        ),
        (
            0x68,
            "register 0x4 of capability 0x10 (PCI Express) is 0x10008001 in the saved machine and 0x10008000 here",
        ),
        (
            0x10d,
            "register 0x4 of extended capability 0x1b (PASID) is 0x00001504 in the saved machine and 0x00001404 here",
        ),
        (
            0x800,
            "register 0x6f0 of extended capability 0x13 (PRI) is 0x00000001 in the saved machine and 0x00000000 here",
        ),
    ];
    for (at, expected) in cases {
        assert_eq!(flip(at, 1), expected, "{at:#x}");
    }
}

#[test]
fn bars_of_other_sizes_and_other_lengths_are_refused() {
    let mut builder = ConfigBuilder::endpoint(IDENTITY);
    builder.add_bar(0, BarKind::Memory32, 0x2000);
    let mut other = builder.build();
    let mut builder = ConfigBuilder::endpoint(IDENTITY);
    builder.add_bar(0, BarKind::Memory32, 0x1000);
    let error = other.restore(&builder.build().save()).expect_err("smaller");
    let text = "the size of BAR 0 is 0x1000 in the saved machine and 0x2000 here";
    assert_eq!(error.to_string(), text);
    let text = refusal(|state| state.bytes = vec![0; 4095].into());
    assert_eq!(
        text,
        "configuration space cannot be: 4095 bytes instead of 4096"
    );
}

#[test]
fn a_function_without_what_the_saved_one_has_names_it() {
    let mut plain = ConfigBuilder::endpoint(Identity {
        vendor: IDENTITY.vendor,
        device: IDENTITY.device,
        ..Identity::default()
    })
    .build();
    let error = plain.restore(&full().save()).expect_err("another one");
    let text = "the status register is 0x00100000 in the saved machine and 0x00000000 here";
    assert_eq!(error.to_string(), text);
}
