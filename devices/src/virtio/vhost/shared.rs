//! A device of the kernel's, as its own thread, the unit's executor and vCPUs share it.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use intel_vtd::{DmaTransaction, HeldTranslation, HeldTranslations, Invalidation};
use log::error;
use parking_lot::Mutex;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, Permissions,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Place;
use super::backend::{Backend, Miss, Update};
use super::log::Bits;
use super::rings::Ring;
use crate::Memory;
use crate::virtio::device::Halt;
use crate::virtio::error::QueueError;

/// Everything.
const ALL: RangeInclusive<u64> = 0..=u64::MAX;

/// What a placeholder is as large as. Guest memory has no smaller piece.
const PAGE: u64 = 4096;

/// See the module.
pub(in crate::virtio) struct Shared {
    backend: Box<dyn Backend>,
    place: Place,
    /// What the kernel's IOTLB has. A leaf lock.
    held: Mutex<HeldTranslations>,
    /// Held while the kernel starts or stops, or is told of a log.
    run: Mutex<Run>,
    /// Of a device that rests while a log is kept: it is over.
    rested: Option<EventFd>,
}

#[derive(Default)]
struct Run {
    running: bool,
    /// It was stopped by somebody else than its thread, since the last start began.
    halted: bool,
    /// It is not to start.
    rests: bool,
}

impl Shared {
    pub(super) fn new(backend: Box<dyn Backend>, place: Place) -> io::Result<Self> {
        let rests = !backend.can_log();
        let rested = rests.then(|| EventFd::new(EFD_NONBLOCK)).transpose()?;
        Ok(Self {
            backend,
            place,
            held: Mutex::default(),
            run: Mutex::default(),
            rested,
        })
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// A start begins: what halts the device from here on prevents it.
    pub(super) fn prepare(&self) {
        self.run.lock().halted = false;
        self.held.lock().clear();
    }

    /// Invalidations are heard of from here on.
    pub(super) fn listen(self: &Arc<Self>) {
        if let Place::Behind { invalidations, .. } = &self.place {
            invalidations.add(self);
        }
    }

    /// Signalled when the device has [rested](Self::rests), if it does that.
    pub(super) fn rested(&self) -> Option<&EventFd> {
        self.rested.as_ref()
    }

    /// Whether the kernel is not to start at the moment, because nobody would know what it writes.
    pub(super) fn rests(&self) -> bool {
        self.run.lock().rests
    }

    /// Has what the kernel writes be logged from here on, or no more: begins while it has stopped. One
    /// that cannot log does not start meanwhile.
    pub(super) fn set_log(&self, log: Option<&Arc<Bits>>) -> io::Result<()> {
        let mut run = self.run.lock();
        if log.is_some() && run.running {
            return Err(io::Error::other("vhost is at work; pause the guest before"));
        }
        let Some(rested) = &self.rested else {
            return self.backend.set_log(log);
        };
        run.rests = log.is_some();
        match rested.write(1) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Has the kernel begin with `queues`.
    pub(super) fn start(&self, queues: &[usize]) -> Result<(), QueueError> {
        let mut run = self.run.lock();
        if run.halted || run.rests {
            return Err(QueueError::Stopped);
        }
        // Whatever part of it has started is to be stopped.
        run.running = true;
        self.backend.start(queues).map_err(host("starting vhost"))
    }

    /// Has the kernel stop, to [`start`](Self::start) again. Tells whether it ran.
    pub(super) fn pause(&self) -> Result<bool, QueueError> {
        let mut run = self.run.lock();
        if run.halted {
            return Err(QueueError::Stopped);
        }
        let was_running = std::mem::take(&mut run.running);
        if was_running {
            self.backend.stop().map_err(host("stopping vhost"))?;
        }
        Ok(was_running)
    }

    /// Ends what [`listen`](Self::listen) has begun. The kernel has stopped, and was not told about
    /// `misses`.
    pub(super) fn leave(self: &Arc<Self>, misses: &[Miss]) {
        let Place::Behind { invalidations, .. } = &self.place else {
            return;
        };
        if invalidations.remove(self)
            && let Err(error) = self.forget(misses)
        {
            error!("vhost keeps what it has asked for: {error}");
        }
        self.held.lock().clear();
    }

    /// The kernel keeps each miss in its memory until it is answered: this answers `misses`, and
    /// those that nobody has read. The kernel has stopped, and has nothing afterwards.
    pub(super) fn forget(&self, misses: &[Miss]) -> io::Result<()> {
        let Some(region) = self.place.memory().iter().next() else {
            return Ok(());
        };
        // The queues are stopped: nothing is ever read there.
        let host = region.as_ptr().expose_provenance() as u64;
        let answer = |address: u64| {
            self.backend.update(&Update {
                first: address & !(PAGE - 1),
                size: PAGE,
                host,
                access: Permissions::Read,
            })
        };
        for miss in misses {
            answer(miss.address)?;
        }
        while let Some(miss) = self.backend.next_miss()? {
            answer(miss.address)?;
        }
        self.backend.invalidate(ALL)
    }

    /// Answers a miss. To the guest it is the access.
    pub(super) fn answer(
        &self,
        transaction: &DmaTransaction<'_, Memory>,
        miss: Miss,
    ) -> Result<(), QueueError> {
        self.give(transaction, miss.address, miss.access)?;
        Ok(())
    }

    /// Gives the kernel the translation of all of `ring`.
    pub(super) fn give_ring(
        &self,
        transaction: &DmaTransaction<'_, Memory>,
        (start, bytes, access): Ring,
    ) -> Result<(), QueueError> {
        let end = start.checked_add(bytes).ok_or(QueueError::Address)?;
        let mut next = start;
        while next < end {
            let last = self.give(transaction, next, access)?;
            next = last.checked_add(1).ok_or(QueueError::Address)?;
        }
        Ok(())
    }

    /// Gives the kernel the translation of `address`, and returns up to where it holds.
    fn give(
        &self,
        transaction: &DmaTransaction<'_, Memory>,
        address: u64,
        access: Permissions,
    ) -> Result<u64, QueueError> {
        let blocked = || GuestMemoryError::InvalidGuestAddress(GuestAddress(address));
        let held = transaction.grant(address, access).ok_or_else(blocked)?;
        let update = mapped(self.place.memory(), &held, address).ok_or_else(blocked)?;
        self.backend
            .update(&update)
            .map_err(host("VHOST_IOTLB_UPDATE"))?;
        // Only now: an invalidation of everything may have cleared it before the kernel got this.
        self.held.lock().add(&held);
        Ok(update.first + (update.size - 1))
    }

    /// What of the kernel's IOTLB the guest has invalidated.
    pub(super) fn concerned(
        &self,
        invalidations: &[Invalidation],
    ) -> impl Iterator<Item = RangeInclusive<u64>> {
        let held = *self.held.lock();
        let Place::Behind { source, .. } = self.place else {
            return Vec::new().into_iter();
        };
        let ranges = invalidations
            .iter()
            .filter_map(|invalidation| held.concerned(source, invalidation));
        ranges.collect::<Vec<_>>().into_iter()
    }

    /// Has the kernel drop what overlaps `range`. No access uses it when this returns.
    pub(super) fn take_back(&self, range: RangeInclusive<u64>) {
        if range == ALL {
            // What is added meanwhile is read from the tables as they are by now, and may be
            // invalidated again: it has to be known.
            self.held.lock().clear();
        }
        if let Err(error) = self.backend.invalidate(range) {
            error!("vhost does not drop translations: {error}; its device is stopped");
            self.halt();
        }
    }
}

impl Halt for Shared {
    fn halt(&self) -> bool {
        let mut run = self.run.lock();
        run.halted = true;
        let was_running = std::mem::take(&mut run.running);
        if was_running && let Err(error) = self.backend.stop() {
            error!("vhost cannot be stopped: {error}");
        }
        was_running
    }
}

/// `held` for the kernel: as much of it around `address` as is in one piece of guest memory.
fn mapped(memory: &Memory, held: &HeldTranslation, address: u64) -> Option<Update> {
    let at = held.address.checked_add(address.checked_sub(held.first)?)?;
    let region = memory.find_region(GuestAddress(at))?;
    let start = region.start_addr().raw_value();
    let before = (address - held.first).min(at - start);
    let behind = (held.last - address).min(region.last_addr().raw_value() - at);
    let offset = at - before - start;
    Some(Update {
        first: address - before,
        size: before + behind + 1,
        host: region.as_ptr().expose_provenance() as u64 + offset,
        access: match (held.readable, held.writable) {
            (true, true) => Permissions::ReadWrite,
            (_, false) => Permissions::Read,
            (false, true) => Permissions::Write,
        },
    })
}

/// Makes an error of a call that the kernel refuses.
pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> QueueError {
    move |error| QueueError::Host { what, error }
}
