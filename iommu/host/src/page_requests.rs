//! Page requests of assigned devices (sections 7.4 to 7.10): the host hands them out by a queue of
//! its own (`IOMMU_FAULT_QUEUE_ALLOC`), the guest finds them in its page-request queue, and its
//! response goes back.
//!
//! The host names a group of requests by a cookie, the guest by the device, the PASID and the index
//! of the group. A cookie is free for another group as soon as it was answered, or as the host
//! itself has answered because the page table went away.

mod waiting;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use vm_memory::GuestMemoryBackend;

use crate::host_iommu::{FaultQueueId, HostDeviceId};
use intel_vtd::{PageRequest, PageRequestRefusal, PageResponse, ResponseCode, SourceId, Unit};
use waiting::{Group, WaitingGroups};

/// A page request, as the host hands it out (`struct iommu_hwpt_pgfault`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPageRequest {
    /// Who made it.
    pub device: HostDeviceId,
    /// What it asks for.
    pub request: PageRequest,
    /// What the answer to its group is to carry.
    pub cookie: u32,
}

/// The host's queue of page requests.
pub trait HostPageRequests: Send + Sync {
    /// Takes whole groups out of the queue, which can be read.
    ///
    /// # Errors
    /// The kernel's.
    fn take(&self) -> io::Result<Vec<HostPageRequest>>;

    /// Answers the group of this cookie: the pages are there, or they are not to be had.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` for a group that was answered already.
    fn answer(&self, cookie: u32, success: bool) -> io::Result<()>;
}

/// How page requests of a device go to the guest and back.
#[derive(Clone)]
pub struct PageRequestPath {
    /// The host's queue, for page tables.
    pub queue: FaultQueueId,
    /// Where the guest's responses go.
    pub responses: Arc<dyn PageResponses>,
}

impl fmt::Debug for PageRequestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PageRequestPath").field(&self.queue).finish()
    }
}

/// Takes the guest's responses.
pub trait PageResponses: Send + Sync {
    /// The guest has answered a group of `source`, or says so. The unit may be executing its
    /// invalidation queue.
    fn respond(&self, source: SourceId, response: PageResponse);
}

#[derive(Default)]
struct State {
    devices: BTreeMap<HostDeviceId, SourceId>,
    waiting: WaitingGroups,
}

/// Relays the page requests of the devices of one iommufd.
pub struct PageRequestRelay<M> {
    /// The unit may keep this, as the end of responses.
    unit: Weak<Unit<M>>,
    host: Box<dyn HostPageRequests>,
    /// Held while the host hands out cookies and takes them back, so that none is another's in
    /// between. No lock is taken under it, and the host does not wait for anything.
    state: Mutex<State>,
}

impl<M> PageRequestRelay<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync,
{
    /// From `host` to `unit`.
    pub fn new(unit: &Arc<Unit<M>>, host: Box<dyn HostPageRequests>) -> Self {
        Self {
            unit: Arc::downgrade(unit),
            host,
            state: Mutex::default(),
        }
    }

    /// `device` is the guest's function `source` from now on.
    pub fn add(&self, device: HostDeviceId, source: SourceId) {
        self.state.lock().devices.insert(device, source);
    }

    /// `device` is the guest's no longer. What it still waits for, the host answers when it is
    /// detached.
    pub fn remove(&self, device: HostDeviceId) {
        let mut state = self.state.lock();
        if let Some(source) = state.devices.remove(&device) {
            state.waiting.forget_all(source);
        }
    }

    /// Passes on what the host has, or some of it. To be called when its queue can be read, and
    /// again as long as it can. Tells whether there was something for the guest.
    ///
    /// # Errors
    /// The kernel's: the queue cannot be read.
    pub fn relay(&self) -> io::Result<bool> {
        let requests = self.take()?;
        for (source, request, cookie) in &requests {
            self.pass_on(*source, request, *cookie);
        }
        Ok(!requests.is_empty())
    }

    /// Takes requests from the host, and remembers whom the guest is to answer. Those of nobody, or
    /// of too many groups, are answered here.
    fn take(&self) -> io::Result<Vec<(SourceId, PageRequest, u32)>> {
        let mut state = self.state.lock();
        let taken = self.host.take()?;
        let mut passed = Vec::with_capacity(taken.len());
        for HostPageRequest {
            device,
            request,
            cookie,
        } in taken
        {
            let source = state.devices.get(&device).copied();
            let room = source.is_some_and(|source| state.waiting.has_room(source));
            match source {
                Some(source) if room || !request.last => {
                    if request.last {
                        state.waiting.add(group(source, &request), cookie);
                    }
                    passed.push((source, request, cookie));
                }
                _ if request.last => self.answer(cookie, false),
                _ => {}
            }
        }
        Ok(passed)
    }

    fn pass_on(&self, source: SourceId, request: &PageRequest, cookie: u32) {
        let outcome = match self.unit.upgrade() {
            Some(unit) => unit.request_page(source, request),
            None => Err(PageRequestRefusal::Unsupported),
        };
        let success = match outcome {
            Err(PageRequestRefusal::Answered(code)) => code == ResponseCode::Success,
            Err(PageRequestRefusal::Unsupported) if request.last => false,
            Ok(()) | Err(_) => return,
        };
        let mut state = self.state.lock();
        // The guest may have said something to the group before it heard of it.
        if state.waiting.forget(group(source, request), cookie) {
            self.answer(cookie, success);
        }
    }

    fn answer(&self, cookie: u32, success: bool) {
        // The host has answered those whose page table is gone.
        if let Err(error) = self.host.answer(cookie, success) {
            log::debug!("the host takes no answer to page requests {cookie}: {error}");
        }
    }
}

impl<M> PageResponses for PageRequestRelay<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync,
{
    fn respond(&self, source: SourceId, response: PageResponse) {
        let group = Group {
            source,
            pasid: response.pasid,
            index: response.group,
        };
        // The host has no other word for a failure.
        let success = response.code == ResponseCode::Success;
        let mut state = self.state.lock();
        // A group whose page table went away was answered by the host, and may have left its
        // cookie.
        while let Some(cookie) = state.waiting.take(group) {
            match self.host.answer(cookie, success) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Ok(()) => return,
                Err(error) => {
                    log::debug!("the host takes no answer to page requests {cookie}: {error}");
                    return;
                }
            }
        }
    }
}

fn group(source: SourceId, request: &PageRequest) -> Group {
    Group {
        source,
        pasid: request.pasid,
        index: request.group,
    }
}

#[cfg(test)]
mod page_requests_test;
