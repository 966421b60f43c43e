//! What following the guest costs, in calls of the host, steps and looks at bindings; never in time.

use super::testing::*;
use crate::fake::FakeFeatures;
use intel_vtd::SourceId;

const PASIDS: FakeFeatures = FakeFeatures {
    pasid_bits: 8,
    ..NESTING
};
const RW: u64 = 3;

/// How many bindings are looked at within `what`.
fn looks(what: impl FnOnce()) -> usize {
    take_looks();
    what();
    take_looks()
}

#[test]
fn an_invalidation_looks_at_no_binding_that_it_does_not_name() {
    let (guest, _) = Guest::with(&[PASIDS; 4]);
    let bind = |source: SourceId, pasid, domain: u16| {
        let top = guest.world.first_stage(4).top;
        guest.enter_with(source, pasid, entry::first_stage(top, domain.into()));
        guest.announce_pasid(domain, pasid);
    };
    for (source, domain) in SOURCES.into_iter().zip(5..) {
        for pasid in 1..=16 {
            bind(source, pasid, domain);
        }
    }
    let paging = guest.world.second_stage(4);
    guest.enter_with(SOURCES[0], 17, entry::second_stage(&paging, 20));
    guest.announce_pasid(20, 17);
    guest.host.take_calls();
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    for (invalidation, calls) in [
        (pasid_pages(5, 7, 0x1000, 0), 1),
        (pasid_pages(99, 7, 0x1000, 0), 0),
        (pages(20, 0x1000, 0), 1),
        (pages(99, 0x1000, 0), 0),
    ] {
        let looks = looks(|| guest.invalidate(&[invalidation]));
        assert_eq!(looks, 0, "{invalidation:?}");
        assert_eq!(guest.host.take_calls().len(), calls, "{invalidation:?}");
    }
}
