//! A unit that continues where another one stopped.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Bench, STATUS, full, sharing};
use super::*;
use crate::spec::ids::SourceId;

/// A unit at work: scalable mode, translation, queue and interrupt remapping on, two faults recorded, their event pending
/// behind its mask, and root and table registers rewritten without a command.
fn busy() -> Bench {
    let bench = Bench::new(&sharing());
    bench.enable_wide_queue();
    bench.enable_interrupts(true);
    bench.pass_through_scalable();
    bench.write32(0xD0, 0x5000);
    let mut view = bench.unit.port(SourceId(0x20)).view();
    for address in [0x1_0000, 0x2_0000] {
        let read = view.begin().read_obj::<u32>(GuestAddress(address));
        assert!(read.is_err());
    }
    bench.write64(0x20, 0x7777_7400);
    bench.write64(0xB8, 0x6666_6000);
    bench
}

/// A fresh unit on the same memory.
fn successor(bench: &Bench) -> Bench {
    let mut successor = Bench::new(&sharing());
    let events: Arc<dyn crate::EventSink> = Arc::clone(&successor.sink) as _;
    successor.memory = Arc::clone(&bench.memory);
    successor.unit = Unit::new(Arc::clone(&bench.memory), &sharing(), events).unwrap();
    successor
}

#[test]
fn every_register_reads_as_before() {
    let bench = busy();
    let state = bench.unit.save().unwrap();
    let next = successor(&bench);
    next.unit.restore(&state).unwrap();
    for at in (0..0x1000).step_by(4) {
        assert_eq!(next.read32(at), bench.read32(at), "register {at:#x}");
    }
    assert_eq!(next.unit.save().unwrap(), state);
    assert!(next.sink.take().is_empty());
}

#[test]
fn work_goes_on_with_what_was_latched() {
    let bench = busy();
    let state = bench.unit.save().unwrap();
    let next = successor(&bench);
    let mut view = next.unit.port(SourceId(0x20)).view();
    assert!(view.begin().read_obj::<u32>(GuestAddress(0x1000)).is_ok());
    next.unit.restore(&state).unwrap();

    // Translation is on, by the tables from before the register was rewritten.
    assert!(view.begin().read_obj::<u32>(GuestAddress(0x1000)).is_err());
    let mut passing = next.unit.port(SourceId(0x18)).view();
    assert!(
        passing
            .begin()
            .read_obj::<u32>(GuestAddress(0x1000))
            .is_ok()
    );
    // The third fault goes to the third record.
    assert_ne!(next.read32(next_record(2)) >> 31, 0);
    assert_eq!(next.read32(next_record(3)) >> 31, 0);

    next.submit_wide(&[[0x5_0000_0025, STATUS, 0, 0]]);
    assert_eq!(next.peek32(STATUS), 5);
    // Remapping is on, and the entry is not present.
    assert!(
        next.unit
            .resolve_interrupt(SourceId(0x18), 0xFEE0_0010, 0)
            .is_err()
    );
    // The event that waited behind its mask comes when that goes.
    next.unmask_faults();
    assert_eq!(next.sink.take(), [(0xFEE0_5000, 0x31)]);
}

fn next_record(index: u64) -> u64 {
    u64::from(crate::spec::registers::FAULT_RECORDS) + 16 * index + 12
}

#[test]
fn a_state_survives_serialization() {
    let state = busy().unit.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<UnitState>(&text).unwrap(), state);
}

#[test]
fn a_state_of_another_version_is_refused_before_the_rest_is_read() {
    let state = busy().unit.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert!(text.starts_with("{\"version\":1,"), "{text}");
    // A later release may have other fields.
    let later = "{\"version\":2,\"capability\":\"a text\"}";
    let error = serde_json::from_str::<UnitState>(later).unwrap_err();
    let words = "the state has version 2, and this release reads version 1 only";
    assert!(error.to_string().contains(words), "{error}");
    // So is one that did not come through a deserializer.
    let later = UnitState {
        version: 2,
        ..state
    };
    let next = Bench::new(&sharing());
    let fresh = next.unit.save().unwrap();
    assert_eq!(next.unit.restore(&later), Err(StateError::Version(2)));
    assert_eq!(next.unit.save().unwrap(), fresh);
}

#[test]
fn a_state_of_another_unit_or_a_damaged_one_changes_nothing() {
    let bench = busy();
    let state = bench.unit.save().unwrap();
    let other = Bench::new(&full());
    assert!(matches!(
        other.unit.restore(&state),
        Err(StateError::OtherUnit { field: "ECAP", .. })
    ));
    let next = successor(&bench);
    let fresh = next.unit.save().unwrap();
    let damaged = |damage: &dyn Fn(&mut UnitState)| {
        let mut state = state.clone();
        damage(&mut state);
        let outcome = next.unit.restore(&state);
        assert_eq!(next.unit.save().unwrap(), fresh);
        outcome.unwrap_err()
    };
    let first = state.registers[0].offset;
    assert_eq!(
        damaged(&|state| {
            state.registers.remove(0);
        }),
        StateError::Missing(first)
    );
    assert_eq!(
        damaged(&|state| state.registers.insert(
            0,
            RegisterWord {
                offset: 0x10,
                value: 0
            }
        )),
        StateError::Register(0x10)
    );
    assert_eq!(
        damaged(&|state| state.registers.push(RegisterWord {
            offset: 0xFF0,
            value: 1
        })),
        StateError::Register(0xFF0)
    );
    assert_eq!(
        damaged(&|state| state.next_fault_record = 8),
        StateError::FaultRecord(8)
    );
}
