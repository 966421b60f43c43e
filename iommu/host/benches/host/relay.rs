//! What passing on a page request costs, there and back.

use std::io;
use std::sync::Arc;

use criterion::Criterion;
use intel_vtd::testing::bench::{Bench, sharing};
use intel_vtd::{PageRequest, PageResponse, Pasid, ResponseCode, SourceId};
use intel_vtd_host::{
    HostDeviceId, HostPageRequest, HostPageRequests, PageRequestRelay, PageResponses as _,
};
use parking_lot::Mutex;

use super::{group, measure};

const SOURCE: SourceId = SourceId(0x18);
const DEVICE: HostDeviceId = HostDeviceId(4);
/// The driver's page-request queue: 16384 slots of 32 bytes.
const RING: u64 = 0x70_0000;
const PQS: u64 = 7;
/// Its head, tail and address, and its status (sec. 11.4.11).
const PQH: u64 = 0xC0;
const PQT: u64 = 0xC8;
const PQA: u64 = 0xD0;
const PRS: u64 = 0xDC;

/// Hands out what it is given.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<Vec<HostPageRequest>>>);

impl HostPageRequests for Host {
    fn take(&self) -> io::Result<Vec<HostPageRequest>> {
        Ok(std::mem::take(&mut *self.0.lock()))
    }

    fn answer(&self, _: u32, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A group is passed on and answered, by how many others wait for the guest.
pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = group(criterion, "relay");
    for waiting in [0_u32, 1000, 4000] {
        let bench = Bench::new(&sharing());
        bench.share(0x60_0000);
        for pasid in 1..=20 {
            bench.poke(0x4000 + pasid * 64, &[0x0049, 0x0080_0002, 0x5000]);
        }
        bench.enable_wide_queue();
        bench.write64(PQA, RING | PQS);
        let host = Host::default();
        let relay = PageRequestRelay::new(&bench.unit, Box::new(host.clone()));
        relay.add(DEVICE, SOURCE);
        for number in 0..waiting {
            host.0
                .lock()
                .push(request(1 + number / 500, number % 500, number));
        }
        relay.relay().unwrap();
        assert_eq!(bench.read64(PQT), u64::from(waiting) * 32);
        let one = request(20, 511, 100_000);
        let response = PageResponse {
            pasid: one.request.pasid,
            group: one.request.group,
            code: ResponseCode::Success,
        };
        measure(&mut group, &format!("waiting {waiting}"), |rounds| {
            for _ in 0..rounds {
                host.0.lock().push(one);
                relay.relay().unwrap();
                bench.write64(PQH, bench.read64(PQT));
                relay.respond(SOURCE, response);
            }
        });
        assert_eq!(bench.read32(PRS) & 2, 0, "the queue was never full");
    }
}

fn request(pasid: u32, group: u32, cookie: u32) -> HostPageRequest {
    HostPageRequest {
        device: DEVICE,
        request: PageRequest {
            pasid: Pasid::new(pasid),
            address: 0x1234_5000,
            write: true,
            group: u16::try_from(group).unwrap(),
            last: true,
            ..PageRequest::default()
        },
        cookie,
    }
}
