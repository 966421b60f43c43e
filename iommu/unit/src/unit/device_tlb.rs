//! Device-TLBs: the translations that devices keep (section 4.1), and how software reaches them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Unit;
use crate::spec::device_tlb::DeviceTlbInvalidation;
use crate::spec::ids::SourceId;
use crate::spec::page_request::PageResponse;

/// A device that keeps translations.
///
/// Calls come while the unit executes its invalidation queue, one at a time and in the order of the queue. An implementation
/// must not write the unit's registers nor reset it, and must not block for long. It may hold DMA transactions of its own and make page requests, and may take locks of the device as long as
/// the device does none of the former under them.
///
/// # What a device has to do
/// It looks a translation up, uses it, asks for it and keeps it only within a
/// [`DmaTransaction`](crate::DmaTransaction). Then an invalidation needs no more than that
/// [`invalidate`](Self::invalidate) forgets what it is told to: before that call, the unit waits for transactions that
/// may still see old tables; after it, and before the guest learns of it, for those that may still use what was forgotten.
pub trait DeviceTlb: Send + Sync {
    /// Forgets translations. It is complete when this returns.
    fn invalidate(&self, invalidation: DeviceTlbInvalidation);

    /// Software answered a group of page requests, or sent an answer to none: that is to be ignored.
    fn page_response(&self, response: PageResponse);
}

/// The device-TLBs of a unit, by source-id. Its mutex is a leaf lock, and nothing is called under it.
#[derive(Default)]
pub(crate) struct DeviceTlbs(Mutex<BTreeMap<u16, Arc<dyn DeviceTlb>>>);

impl DeviceTlbs {
    fn set(&self, SourceId(source): SourceId, tlb: Option<Arc<dyn DeviceTlb>>) {
        let mut tlbs = self.0.lock();
        let former = match tlb {
            Some(tlb) => tlbs.insert(source, tlb),
            None => tlbs.remove(&source),
        };
        drop(tlbs);
        // It may be the last reference to a device.
        drop(former);
    }

    fn get(&self, SourceId(source): SourceId) -> Option<Arc<dyn DeviceTlb>> {
        self.0.lock().get(&source).cloned()
    }
}

impl<M> Unit<M> {
    /// Lets the device-TLB of `source` hear of invalidations and page responses, instead of one attached before.
    ///
    /// The unit keeps `tlb` until it is detached, also across a reset. If that keeps the unit, too, detach it.
    pub fn attach_device_tlb(&self, source: SourceId, tlb: Arc<dyn DeviceTlb>) {
        self.device_tlbs.set(source, Some(tlb));
    }

    /// Undoes [`attach_device_tlb`](Self::attach_device_tlb). A call that is under way may still go on when this returns.
    ///
    /// From now on, invalidations for `source` time out, as those for a device that is not there.
    pub fn detach_device_tlb(&self, source: SourceId) {
        self.device_tlbs.set(source, None);
    }

    /// Whether there is a device-TLB of `source`.
    pub(crate) fn has_tlb(&self, source: SourceId) -> bool {
        self.device_tlbs.get(source).is_some()
    }

    /// Whether there is a device-TLB of `source`.
    #[cfg(any(test, feature = "testing"))]
    pub fn has_device_tlb(&self, source: SourceId) -> bool {
        self.has_tlb(source)
    }

    /// Has the device-TLB of `source` forget translations. Tells whether there is one.
    pub(super) fn invalidate_device_tlb(
        &self,
        source: SourceId,
        invalidation: DeviceTlbInvalidation,
    ) -> bool {
        self.shared.counters.device_tlb_invalidations.add();
        match self.device_tlbs.get(source) {
            Some(tlb) => {
                tlb.invalidate(invalidation);
                true
            }
            None => false,
        }
    }

    /// Passes a response on. One to nobody is lost.
    pub(super) fn respond(&self, source: SourceId, response: PageResponse) {
        self.shared.counters.page_responses.add();
        if let Some(tlb) = self.device_tlbs.get(source) {
            tlb.page_response(response);
        }
    }
}

#[cfg(test)]
mod device_tlb_test;
