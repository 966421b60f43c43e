use intel_vtd::{PageRequest, Pasid, SourceId};
use vm_memory::{Bytes, GuestAddress};

use super::Tables;
use crate::machine::{Machine, Shape};
use crate::word::Source;

/// With all features, and tables of each translation type.
fn machines() -> impl Iterator<Item = Machine> {
    (0..4).map(|kind| {
        let machine = Machine::new(Shape {
            width: 0,
            features: 0,
        });
        let tables = Tables {
            source: Source::Usual,
            flags: 0xF | kind << 4,
            leaf: 7,
            queue: 8,
        };
        tables.lay(&machine);
        machine
    })
}

#[test]
fn a_device_gets_translations() {
    for machine in machines() {
        for pasid in [None, Pasid::new(1)] {
            let mut view = machine.view(Source::Usual.id());
            let transaction = view.begin_pasid(pasid);
            let answer = transaction
                .translate(0x5678, false)
                .unwrap_or_else(|refusal| {
                    panic!(
                        "{refusal}: {}",
                        machine.unit.explain(SourceId(0x18), pasid, 0x5678)
                    )
                });
            let answered = (answer.address, answer.readable || answer.untranslated_only);
            assert_eq!(answered, (0x5678, true), "{pasid:?}");
        }
    }
}

#[test]
fn a_device_reaches_memory_through_large_and_small_pages_as_user_and_as_supervisor() {
    for (kind, machine) in machines().enumerate() {
        let mut view = machine.view(Source::Usual.id());
        let pasid = Pasid::new(1).unwrap();
        machine.guest.poke(0x5678, 0x1234);
        // Pass-through leads elsewhere beyond low memory.
        let far = if kind == 0 { 0x5678 } else { 0x40_5678 };
        for at in [0x5678, far] {
            for privileged in [false, true] {
                let transaction = if privileged {
                    view.begin_supervisor(pasid)
                } else {
                    view.begin_pasid(Some(pasid))
                };
                let word: u64 = transaction.read_obj(GuestAddress(at)).unwrap();
                assert_eq!(word, 0x1234, "kind {kind}, {at:#x}, {privileged}");
            }
        }
    }
}

#[test]
fn a_page_request_is_taken() {
    for machine in machines() {
        let request = PageRequest {
            address: 0x5678,
            ..PageRequest::default()
        };
        let account = machine.step(|| machine.devices.request_page(0x18, &request));
        assert_eq!(account.deeds.accepted, 1, "{account:?}");
        assert_ne!(machine.guest.peek(0x8000), Some(0));
    }
}
