//! What the balloon's thread, the driver's accesses to its configuration, and the control have in common.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::statistics::Statistics;
use super::{DEFLATE_ON_OOM, PAGE, PAGE_REPORTING, STATS_VQ};
use crate::virtio::device::LiveConfig;
use crate::virtio::feature::has;

/// Bytes of `struct virtio_balloon_config` (section 5.5.4).
const LENGTH: usize = 16;
/// Where the fields are that the driver writes.
const ACTUAL: u64 = 4;
const POISON: u64 = 12;

/// See the module. Numbers of pages are of 4 KiB.
pub(super) struct Shared {
    /// Pages that the driver is to have in the balloon.
    target: AtomicU32,
    /// How often that has changed, from 1 on.
    changes: AtomicU64,
    /// Those that it has, by its own account.
    actual: AtomicU32,
    /// What it wants free pages to hold.
    poison: AtomicU32,
    /// Readable while the thread is to look at the target, and at the wish for statistics.
    asked: EventFd,
    wish: AtomicBool,
    /// A leaf lock.
    heard: Mutex<Heard>,
    news: Condvar,
    /// A driver is at work, which has accepted `features`.
    driver: AtomicBool,
    features: AtomicU64,
    /// Bytes that went back to the host so far, by either way.
    inflated: AtomicU64,
    reported: AtomicU64,
}

/// What the driver has said of memory.
#[derive(Default)]
struct Heard {
    last: Option<Statistics>,
    /// How often it was asked for that, and has answered.
    answers: u64,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            target: AtomicU32::new(0),
            changes: AtomicU64::new(1),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            asked: EventFd::new(EFD_NONBLOCK)?,
            wish: AtomicBool::new(false),
            heard: Mutex::default(),
            news: Condvar::new(),
            driver: AtomicBool::new(false),
            features: AtomicU64::new(0),
            inflated: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        })
    }

    pub(super) fn target(&self) -> u32 {
        self.target.load(Ordering::Acquire)
    }

    pub(super) fn set_target(&self, pages: u32) {
        if self.target.swap(pages, Ordering::AcqRel) != pages {
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn actual(&self) -> u32 {
        self.actual.load(Ordering::Acquire)
    }

    pub(super) fn poison(&self) -> u32 {
        self.poison.load(Ordering::Acquire)
    }

    /// What was written to the configuration before.
    pub(super) fn set_written(&self, actual: u32, poison: u32) {
        self.actual.store(actual, Ordering::Release);
        self.poison.store(poison, Ordering::Release);
    }

    pub(super) fn asked(&self) -> &EventFd {
        &self.asked
    }

    /// Has the thread look, once there is one.
    pub(super) fn ask(&self) {
        // An error means that it has been asked as often as the event can count.
        let _ = self.asked.write(1);
    }

    /// Whether somebody wants statistics; nobody does then.
    pub(super) fn take_wish(&self) -> bool {
        self.wish.swap(false, Ordering::AcqRel)
    }

    pub(super) fn hear(&self, statistics: Statistics, is_answer: bool) {
        let mut heard = self.heard.lock();
        heard.last = Some(statistics);
        heard.answers += u64::from(is_answer);
        drop(heard);
        self.news.notify_all();
    }

    pub(super) fn set_driver(&self, features: Option<u64>) {
        self.features
            .store(features.unwrap_or(0), Ordering::Release);
        self.driver.store(features.is_some(), Ordering::Release);
    }

    /// There is no driver any more, and the balloon is empty.
    pub(super) fn reset(&self) {
        self.set_driver(None);
        self.set_written(0, 0);
        self.heard.lock().last = None;
    }

    pub(super) fn add_inflated(&self, bytes: u64) {
        self.inflated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_reported(&self, bytes: u64) {
        self.reported.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `struct virtio_balloon_config`.
    fn bytes(&self) -> [u8; LENGTH] {
        let fields = [self.target(), self.actual(), 0, self.poison()];
        let mut bytes = [0; LENGTH];
        for (place, field) in bytes.as_chunks_mut().0.iter_mut().zip(fields) {
            *place = field.to_le_bytes();
        }
        bytes
    }
}

impl LiveConfig for Shared {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.bytes();
        for (byte, value) in data.iter_mut().zip(bytes.iter().skip(start)) {
            *byte = *value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (field, at) in [(&self.actual, ACTUAL), (&self.poison, POISON)] {
            let mut bytes = field.load(Ordering::Acquire).to_le_bytes();
            for (place, byte) in (offset..).zip(data) {
                let place = place.checked_sub(at).map(usize::try_from);
                if let Some(Ok(place)) = place
                    && let Some(slot) = bytes.get_mut(place)
                {
                    *slot = *byte;
                }
            }
            field.store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }
}

/// How a balloon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonFigures {
    /// Bytes that the guest is asked to have in the balloon.
    pub target: u64,
    /// Bytes that it has there, as it says.
    pub actual: u64,
    /// Bytes that have gone back to the host because of that, since the start of this process.
    pub inflated: u64,
    /// The same because the guest has reported them as free.
    pub reported: u64,
    /// Whether the guest has a driver at work.
    pub has_driver: bool,
    /// Whether that may take pages out of the balloon when it has no others.
    pub deflates_on_oom: bool,
    /// Whether it reports free pages.
    pub reports: bool,
}

/// Changes the size of a balloon, and tells of it, for as long as the device is there.
#[derive(Clone)]
pub struct BalloonControl(Weak<Shared>);

impl BalloonControl {
    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        Self(Arc::downgrade(shared))
    }

    /// Asks the guest to have so many bytes in the balloon, or the next whole page. Tells whether there is
    /// such a device still.
    pub fn set_target(&self, bytes: u64) -> bool {
        let Some(shared) = self.0.upgrade() else {
            return false;
        };
        shared.set_target(u32::try_from(bytes.div_ceil(PAGE)).unwrap_or(u32::MAX));
        shared.ask();
        true
    }

    /// How it is, if the device is there still.
    #[must_use]
    pub fn figures(&self) -> Option<BalloonFigures> {
        let shared = self.0.upgrade()?;
        let features = shared.features.load(Ordering::Acquire);
        Some(BalloonFigures {
            target: u64::from(shared.target()) * PAGE,
            actual: u64::from(shared.actual()) * PAGE,
            inflated: shared.inflated.load(Ordering::Relaxed),
            reported: shared.reported.load(Ordering::Relaxed),
            has_driver: shared.driver.load(Ordering::Acquire),
            deflates_on_oom: has(features, DEFLATE_ON_OOM),
            reports: has(features, PAGE_REPORTING),
        })
    }

    /// Asks the guest for statistics, and waits for `patience` at most. The answer is the last that it has
    /// given, which may be older, or none.
    #[must_use]
    pub fn statistics(&self, patience: Duration) -> Option<Statistics> {
        let shared = self.0.upgrade()?;
        if !has(shared.features.load(Ordering::Acquire), STATS_VQ) {
            return None;
        }
        let mut heard = shared.heard.lock();
        let before = heard.answers;
        shared.wish.store(true, Ordering::Release);
        shared.ask();
        let is_old = |heard: &mut Heard| heard.answers == before;
        shared.news.wait_while_for(&mut heard, is_old, patience);
        heard.last.clone()
    }
}
