//! Devices whose page requests go to the guest, beside others.

use super::testing::*;
use super::*;
use crate::fake::{Call, FakeFeatures, errno};
use crate::host_iommu::{FaultQueueId, NestedOptions};
use crate::page_requests::PageResponses;

const ASKING: SourceId = SOURCES[0];
const SILENT: SourceId = SOURCES[1];
const QUEUE: FaultQueueId = FaultQueueId(99);

/// Where no response goes.
struct Nobody;

impl PageResponses for Nobody {
    fn respond(&self, _: SourceId, _: PageResponse) {}
}

fn features(page_requests: bool) -> FakeFeatures {
    FakeFeatures {
        nesting: true,
        page_requests,
        ..FakeFeatures::default()
    }
}

/// One device that asks, if the host lets it, and one that does not, both behind the same
/// first-stage tables.
fn guest(enabled: bool) -> Guest {
    let guest = Guest::new(Limits::default());
    for (source, page_requests) in [
        (
            ASKING,
            Some(PageRequestPath {
                queue: QUEUE,
                responses: Arc::new(Nobody),
            }),
        ),
        (SILENT, None),
    ] {
        let enabled = enabled && source == ASKING;
        let device = AssignedDevice {
            page_requests,
            ..assigned_device(&guest.host, source, features(enabled))
        };
        guest.devices.add(device).unwrap();
    }
    let paging = guest.world.first_stage(4);
    for source in [ASKING, SILENT] {
        guest.enter_first_stage_as(source, paging.top, 5);
    }
    guest.host.take_calls();
    guest.invalidate(&[CONTEXT]);
    guest
}

#[test]
fn page_requests_have_a_nested_table_of_their_own() {
    let guest = guest(true);
    assert_eq!(guest.devices.nested(), 2);
    let calls = guest.host.take_calls();
    let queues: Vec<_> = calls
        .iter()
        .filter_map(|(call, _)| match call {
            Call::AllocateNested {
                options: NestedOptions { page_requests, .. },
                ..
            } => Some(*page_requests),
            _ => None,
        })
        .collect();
    assert_eq!(queues, [Some(QUEUE), None]);
    for source in [ASKING, SILENT] {
        let binding = guest.binding(source);
        assert!(matches!(binding, Placement::Nested { .. }), "{binding}");
    }
}

#[test]
fn where_the_host_has_not_enabled_page_requests_the_device_is_blocked_and_not_another() {
    let guest = guest(false);
    let Placement::Blocked(why) = guest.binding(ASKING) else {
        panic!("{}", guest.binding(ASKING));
    };
    assert_eq!(why, Blocked::Host(Some(errno::ENODEV)));
    assert!(matches!(guest.binding(SILENT), Placement::Nested { .. }));
}
