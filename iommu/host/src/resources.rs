//! Resources of a machine that its assigned devices share: guest memory, limits, counters, and the
//! host objects left over.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::blocked::Blocked;
use crate::budget::{Budget, CALL, RUN};
use crate::dirty::DirtyPages;
use crate::footprint::AREA;
use crate::host_iommu::{HostIommu, ObjectId};
use crate::ram::Ram;
use crate::run::PAGE;
use crate::statistics::AssignedStatistics;
use intel_vtd::Limiter;

/// Objects that the host did not take back: with more, no others are made.
const REMAINS: usize = 64;

/// How much a guest can have of the host for its assigned devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of the host's memory that all shadows cost together: 320 for each run of pages that was
    /// mapped together (an area), and 4096 for each table that the host needs for it. So the first
    /// page in a region of 2 MiB costs 4416, and the others there cost 320 each. No shadow has more
    /// than a quarter of it. A guest that maps more has the devices blocked for whose tables there
    /// is no more room.
    pub shadow_memory: u64,
    /// Work that is done for one exit of the guest: 1 for each run of pages that is found in its
    /// tables, 8 for each table that is read, 100 for each call of the host that maps, unmaps or
    /// invalidates; of calls that invalidate, for each entry and each device that is behind the
    /// table. A step takes some 50 ns. Beyond it, devices are blocked whose tables were not read to
    /// the end, or for which the host was not told to forget.
    pub steps_per_exit: u64,
    /// PASIDs of each device that are bound, or that would be if the host did not refuse, at a
    /// time. What the guest enters beyond it reaches nothing, with a line in the log, until others
    /// have gone: then the device's directory is looked through for it.
    pub pasids: usize,
    /// PASID tables and pages of PASID directories that are looked through, entries of PASIDs that
    /// are read, and 16 each time that requests are attached, with a PASID or without, for one exit
    /// of the guest. Beyond it, PASIDs are blocked whose entries were not read, those are not found
    /// that the guest did not name, and what would be attached is blocked.
    pub pasid_steps_per_exit: u64,
}

/// Bytes that a shadow may cost for each page of guest memory. That is one that maps each of them
/// once and apart from all others, in regions of 2 MiB of which at least an eighth is mapped.
const PER_PAGE: u64 = AREA + 64;
/// Bytes that any shadow may cost, for guests with little memory.
const LEAST: u64 = 64 << 20;
/// So many shadows can have all that one may have. More domains than that which map all of memory
/// page by page are no guest's that we know of: what drivers in user space map for a second-level
/// guest is part of memory only, and what drivers in the kernel map is in use for a moment.
const SHADOWS: u64 = 4;

impl Limits {
    /// For a guest with so many bytes of memory. What maps each page once by itself is within them.
    pub const fn for_memory(bytes: u64) -> Self {
        let one = (bytes / PAGE)
            .saturating_mul(PER_PAGE)
            .saturating_add(LEAST);
        Self::with_shadow_memory(one.saturating_mul(SHADOWS))
    }

    /// With this [`shadow_memory`](Self::shadow_memory), and with steps for all that one shadow can
    /// have to be unmapped and mapped within one exit.
    pub const fn with_shadow_memory(bytes: u64) -> Self {
        let areas = bytes / SHADOWS / AREA;
        Self {
            shadow_memory: bytes,
            steps_per_exit: areas
                .saturating_mul(2 * (CALL + RUN))
                .saturating_add(1 << 22),
            pasids: 256,
            pasid_steps_per_exit: 1 << 16,
        }
    }

    /// Bytes that one shadow may cost.
    pub(crate) const fn of_one_shadow(&self) -> u64 {
        self.shadow_memory / SHADOWS
    }

    /// Why requests are blocked, with the limit that it is about.
    pub(crate) fn explain(&self, why: Blocked) -> String {
        const MIB: u64 = 1 << 20;
        match why {
            Blocked::TooManyAreas => format!(
                "{why}: they would cost more of the host's memory than the {} MiB of a domain or the {} MiB of all (shadow-memory)",
                self.of_one_shadow() / MIB,
                self.shadow_memory / MIB
            ),
            Blocked::TooMuchWork => format!("{why} of {} steps", self.steps_per_exit),
            Blocked::TooManyPasids => format!("{why}: {} (bound-pasids)", self.pasids),
            _ => why.to_string(),
        }
    }
}

/// For 4 GiB of memory.
impl Default for Limits {
    fn default() -> Self {
        Self::for_memory(4 << 30)
    }
}

/// An object that the host did not destroy yet.
pub(crate) struct Remains {
    host: Arc<dyn HostIommu>,
    object: ObjectId,
}

impl Remains {
    pub(crate) const fn new(host: Arc<dyn HostIommu>, object: ObjectId) -> Self {
        Self { host, object }
    }

    /// Tries again.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        self.host.destroy(self.object)
    }
}

/// An exit of the guest, and what is left of what it can have done in it.
#[derive(Debug)]
pub(crate) struct Exit {
    /// Tells exits apart.
    pub(crate) number: u64,
    pub(crate) budget: Budget,
}

impl Exit {
    pub(crate) fn new(number: u64, limits: &Limits) -> Self {
        Self {
            number,
            budget: Budget::new(limits.steps_per_exit, limits.pasid_steps_per_exit),
        }
    }
}

/// What the devices of a machine share.
pub(crate) struct Resources {
    pub(crate) ram: Arc<Ram>,
    pub(crate) limits: Limits,
    pub(crate) exit: Exit,
    /// Tells updates apart: whatever is done for what the guest announced at once.
    pub(crate) update: u64,
    /// Bytes that all shadows cost.
    pub(crate) shadow_bytes: u64,
    pub(crate) statistics: AssignedStatistics,
    /// Pages that were written, while that is tracked.
    pub(crate) dirty: Option<DirtyPages>,
    /// What the host did not take back yet.
    pub(crate) remains: Vec<Remains>,
    /// Some requests wait for the end of a reset, or could not be blocked: they are tried again.
    pub(crate) has_waiting: bool,
    /// About devices. Apart from the other, so that these are seen.
    devices: Limiter,
    details: Limiter,
}

impl Resources {
    pub(crate) fn new(ram: Arc<Ram>, limits: Limits) -> Self {
        Self {
            ram,
            limits,
            exit: Exit::new(0, &limits),
            update: 0,
            shadow_bytes: 0,
            statistics: AssignedStatistics::default(),
            dirty: None,
            remains: Vec::new(),
            has_waiting: false,
            devices: Limiter::default(),
            details: Limiter::default(),
        }
    }

    /// Another exit of the guest begins.
    pub(crate) fn begin_exit(&mut self) {
        self.exit = Exit::new(self.exit.number.wrapping_add(1), &self.limits);
    }

    /// Does `work` in an exit of its own, as it is not the guest who asks for it: what the guest's
    /// has left of its budgets stays as it is.
    pub(crate) fn apart<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        let number = self.exit.number.wrapping_add(1);
        let mut of_guest = std::mem::replace(&mut self.exit, Exit::new(number, &self.limits));
        of_guest.number = number;
        let result = work(self);
        self.exit = of_guest;
        result
    }

    /// Another update begins: what was found to be so before may be otherwise now.
    pub(crate) fn begin_update(&mut self) {
        self.update = self.update.wrapping_add(1);
    }

    /// Whether the host takes back so little that nothing more is to be made.
    pub(crate) fn is_littered(&self) -> bool {
        self.remains.len() > REMAINS
    }

    /// Tries again to give back what the host did not take.
    pub(crate) fn sweep(&mut self) {
        self.remains.retain(|remains| remains.destroy().is_err());
    }

    /// Logs what happened to a device. A guest can cause it, so it is at most one message per
    /// second.
    pub(crate) fn report(&mut self, message: impl FnOnce() -> String) {
        warn(&mut self.devices, message);
    }

    /// As [`report`](Self::report), about what goes on within a shadow.
    pub(crate) fn details(&mut self, message: impl FnOnce() -> String) {
        warn(&mut self.details, message);
    }
}

fn warn(limiter: &mut Limiter, message: impl FnOnce() -> String) {
    match limiter.pass(Instant::now()) {
        Some(0) => log::warn!("{}", message()),
        Some(more) => log::warn!("{} ({more} more messages were held back)", message()),
        None => {}
    }
}
