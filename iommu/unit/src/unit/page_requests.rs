//! Page requests of devices (sections 7.4 to 7.10).

use std::ops::Deref;

use parking_lot::MutexGuard;
use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::budget::{Budget, Later};
use super::page_queue::{PageQueue, Queued};
use crate::dma::FaultSink;
use crate::spec::descriptors::{IotlbScope, PageBlock, PasidIotlbScope};
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::invalidation::Invalidation;
use crate::spec::page_request::{PageRequest, PageRequestDescriptor, ResponseCode};
use crate::translate::{Access, Binding, Request, RequestKind, Resolved};

/// A page request did not get into the queue.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PageRequestRefusal {
    /// The unit takes none: they are not offered, or translation is switched off. There is no response.
    #[error("the unit takes no page requests")]
    Unsupported,
    /// It was dropped, and there is no response: another request of its group asks for that, or it is a stop marker,
    /// which asks for none.
    #[error("the page request was dropped")]
    Dropped,
    /// It was dropped, and it is the last of its group: this is the response to the group, which software will
    /// not give. [`DeviceTlb::page_response`](super::DeviceTlb::page_response) is not called.
    #[error("the page request was dropped; the group is answered with {0:?}")]
    Answered(ResponseCode),
}

impl PageRequestRefusal {
    fn new(request: &PageRequest, code: ResponseCode) -> Self {
        if request.last && !request.is_stop_marker() {
            Self::Answered(code)
        } else {
            Self::Dropped
        }
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Takes a page request of `source`, and puts it into the guest's queue before it returns.
    ///
    /// Software answers the last request of a group by [`DeviceTlb::page_response`](super::DeviceTlb::page_response),
    /// whenever it likes: it may do so before this returns, and it may never do so.
    ///
    /// It may be called within a DMA transaction, and from within the calls of [`DeviceTlb`](super::DeviceTlb).
    ///
    /// # Errors
    /// The request was dropped: the tables do not permit it (the fault is recorded), or the queue is full.
    pub fn request_page(
        &self,
        source: SourceId,
        request: &PageRequest,
    ) -> Result<(), PageRequestRefusal> {
        let outcome = self.take_page_request(source, request);
        let counters = &self.shared.counters;
        match outcome {
            Ok(()) => counters.page_requests.add(),
            Err(_) => counters.page_requests_refused.add(),
        }
        outcome
    }

    fn take_page_request(
        &self,
        source: SourceId,
        request: &PageRequest,
    ) -> Result<(), PageRequestRefusal> {
        if !self.caps.ecap.prs() {
            return Err(PageRequestRefusal::Unsupported);
        }
        // Whoever invalidates waits for this: a request is in the queue under the tables that let it pass, and its event is
        // sent.
        let _in_flight = self.page_requests_in_flight.read();
        let resolved = self.check_page_request(source, request)?;
        let descriptor = PageRequestDescriptor::describe(source, request);
        let width = self.dma.gates().host_address_width;
        // For the page of a request, software needs to announce no change of its tables.
        let admitted = || {
            self.dma.forget(&implied(&resolved, request.address));
            self.dma.invalidate_all();
        };
        let queued = self
            .page_queue()
            .push(&self.memory(), width, descriptor, admitted);
        match queued {
            Queued::Written(message) => {
                self.faults.deliver(message);
                Ok(())
            }
            Queued::Nowhere(message) => {
                self.shared.counters.page_requests_lost.add();
                self.shared
                    .warn(|| "no memory where the page-request queue should be".to_owned());
                self.faults.deliver(message);
                Ok(())
            }
            Queued::Full(message) => {
                self.shared
                    .warn(|| "the page-request queue is full".to_owned());
                self.faults.deliver(message);
                Err(PageRequestRefusal::new(request, ResponseCode::Success))
            }
            // The device is to try again, and finds the queue emptied or not.
            Queued::Stopped => Err(PageRequestRefusal::new(request, ResponseCode::Success)),
        }
    }

    /// Whether the tables let the request pass, up to its PASID entry: whether the page is there is what it is about.
    fn check_page_request(
        &self,
        source: SourceId,
        request: &PageRequest,
    ) -> Result<Resolved, PageRequestRefusal> {
        let latched = self.dma.latched();
        if !latched.enabled {
            return Err(PageRequestRefusal::Unsupported);
        }
        let message = Request {
            source,
            pasid: request.pasid,
            address: request.address,
            access: if request.write {
                Access::Write
            } else {
                Access::Read
            },
            privileged: request.privileged && request.pasid.is_some(),
            kind: RequestKind::PageRequest,
        };
        match self.dma.resolve(&latched, &message) {
            Ok(resolved) => Ok(resolved),
            Err(fault) => {
                self.faults.dma_fault(&message, &fault);
                Err(PageRequestRefusal::new(
                    request,
                    ResponseCode::InvalidRequest,
                ))
            }
        }
    }
}

/// What a request for the page at `address` invalidates when it gets into the queue (section 7.4.1).
fn implied(resolved: &Resolved, address: u64) -> Invalidation {
    let domain = resolved.domain;
    let block = PageBlock {
        address: address & !0xfff,
        mask: 0,
        leaf_only: false,
    };
    match resolved.binding {
        Binding::FirstStage(_) => Invalidation::PasidIotlb {
            domain,
            pasid: resolved.pasid.unwrap_or(Pasid::ZERO).get(),
            scope: PasidIotlbScope::Pages(block),
        },
        Binding::Nested(..) => Invalidation::Iotlb(IotlbScope::Domain(domain)),
        Binding::SecondStage(_) | Binding::PassThrough | Binding::Blocked => {
            Invalidation::Iotlb(IotlbScope::Pages(domain, block))
        }
    }
}

impl<M> Unit<M> {
    /// Waits for the page requests that devices are making: they are in the queue, and PQT tells so, when this returns.
    ///
    /// A request is in the queue when [`request_page`](Unit::request_page) returns, and nothing is on its way between a
    /// device and the unit. So this is all that an invalidation wait with PD has to do (section 7.10).
    pub(super) fn drain_page_requests(&self, budget: &mut Budget<'_>) -> Result<(), Later> {
        budget.wait_for(&self.page_requests_in_flight).map(drop)
    }

    pub(super) fn page_queue(&self) -> MutexGuard<'_, PageQueue> {
        self.page_queue.lock()
    }
}

#[cfg(test)]
mod page_requests_test;
