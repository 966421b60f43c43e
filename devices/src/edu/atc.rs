//! The address translation cache (PCIe 10.1, a device-TLB to VT-d) of the edu device, and
//! its page request in flight.
//!
//! The unit calls it, so its locks are leaves: nothing is called under them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use intel_vtd::{
    AtsTranslation, DeviceTlb, DeviceTlbInvalidation, PageResponse, Pasid, ResponseCode,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::copier::Progress;
use super::extension::{Cached, EduFeatures, Manner};

/// Translations that are kept; when there is one more, the oldest goes.
pub(super) const CAPACITY: usize = 64;
/// Longest wait for the answer to a page request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the device holds back after a page request that found the queue full.
const PAUSE: Duration = Duration::from_millis(20);

/// A translation as it was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) pasid: Option<Pasid>,
    /// Any address in the block.
    pub(super) input: u64,
    pub(super) answer: AtsTranslation,
}

impl Entry {
    /// The translation of `address`, if it is in the block.
    fn translate(&self, pasid: Option<Pasid>, address: u64) -> Option<u64> {
        let inside = u64::MAX
            .checked_shl(self.answer.page_shift.into())
            .map_or(u64::MAX, |mask| !mask);
        (self.pasid == pasid && (self.input ^ address) & !inside == 0)
            .then_some(self.answer.address & !inside | address & inside)
    }
}

/// Whether a translation permits to write, or else to read.
pub(super) fn grants(answer: &AtsTranslation, write: bool) -> bool {
    if write {
        answer.writable
    } else {
        answer.readable
    }
}

#[derive(Debug, Default)]
struct Table {
    /// What the guest enabled. While ATS is not, nothing is kept and nothing is used.
    enabled: EduFeatures,
    /// The oldest first.
    entries: VecDeque<Entry>,
    invalidations: u32,
}

/// The page request in flight: the device has one at a time.
#[derive(Debug, Default)]
struct Pages {
    waiting: Option<(Option<Pasid>, u16)>,
    answer: Option<ResponseCode>,
    /// How far the command is that has made it.
    progress: Option<Progress>,
    /// A response came that answers nothing.
    unexpected: bool,
    /// Counts the commands that were to end at once.
    aborts: u64,
    next_group: u16,
    /// Waits do not end before this is over, unless they are aborted, and their time stands still.
    held: bool,
    /// A wait is held.
    waits: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Atc {
    table: Mutex<Table>,
    pages: Mutex<Pages>,
    answered: Condvar,
}

/// A command that has made a page request, and its answer, which has not been looked at.
#[derive(Clone, Debug)]
pub(super) struct Carried {
    pub(super) progress: Progress,
    /// The request, while it is in flight.
    pub(super) waiting: Option<(Option<Pasid>, u16)>,
    pub(super) answer: Option<ResponseCode>,
}

/// A page request that was announced and is not answered yet.
pub(super) struct Expected {
    pub(super) group: u16,
    aborts: u64,
}

impl Atc {
    /// A translation that permits to read, or to write. It may be used within the transaction in
    /// which it was looked up.
    pub(super) fn lookup(&self, pasid: Option<Pasid>, address: u64, write: bool) -> Option<u64> {
        let table = self.table.lock();
        if !table.enabled.ats {
            return None;
        }
        let mut fitting = table
            .entries
            .iter()
            .filter(|entry| grants(&entry.answer, write));
        fitting.find_map(|entry| entry.translate(pasid, address))
    }

    /// Keeps an answer. To be called within the transaction in which it was given.
    pub(super) fn insert(&self, pasid: Option<Pasid>, input: u64, answer: AtsTranslation) {
        let mut table = self.table.lock();
        if !table.enabled.ats {
            return;
        }
        if table.entries.len() == CAPACITY {
            table.entries.pop_front();
        }
        table.entries.push_back(Entry {
            pasid,
            input,
            answer,
        });
    }

    /// Follows what the guest enabled. PCIe 10.2.1: what a function keeps is gone when ATS is
    /// disabled.
    pub(super) fn set_enabled(&self, enabled: EduFeatures) {
        let mut table = self.table.lock();
        table.enabled = enabled;
        if !enabled.ats {
            table.entries.clear();
        }
    }

    /// Whether the guest has enabled what requests in this manner need.
    pub(super) fn permits(&self, manner: &Manner) -> bool {
        let enabled = self.table.lock().enabled;
        (enabled.ats || !(manner.translate || manner.translated))
            && (enabled.pasid || manner.pasid.is_none())
            && (enabled.pri || !manner.pages)
    }

    pub(super) fn cached(&self) -> Cached {
        let table = self.table.lock();
        Cached {
            entries: u32::try_from(table.entries.len()).unwrap_or(u32::MAX),
            invalidations: table.invalidations,
        }
    }

    /// The number of aborts so far, for [`expect`](Self::expect).
    pub(super) fn aborts(&self) -> u64 {
        self.pages.lock().aborts
    }

    /// Ends the wait of commands that began before.
    pub(super) fn abort(&self) {
        let mut pages = self.pages.lock();
        pages.aborts = pages.aborts.wrapping_add(1);
        drop(pages);
        self.answered.notify_all();
    }

    /// Has waits for answers stay, or go on.
    pub(super) fn hold(&self, held: bool) {
        let mut pages = self.pages.lock();
        pages.held = held;
        if !held {
            // It is about to go on.
            pages.waits = false;
        }
        drop(pages);
        self.answered.notify_all();
    }

    /// Whether there is a wait that stays.
    pub(super) fn is_held(&self) -> bool {
        self.pages.lock().waits
    }

    /// Whether a page request is in flight.
    pub(super) fn is_waiting(&self) -> bool {
        self.pages.lock().waiting.is_some()
    }

    /// Whether a response came that answers nothing, since this was asked last.
    pub(super) fn take_unexpected(&self) -> bool {
        std::mem::take(&mut self.pages.lock().unexpected)
    }

    /// Chooses the group of a page request that is about to be made by a command that began after
    /// `aborts` aborts.
    pub(super) fn expect(&self, pasid: Option<Pasid>, aborts: u64) -> Expected {
        let mut pages = self.pages.lock();
        let group = pages.next_group;
        pages.next_group = (group + 1) & 0x1ff;
        pages.waiting = Some((pasid, group));
        pages.answer = None;
        Expected { group, aborts }
    }

    /// The same for a request that was made before the device was restored.
    pub(super) fn expect_carried(&self, aborts: u64) -> Expected {
        let group = self.pages.lock().waiting.map_or(0, |(_, group)| group);
        Expected { group, aborts }
    }

    /// Remembers how far the command is that makes a request.
    pub(super) fn set_progress(&self, progress: Option<Progress>) {
        self.pages.lock().progress = progress;
    }

    /// The page request was not taken, so that no answer will come. It may have been answered at once.
    pub(super) fn forget(&self, answer: Option<ResponseCode>) {
        let mut pages = self.pages.lock();
        pages.waiting = None;
        pages.answer = answer;
    }

    /// The answer that was not looked at.
    pub(super) fn take_answer(&self) -> Option<ResponseCode> {
        self.pages.lock().answer.take()
    }

    /// What there is of the command that has made a page request.
    pub(super) fn carried(&self) -> Option<Carried> {
        let pages = self.pages.lock();
        Some(Carried {
            progress: pages.progress.clone()?,
            waiting: pages.waiting,
            answer: pages.answer,
        })
    }

    /// The group of the next page request, and whether a response came that answers nothing.
    pub(super) fn page_state(&self) -> (u16, bool) {
        let pages = self.pages.lock();
        (pages.next_group, pages.unexpected)
    }

    /// Makes what concerns page requests of a fresh device what was saved.
    pub(super) fn restore_pages(
        &self,
        next_group: u16,
        unexpected: bool,
        carried: Option<Carried>,
    ) {
        let mut pages = self.pages.lock();
        pages.next_group = next_group;
        pages.unexpected = unexpected;
        if let Some(carried) = carried {
            pages.progress = Some(carried.progress);
            pages.waiting = carried.waiting;
            pages.answer = carried.answer;
        }
    }

    /// Forgets the request of a command that no worker has.
    pub(super) fn drop_carried(&self) {
        let mut pages = self.pages.lock();
        pages.progress = None;
        pages.waiting = None;
        pages.answer = None;
    }

    /// All translations, the oldest first.
    pub(super) fn translations(&self) -> Vec<Entry> {
        self.table.lock().entries.iter().copied().collect()
    }

    /// Makes the device-TLB of a fresh device what was saved, of [`CAPACITY`] translations at the most.
    /// `false` if it keeps none.
    pub(super) fn restore(&self, entries: Vec<Entry>, invalidations: u32) -> bool {
        let mut table = self.table.lock();
        let kept = table.enabled.ats || entries.is_empty();
        if kept {
            table.entries = entries.into();
            table.invalidations = invalidations;
        }
        kept
    }

    /// Waits a moment, since software has to catch up, unless the command is aborted.
    pub(super) fn pause(&self, expected: &Expected) {
        let mut pages = self.pages.lock();
        if pages.aborts == expected.aborts {
            self.answered.wait_for(&mut pages, PAUSE);
        }
        self.stay(&mut pages, expected);
    }

    /// Waits while waits are held, unless the command is aborted.
    fn stay(&self, pages: &mut MutexGuard<'_, Pages>, expected: &Expected) {
        while pages.held && pages.aborts == expected.aborts {
            pages.waits = true;
            self.answered.wait(pages);
        }
        pages.waits = false;
    }

    /// Waits for the answer; `None` if none came in time, or the command was aborted.
    pub(super) fn wait(&self, expected: &Expected) -> Option<ResponseCode> {
        let mut left = PATIENCE;
        let mut pages = self.pages.lock();
        loop {
            self.stay(&mut pages, expected);
            if pages.answer.is_some() || left.is_zero() || pages.aborts != expected.aborts {
                break;
            }
            let begin = Instant::now();
            self.answered.wait_for(&mut pages, left);
            left = left.saturating_sub(begin.elapsed());
        }
        pages.waiting = None;
        pages.answer.take()
    }
}

impl DeviceTlb for Atc {
    fn invalidate(&self, invalidation: DeviceTlbInvalidation) {
        let mut table = self.table.lock();
        table.invalidations = table.invalidations.wrapping_add(1);
        table.entries.retain(|entry| {
            !(invalidation.concerns(entry.pasid)
                && invalidation.overlaps(entry.input, entry.answer.page_shift))
        });
    }

    fn page_response(&self, response: PageResponse) {
        let mut pages = self.pages.lock();
        // The device's capability says that a response needs the PASID of its group.
        let expected =
            pages.answer.is_none() && pages.waiting == Some((response.pasid, response.group));
        if expected {
            pages.answer = Some(response.code);
        } else {
            pages.unexpected = true;
        }
        drop(pages);
        self.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_command_that_holds_back_before_it_asks_again_is_held_and_goes_on() {
        let atc = Atc::default();
        for ends in [false, true] {
            atc.hold(true);
            thread::scope(|scope| {
                let expected = atc.expect(None, atc.aborts());
                let command = scope.spawn(|| {
                    let expected = expected;
                    atc.pause(&expected);
                });
                let begin = Instant::now();
                while !atc.is_held() {
                    assert!(begin.elapsed() < PATIENCE, "it is held");
                    thread::yield_now();
                }
                assert!(!command.is_finished());
                if ends {
                    atc.abort();
                } else {
                    atc.hold(false);
                }
                command.join().expect("no panic");
            });
            assert!(!atc.is_held());
        }
    }
}
