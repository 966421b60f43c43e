//! Where faults arrive: device threads, interrupt requests and the queue report here.
//!
//! It owns the lock around the [`FaultLog`], a leaf lock: nothing is taken and nothing is called while it is held. Events are
//! delivered after it is released. A device thread may be within a DMA transaction when it reports.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::events::{EventSink, InterruptMessage};
use super::fault_log::{FaultLog, Recorded};
use super::register_file::RegisterFile;
use super::statistics::Shared;
use crate::dma::FaultSink;
use crate::spec::registers::{Caps, FaultRecord, FaultStatus, offset};
use crate::translate::{Access, Fault, Request, RequestKind, Translation};

/// The fault log behind its lock, and the way out for its event.
pub(crate) struct FaultReporter {
    caps: Caps,
    log: Mutex<FaultLog>,
    events: Arc<dyn EventSink>,
    shared: Arc<Shared>,
}

impl FaultReporter {
    pub(crate) fn new(caps: Caps, events: Arc<dyn EventSink>, shared: Arc<Shared>) -> Self {
        Self {
            caps,
            log: Mutex::new(FaultLog::new(&caps)),
            events,
            shared,
        }
    }

    pub(crate) fn reset(&self) {
        self.lock().reset();
    }

    pub(crate) fn rewind(&self) {
        self.lock().rewind();
    }

    pub(crate) fn status(&self) -> FaultStatus {
        self.lock().status()
    }

    /// What software reads from `words`, all at one moment.
    pub(crate) fn load(&self, words: impl Iterator<Item = u16>, mut read: impl FnMut(u32)) {
        let log = self.lock();
        for at in words {
            read(log.load(at));
        }
    }

    /// What software writes. Tells whether that cleared an error which had stopped the queue.
    pub(crate) fn store(&self, at: u16, value: u32) -> bool {
        let stops = |status: FaultStatus| status.queue_error() || status.timeout_error();
        let (before, after, message) = {
            let mut log = self.lock();
            let before = log.status();
            let message = log.store(at, value);
            (before, log.status(), message)
        };
        self.deliver(message);
        at == offset::FSTS && stops(before) && !stops(after)
    }

    /// The invalidation queue stopped.
    pub(crate) fn queue_failed(&self) {
        let message = self.lock().queue_failed();
        self.deliver(message);
    }

    /// A device did not complete an invalidation.
    pub(crate) fn device_timed_out(&self) {
        let message = self.lock().device_timed_out();
        self.deliver(message);
    }

    /// Records a fault that no FPD bit suppresses.
    pub(crate) fn record(&self, record: FaultRecord) {
        let recorded = self.lock().record(record);
        match recorded {
            Recorded::Logged(message) => {
                self.shared.counters.faults_recorded.add();
                self.deliver(message);
            }
            Recorded::Lost => self.shared.counters.faults_lost.add(),
        }
    }

    /// Sends an event of the unit. No leaf lock may be held.
    pub(crate) fn deliver(&self, message: Option<InterruptMessage>) {
        if let Some(message) = message {
            self.events.deliver(message);
        }
    }

    /// Gives out the registers of the log and the record that is next.
    pub(super) fn with_log<R>(&self, change: impl FnOnce(&mut RegisterFile, &mut u8) -> R) -> R {
        self.lock().parts(change)
    }

    fn lock(&self) -> MutexGuard<'_, FaultLog> {
        self.log.lock()
    }

    /// The record of a blocked request (section 11.4.14). Fields of absent features stay 0.
    fn describe(&self, request: &Request, fault: &Fault) -> FaultRecord {
        // Bits beyond the largest AGAW read as 0 (section 11.4.14).
        let width = self.caps.deepest_width();
        let address = request.address & ((1 << width) - 1);
        let (type1, type2) = match (request.kind, request.access) {
            (RequestKind::PageRequest, _) => (false, true),
            (_, Access::Write) => (false, false),
            (_, Access::Read | Access::ZeroLengthRead) => (true, false),
            (_, Access::Atomic) => (true, true),
        };
        let mut record = FaultRecord::new()
            .with_info(address >> 12)
            .with_source(request.source.0)
            .with_reason(fault.reason.code())
            .with_type1(type1)
            .with_type2(type2);
        if let Some(pasid) = request.pasid.filter(|_| self.caps.ecap.pasid()) {
            record = record
                .with_pasid_present(true)
                .with_pasid(pasid.get())
                .with_privileged(request.privileged);
        }
        if self.caps.ecap.dt() {
            record = record.with_address_type(match request.kind {
                RequestKind::Untranslated | RequestKind::PageRequest => 0,
                RequestKind::TranslationRequest { .. } => 1,
                RequestKind::Translated => 2,
            });
        }
        record
    }
}

impl FaultSink for FaultReporter {
    fn translation_requested(&self) {
        self.shared.counters.translation_requests.add();
    }

    fn stale(
        &self,
        request: &Request,
        answer: &Result<Translation, Fault>,
        now: &Result<Translation, Fault>,
    ) {
        self.shared.warn(|| {
            let pasid = request.pasid.map(|pasid| format!(" with PASID {:#x}", pasid.get()));
            format!(
                "stale translation of {}{} at {:#x} ({:?}): kept is {}, but the tables now say {}: an invalidation is \
                 missing, or late",
                request.source,
                pasid.unwrap_or_default(),
                request.address,
                request.access,
                in_words(answer),
                in_words(now),
            )
        });
    }

    fn dma_fault(&self, request: &Request, fault: &Fault) {
        if !fault.record {
            self.shared.counters.faults_suppressed.add();
            return;
        }
        self.record(self.describe(request, fault));
        self.shared.debug(|| {
            format!(
                "blocked {:?} of {} at {:#x}: {:?}",
                request.access, request.source, request.address, fault.reason
            )
        });
    }
}

/// Where a request goes, and what is permitted there.
fn in_words(outcome: &Result<Translation, Fault>) -> String {
    match outcome {
        Ok(found) => {
            let rights = match (found.readable, found.writable) {
                (true, true) => "readable and writable",
                (true, false) => "read-only",
                (false, _) => "write-only",
            };
            format!("{:#x} of domain {}, {rights}", found.address, found.domain)
        }
        Err(fault) => format!("{:?}", fault.reason),
    }
}
