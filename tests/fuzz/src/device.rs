//! Devices that keep translations, and what the page-request queue must do with their requests
//! (section 7.4).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use intel_vtd::{
    AtsRefusal, DeviceTlb, DeviceTlbInvalidation, DmaTransaction, PageRequest, PageRequestRefusal,
    PageResponse, Pasid, ResponseCode, SourceId, Unit,
};

use crate::guest::Guest;

/// What a device does on its own within one step, so that a long queue does not make an input slow.
const PATIENCE: u64 = 64;

/// What a device does when it is called, as bits.
pub(crate) mod habit {
    pub(crate) const ASKS_WHEN_INVALIDATED: u8 = 1;
    pub(crate) const ASKS_WHEN_ANSWERED: u8 = 2;
    pub(crate) const TRANSLATES: u8 = 4;
    pub(crate) const HAS_PASID: u8 = 8;
    pub(crate) const ENDS_GROUPS: u8 = 16;
    /// Once it was invalidated.
    pub(crate) const LEAVES: u8 = 32;
}

/// What all devices of a unit did and heard so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deeds {
    /// Calls of [`DeviceTlb::invalidate`].
    pub(crate) invalidations: u64,
    /// Calls of [`DeviceTlb::page_response`].
    pub(crate) responses: u64,
    /// Page requests that were taken.
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) translations: u64,
}

impl Deeds {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            invalidations: self.invalidations - before.invalidations,
            responses: self.responses - before.responses,
            accepted: self.accepted - before.accepted,
            refused: self.refused - before.refused,
            translations: self.translations - before.translations,
        }
    }
}

/// The page-request queue as it must be after the requests so far.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    /// Requests are offered, and translation is on.
    on: bool,
    base: u64,
    bytes: u64,
    head: u64,
    tail: u64,
    overflow: bool,
}

/// All devices of a unit.
pub(crate) struct Devices {
    guest: Arc<Guest>,
    unit: Mutex<Weak<Unit<Arc<Guest>>>>,
    /// Habits by source-id.
    attached: Mutex<BTreeMap<u16, u8>>,
    deeds: Mutex<Deeds>,
    queue: Mutex<Queue>,
    acts: AtomicU64,
}

impl Devices {
    pub(crate) fn new(guest: Arc<Guest>) -> Arc<Self> {
        Arc::new(Self {
            guest,
            unit: Mutex::default(),
            attached: Mutex::default(),
            deeds: Mutex::default(),
            queue: Mutex::default(),
            acts: AtomicU64::new(0),
        })
    }

    /// From now on they are behind `unit`.
    pub(crate) fn move_to(self: &Arc<Self>, unit: &Arc<Unit<Arc<Guest>>>) {
        *self.unit.lock().unwrap() = Arc::downgrade(unit);
        for (source, habits) in self.attached.lock().unwrap().iter() {
            unit.attach_device_tlb(SourceId(*source), self.device(*source, *habits));
        }
    }

    pub(crate) fn attach(self: &Arc<Self>, source: u16, habits: u8) {
        self.attached.lock().unwrap().insert(source, habits);
        let device = self.device(source, habits);
        self.unit().attach_device_tlb(SourceId(source), device);
    }

    pub(crate) fn detach(&self, source: u16) {
        self.attached.lock().unwrap().remove(&source);
        self.unit().detach_device_tlb(SourceId(source));
    }

    pub(crate) fn is_attached(&self, source: u16) -> bool {
        self.attached.lock().unwrap().contains_key(&source)
    }

    pub(crate) fn deeds(&self) -> Deeds {
        *self.deeds.lock().unwrap()
    }

    /// Looks at the registers of the queue, which devices must not do when they are called.
    pub(crate) fn begin_step(&self) {
        let unit = self.unit();
        let read = |at| {
            let mut bytes = [0; 8];
            unit.read(at, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let address = read(0xD0);
        let bytes = 0x1000 << (address & 7);
        *self.queue.lock().unwrap() = Queue {
            on: read(0x10) >> 29 & 1 == 1 && read(0x18) >> 63 == 1,
            base: address & !0xFFF,
            bytes,
            head: read(0xC0) % bytes,
            tail: read(0xC8) % bytes,
            // PRO.
            overflow: read(0xD8) >> 33 & 1 == 1,
        };
        self.acts.store(0, Ordering::Relaxed);
    }

    /// Compares the registers with what requests must have made of them.
    pub(crate) fn end_step(&self, accepted: u64) {
        let unit = self.unit();
        let read = |at| {
            let mut bytes = [0; 4];
            unit.read(at, &mut bytes);
            u64::from(u32::from_le_bytes(bytes))
        };
        let queue = *self.queue.lock().unwrap();
        if accepted != 0 {
            assert_eq!(read(0xC8), queue.tail, "PQT");
            assert_eq!(read(0xDC) & 1, 1, "PPR");
        }
        assert_eq!(read(0xC0) & !0x7_FFE0, 0, "PQH");
        assert_eq!(read(0xC8) & !0x7_FFE0, 0, "PQT");
        assert_eq!(read(0xDC) & !3, 0, "PRS");
    }

    /// Asserts that a queue that was full says so.
    pub(crate) fn check_overflow(&self) {
        let mut bytes = [0; 4];
        self.unit().read(0xDC, &mut bytes);
        let overflow = self.queue.lock().unwrap().overflow;
        assert_eq!(bytes[0] & 2 == 2, overflow, "PRO");
    }

    /// Makes a page request, and checks what became of it.
    pub(crate) fn request_page(&self, source: u16, request: &PageRequest) {
        let unit = self.unit();
        let faults = || {
            let stats = unit.stats();
            stats.faults_recorded + stats.faults_lost + stats.faults_suppressed
        };
        let before = faults();
        let outcome = unit.request_page(SourceId(source), request);
        let faulted = faults() - before;
        // A stop marker gets no response.
        let is_marker = !request.read && !request.write;
        let refused = |code| match request.last && !is_marker {
            true => PageRequestRefusal::Answered(code),
            false => PageRequestRefusal::Dropped,
        };
        let mut queue = self.queue.lock().unwrap();
        let next = (queue.tail + 32) % queue.bytes;
        let full = queue.overflow || next == queue.head;
        let mut deeds = self.deeds.lock().unwrap();
        match outcome {
            Ok(()) => {
                assert!(queue.on && !full && faulted == 0, "{queue:x?}");
                self.check_written(queue.base.checked_add(queue.tail), source, request);
                queue.tail = next;
                deeds.accepted += 1;
            }
            Err(refusal) => {
                deeds.refused += 1;
                if !queue.on {
                    assert_eq!((refusal, faulted), (PageRequestRefusal::Unsupported, 0));
                } else if faulted != 0 {
                    let code = ResponseCode::InvalidRequest;
                    assert_eq!((refusal, faulted), (refused(code), 1));
                } else {
                    assert_eq!(refusal, refused(ResponseCode::Success));
                    assert!(full, "{queue:x?}");
                    queue.overflow = true;
                }
            }
        }
    }

    /// A request that was taken is in memory, or where there is none.
    fn check_written(&self, place: Option<u64>, source: u16, request: &PageRequest) {
        let Some(place) = place.filter(|place| *place < self.guest.end()) else {
            return;
        };
        let with_pasid = request.pasid.map_or(0, |pasid| {
            1 << 8
                | u64::from(pasid.get()) << 32
                | u64::from(request.execute) << 52
                | u64::from(request.privileged) << 53
        });
        let asked = u64::from(request.read)
            | u64::from(request.write) << 1
            | u64::from(request.last) << 2
            | u64::from(request.group % 0x200) << 3;
        let first = 1 | u64::from(source) << 16 | with_pasid;
        let words = [first, request.address & !0xFFF | asked, 0, 0];
        for (at, word) in (place..).step_by(8).zip(words) {
            let written = self.guest.peek(at);
            assert!(
                written.is_none_or(|written| written == word),
                "{written:x?} at {at:#x} for {request:x?}"
            );
        }
    }

    /// Asks for a translation, and checks that the answer makes sense.
    pub(crate) fn translate(
        &self,
        transaction: &DmaTransaction<'_, Arc<Guest>>,
        address: u64,
        no_write: bool,
    ) -> Option<u64> {
        self.deeds.lock().unwrap().translations += 1;
        let answer = match transaction.translate(address, no_write) {
            Ok(answer) => answer,
            Err(refusal) => {
                assert_ne!(refusal, AtsRefusal::Gated);
                return None;
            }
        };
        assert!((12..=57).contains(&answer.page_shift), "{answer:?}");
        assert!(!(no_write && answer.writable), "{answer:?}");
        if !answer.readable && !answer.writable || answer.untranslated_only {
            return None;
        }
        let offset = (1 << answer.page_shift) - 1;
        assert_eq!(
            answer.address & offset & 0xFFF,
            address & 0xFFF,
            "{answer:?}"
        );
        assert!(answer.address < self.guest.end(), "{answer:x?}");
        Some(answer.address)
    }

    fn unit(&self) -> Arc<Unit<Arc<Guest>>> {
        self.unit.lock().unwrap().upgrade().expect("a unit")
    }

    fn device(self: &Arc<Self>, source: u16, habits: u8) -> Arc<Device> {
        Arc::new(Device {
            all: Arc::clone(self),
            source,
            habits,
        })
    }
}

struct Device {
    all: Arc<Devices>,
    source: u16,
    habits: u8,
}

impl Device {
    fn has(&self, habit: u8) -> bool {
        self.habits & habit != 0
    }

    fn ask(&self, habit: u8, address: u64, group: u16) {
        if !self.has(habit) || self.all.acts.fetch_add(1, Ordering::Relaxed) >= PATIENCE {
            return;
        }
        let request = PageRequest {
            pasid: self.has(habit::HAS_PASID).then(|| Pasid::new(1)).flatten(),
            address,
            write: true,
            group,
            last: self.has(habit::ENDS_GROUPS),
            ..PageRequest::default()
        };
        self.all.request_page(self.source, &request);
    }
}

impl DeviceTlb for Device {
    fn invalidate(&self, invalidation: DeviceTlbInvalidation) {
        self.all.deeds.lock().unwrap().invalidations += 1;
        let (address, shift) = (invalidation.address, invalidation.shift);
        assert!((12..=64).contains(&shift), "{invalidation:x?}");
        let within = u64::MAX.checked_shl(shift.into()).unwrap_or(0);
        assert_eq!(address & !within, 0, "{invalidation:x?}");
        self.ask(habit::ASKS_WHEN_INVALIDATED, address, 0);
        if self.has(habit::TRANSLATES) && self.all.acts.fetch_add(1, Ordering::Relaxed) < PATIENCE {
            let port = self.all.unit().port(SourceId(self.source));
            let pasid = self.has(habit::HAS_PASID).then(|| Pasid::new(1)).flatten();
            let mut view = port.view();
            self.all
                .translate(&view.begin_pasid(pasid), address, shift == 12);
        }
        if self.has(habit::LEAVES) {
            self.all.detach(self.source);
        }
    }

    fn page_response(&self, response: PageResponse) {
        self.all.deeds.lock().unwrap().responses += 1;
        assert!(response.group < 0x200, "{response:?}");
        self.ask(habit::ASKS_WHEN_ANSWERED, 0x1000, response.group);
    }
}
