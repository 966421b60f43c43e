//! The relay between a host that a test plays and a unit whose driver is played, too.

use std::sync::Mutex;

use super::*;
use intel_vtd::testing::bench::{Bench, Memory, sharing};
use intel_vtd::{DeviceTlb, DeviceTlbInvalidation, Pasid};

const SOURCE: SourceId = SourceId(0x0018);
const DEVICE: HostDeviceId = HostDeviceId(4);
/// The driver's page-request queue: 128 slots, of which one stays free.
const RING: u64 = 0x40_0000;
const ROOM: u32 = 127;

/// Hands out what it was given, and keeps the cookies that wait.
#[derive(Default)]
struct Host {
    requests: Mutex<Vec<HostPageRequest>>,
    waiting: Mutex<Vec<u32>>,
    answers: Mutex<Vec<(u32, bool)>>,
}

impl Host {
    fn asks(&self, request: PageRequest, cookie: u32) {
        self.asks_for(DEVICE, request, cookie);
    }

    fn asks_for(&self, device: HostDeviceId, request: PageRequest, cookie: u32) {
        self.requests.lock().unwrap().push(HostPageRequest {
            device,
            request,
            cookie,
        });
        if request.last {
            self.waiting.lock().unwrap().push(cookie);
        }
    }

    fn answers(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut *self.answers.lock().unwrap())
    }
}

impl HostPageRequests for Arc<Host> {
    fn take(&self) -> io::Result<Vec<HostPageRequest>> {
        Ok(std::mem::take(&mut *self.requests.lock().unwrap()))
    }

    fn answer(&self, cookie: u32, success: bool) -> io::Result<()> {
        let mut waiting = self.waiting.lock().unwrap();
        let Some(place) = waiting.iter().position(|waiting| *waiting == cookie) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        waiting.remove(place);
        self.answers.lock().unwrap().push((cookie, success));
        Ok(())
    }
}

/// As the manager of assigned devices passes responses on.
struct End(Arc<PageRequestRelay<Memory>>);

impl DeviceTlb for End {
    fn invalidate(&self, _: DeviceTlbInvalidation) {}

    fn page_response(&self, response: PageResponse) {
        self.0.respond(SOURCE, response);
    }
}

struct Setting {
    bench: Bench,
    host: Arc<Host>,
    relay: Arc<PageRequestRelay<Memory>>,
}

fn setting() -> Setting {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    bench.enable_wide_queue();
    bench.write64(0xD0, RING);
    bench.write32(0xE0, 0);
    let host = Arc::new(Host::default());
    let relay = PageRequestRelay::new(&bench.unit, Box::new(Arc::clone(&host)));
    relay.add(DEVICE, SOURCE);
    let relay = Arc::new(relay);
    let end = Arc::new(End(Arc::clone(&relay)));
    bench.unit.attach_device_tlb(SOURCE, end);
    Setting { bench, host, relay }
}

fn request(group: u16, last: bool) -> PageRequest {
    PageRequest {
        pasid: Pasid::new(5),
        address: 0x1234_5000,
        write: true,
        group,
        last,
        ..PageRequest::default()
    }
}

impl Setting {
    /// Page-group response for PASID 5.
    fn responds(&self, group: u64, code: u64) {
        let low = 9 | 1 << 4 | code << 12 | u64::from(SOURCE.0) << 16 | 5 << 32;
        self.bench.submit_wide(&[[low, group << 3, 0, 0]]);
    }

    fn slots(&self) -> u64 {
        self.bench.read64(0xC8) / 32
    }
}

#[test]
fn a_group_goes_to_the_guest_and_its_response_back() {
    let setting = setting();
    setting.host.asks(request(7, false), 11);
    setting.host.asks(request(7, true), 11);
    setting.relay.relay().unwrap();
    assert_eq!(setting.slots(), 2);
    let words = [0, 4, 8].map(|at| setting.bench.peek32(RING + 32 + at));
    assert_eq!(words, [0x0018_0101, 5, 0x1234_503E]);
    assert_eq!(setting.host.answers(), []);
    setting.responds(7, 0);
    assert_eq!(setting.host.answers(), [(11, true)]);
    // Answered once.
    setting.responds(7, 0);
    assert_eq!(setting.host.answers(), []);
}

#[test]
fn whatever_is_no_success_is_an_invalid_request_to_the_host() {
    let setting = setting();
    for (code, cookie) in [(1, 21), (0xF, 22), (5, 23)] {
        setting.host.asks(request(3, true), cookie);
        setting.relay.relay().unwrap();
        setting.responds(3, code);
        assert_eq!(setting.host.answers(), [(cookie, false)]);
    }
}

#[test]
fn a_response_to_nobody_is_ignored() {
    let setting = setting();
    setting.host.asks(request(7, true), 11);
    setting.relay.relay().unwrap();
    setting.responds(8, 0);
    // Without PASID.
    setting
        .bench
        .submit_wide(&[[9 | u64::from(SOURCE.0) << 16, 7 << 3, 0, 0]]);
    assert_eq!(setting.host.answers(), []);
    setting.responds(7, 0);
    assert_eq!(setting.host.answers(), [(11, true)]);
}

#[test]
fn a_full_queue_of_the_guest_has_the_device_try_again() {
    let setting = setting();
    for cookie in 0..ROOM + 2 {
        setting.host.asks(request(7, true), cookie);
    }
    setting.relay.relay().unwrap();
    assert_eq!(setting.slots(), u64::from(ROOM));
    assert_eq!(setting.host.answers(), [(ROOM, true), (ROOM + 1, true)]);
    setting.responds(7, 0);
    assert_eq!(setting.host.answers(), [(0, true)], "the oldest first");
}

#[test]
fn tables_that_let_no_request_pass_are_an_invalid_request() {
    let setting = setting();
    // The entry of PASID 6 is not present.
    let absent = PageRequest {
        pasid: Pasid::new(6),
        ..request(7, true)
    };
    setting.host.asks(absent, 31);
    // Translation is off.
    setting.relay.relay().unwrap();
    assert_eq!(setting.host.answers(), [(31, false)]);
    setting
        .bench
        .write32(0x18, setting.bench.read32(0x1C) & 0x0680_0000);
    setting.host.asks(request(7, false), 32);
    setting.host.asks(request(7, true), 32);
    setting.relay.relay().unwrap();
    assert_eq!(setting.host.answers(), [(32, false)]);
    assert_eq!(setting.slots(), 0);
}

#[test]
fn nobodys_requests_are_answered_here() {
    let setting = setting();
    setting
        .host
        .asks_for(HostDeviceId(9), request(1, false), 41);
    setting.host.asks_for(HostDeviceId(9), request(1, true), 41);
    setting.relay.remove(DEVICE);
    setting.host.asks(request(1, true), 42);
    setting.relay.relay().unwrap();
    assert_eq!(setting.host.answers(), [(41, false), (42, false)]);
    assert_eq!(setting.slots(), 0);
}

#[test]
fn what_the_host_has_answered_itself_holds_nothing_up() {
    let setting = setting();
    for cookie in [51, 52] {
        setting.host.asks(request(7, true), cookie);
    }
    setting.relay.relay().unwrap();
    // The page table of the first one went away.
    setting.host.waiting.lock().unwrap().retain(|at| *at == 52);
    setting.responds(7, 0);
    assert_eq!(setting.host.answers(), [(52, true)]);
    // The cookie is another group's by now.
    setting.host.asks(request(7, true), 53);
    setting.relay.relay().unwrap();
    setting.host.waiting.lock().unwrap().clear();
    setting.host.asks(request(8, true), 53);
    setting.relay.relay().unwrap();
    setting.responds(7, 0);
    assert_eq!(setting.host.answers(), []);
    setting.responds(8, 0);
    assert_eq!(setting.host.answers(), [(53, true)]);
}

#[test]
fn a_guest_that_never_answers_has_a_limit() {
    let setting = setting();
    let limit = u32::try_from(waiting::GROUPS).unwrap();
    for cookie in 0..=limit {
        let group = u16::try_from(cookie % 512).unwrap();
        setting.host.asks(request(group, true), cookie);
        setting.relay.relay().unwrap();
        // The driver takes them from its queue.
        setting.bench.write64(0xC0, setting.bench.read64(0xC8));
    }
    assert_eq!(setting.host.answers(), [(limit, false)]);
    let mut state = setting.relay.state.lock();
    assert!(!state.waiting.has_room(SOURCE));
    state.waiting.take(group(SOURCE, &request(0, true)));
    assert!(state.waiting.has_room(SOURCE));
}
