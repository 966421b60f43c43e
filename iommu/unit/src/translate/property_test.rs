//! Properties of translation over tables that nobody wrote by hand.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::testing::{ECAP, SOURCE, World, gates, with_pasid};
use super::{Access, Request, RequestKind};
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::registers::TableMode;

/// All that the tests put anything into.
const LOOKED_AT: usize = 0x30_0000;

fn accesses() -> impl Strategy<Value = Access> {
    prop_oneof![
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::Atomic),
        Just(Access::ZeroLengthRead)
    ]
}

fn kinds() -> impl Strategy<Value = RequestKind> {
    prop_oneof![
        4 => Just(RequestKind::Untranslated),
        1 => any::<bool>().prop_map(|no_write| RequestKind::TranslationRequest { no_write }),
        1 => Just(RequestKind::Translated),
        1 => Just(RequestKind::PageRequest),
    ]
}

/// Words that have a chance to lead somewhere: mostly a page of the first 64 KiB above 1 MiB, with
/// some low bits.
fn words() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0_u64..16, 0_u64..4096).prop_map(|(page, low)| 0x10_0000 | page << 12 | low),
        1 => any::<u64>(),
        1 => Just(0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn whatever_stands_in_memory_a_request_gets_an_answer_or_a_fault(
        content in vec(words(), 8192),
        mode in 0_u8..4,
        caps in any::<(u64, u64)>(),
        gated in any::<bool>(),
        requests in vec(
            (any::<u16>(), proptest::option::of(0_u32..0x10_0000), words(), accesses(), kinds(), any::<bool>()),
            32,
        ),
    ) {
        let mut world = World::scalable();
        let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_le_bytes()).collect();
        world.memory.write_slice(&bytes, GuestAddress(0x10_0000)).unwrap();
        world.latched.root.address = 0x10_0000;
        world.latched.root.mode = match mode {
            0 => TableMode::Legacy,
            1 | 2 => TableMode::Scalable,
            _ => TableMode::AbortDma,
        };
        if gated {
            // SAGAW and MGAW stay what a unit can have.
            let cap = caps.0 & !0x003f_1f00 | 0x0038_0e00;
            world.gates = gates(cap, caps.1 | 1 << 43);
        }
        for (source, pasid, address, access, kind, privileged) in requests {
            let request = Request {
                source: SourceId(source & 0x71f),
                pasid: pasid.and_then(Pasid::new),
                address,
                access,
                privileged,
                kind,
            };
            if let Ok(answer) = world.translate(&request) {
                prop_assert_eq!(answer.address & 0xfff, address & 0xfff);
                prop_assert!(answer.page_shift >= 12);
            }
        }
    }

    #[test]
    fn pages_translate_as_they_were_mapped_in_either_stage(
        pages in vec((0_u64..64, 0_u64..4, 0_u64..0x4000, any::<bool>()), 1..64),
        probes in vec((0_u64..64, 0_u64..4, 0_u64..4096, any::<bool>()), 64),
    ) {
        let world = World::scalable();
        let first = world.first_stage(4);
        let second = world.second_stage(4);
        world.set_pasid(1, &[0x41, 0x80_0000, first.top]);
        world.set_pasid(2, &[second.top | 0x89, 0x80_0000]);
        let mut model = BTreeMap::new();
        for (slot, far, output, writable) in pages {
            let input = far * 0x10_0020_0000 + slot * 4096;
            world.map(&first, input, 1, output * 4096 + if writable { 0x67 } else { 0x25 });
            world.map(&second, input, 1, output * 4096 + if writable { 3 } else { 1 });
            model.insert(input, (output * 4096, writable));
        }
        for (slot, far, offset, write) in probes {
            let input = far * 0x10_0020_0000 + slot * 4096;
            let access = if write { Access::Write } else { Access::Read };
            let expected = match model.get(&input) {
                None => [Err(0x71), Err(0x79)],
                Some((_, false)) if write => [Err(0x85); 2],
                Some((output, _)) => [Ok(output + offset); 2],
            };
            for (pasid, expected) in [1, 2].into_iter().zip(expected) {
                let outcome = world.translate(&with_pasid(pasid, input + offset, access));
                let outcome = outcome.map(|answer| answer.address).map_err(|fault| fault.reason.code());
                prop_assert_eq!(outcome, expected);
            }
        }
    }

    #[test]
    fn requests_never_change_anything_but_accessed_and_dirty_bits(
        content in vec(words(), 4096),
        input in 0_u64..0x1000_0000,
        access in accesses(),
    ) {
        let world = World::scalable();
        let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_le_bytes()).collect();
        world.memory.write_slice(&bytes, GuestAddress(0x20_0000)).unwrap();
        world.set_pasid(0, &[0x20_02c9, 0x80_0000, 0x21_0080]);
        let mut before = vec![0; LOOKED_AT];
        world.memory.read_slice(&mut before, GuestAddress(0)).unwrap();
        let request = Request::untranslated(SOURCE, input, access);
        let _ = world.translate(&request);
        let mut after = vec![0; LOOKED_AT];
        world.memory.read_slice(&mut after, GuestAddress(0)).unwrap();
        for (old, new) in before.chunks_exact(8).zip(after.chunks_exact(8)).filter(|(old, new)| old != new) {
            let old = u64::from_le_bytes(old.try_into().unwrap());
            let new = u64::from_le_bytes(new.try_into().unwrap());
            prop_assert_eq!(old & new, old, "bits are only set");
            prop_assert_eq!((new & !old) & !0x760, 0, "bits 5, 6, 10 of the first stage, 8, 9 of the second");
        }
    }
}

#[test]
fn the_capabilities_of_the_tests_are_those_that_their_comment_names() {
    let ecap = gates(0, ECAP).caps.ecap;
    assert!(ecap.smts() && ecap.nest() && ecap.ssads() && ecap.rps() && ecap.ptrs() && !ecap.mts());
}
