//! Resources of a machine that its assigned devices share: guest memory, limits, counters, and the
//! host objects left over.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::budget::Budget;
use crate::dirty::DirtyPages;
use crate::host_iommu::{HostIommu, ObjectId};
use crate::ram::Ram;
use crate::statistics::AssignedStatistics;
use intel_vtd::Limiter;

/// Objects that the host did not take back: with more, no others are made.
const REMAINS: usize = 64;

/// How much a guest can have of the host for its assigned devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Areas that all shadows have together: runs of pages that were mapped together. Each takes
    /// some 200 bytes of the host's memory. A guest that maps more has the devices blocked for
    /// whose tables there is no more room.
    pub areas: usize,
    /// Tables that are read, runs of pages that are found in them, and calls of the host, for one
    /// exit of the guest; of calls that invalidate, the entries for each that is behind the table.
    /// Beyond it, devices are blocked whose tables were not read to the end, or for which the host
    /// was not told to forget.
    pub steps_per_exit: u64,
    /// PASIDs of each device that are bound, or that would be if the host did not refuse, at a
    /// time. What the guest enters beyond it reaches nothing, with a line in the log; it is found
    /// again when the guest invalidates the device's context entry, and has room then if others
    /// have gone.
    pub pasids: usize,
    /// PASID tables and pages of PASID directories that are looked through, entries of PASIDs that
    /// are read, and 16 each time that requests are attached, with a PASID or without, for one exit
    /// of the guest. Beyond it, PASIDs are blocked whose entries were not read, those are not found
    /// that the guest did not name, and what would be attached is blocked.
    pub pasid_steps_per_exit: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            areas: 1 << 18,
            steps_per_exit: 1 << 18,
            pasids: 256,
            pasid_steps_per_exit: 1 << 16,
        }
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// Tells exits apart.
    pub(crate) number: u64,
    pub(crate) budget: Budget,
    /// For PASIDs.
    pub(crate) pasid_budget: Budget,
}

impl Exit {
    pub(crate) const fn new(number: u64, limits: &Limits) -> Self {
        Self {
            number,
            budget: Budget::new(limits.steps_per_exit),
            pasid_budget: Budget::new(limits.pasid_steps_per_exit),
        }
    }
}

/// What the devices of a machine share.
pub(crate) struct Resources {
    pub(crate) ram: Ram,
    pub(crate) limits: Limits,
    pub(crate) exit: Exit,
    /// Areas of all shadows.
    pub(crate) areas: usize,
    pub(crate) statistics: AssignedStatistics,
    /// Pages that were written, while that is tracked.
    pub(crate) dirty: Option<DirtyPages>,
    /// What the host did not take back yet.
    pub(crate) remains: Vec<Remains>,
    /// About devices. Apart from the other, so that these are seen.
    devices: Limiter,
    details: Limiter,
}

impl Resources {
    pub(crate) fn new(ram: Ram, limits: Limits) -> Self {
        Self {
            ram,
            limits,
            exit: Exit::new(0, &limits),
            areas: 0,
            statistics: AssignedStatistics::default(),
            dirty: None,
            remains: Vec::new(),
            devices: Limiter::default(),
            details: Limiter::default(),
        }
    }

    /// Another exit of the guest begins.
    pub(crate) fn begin_exit(&mut self) {
        self.exit = Exit::new(self.exit.number.wrapping_add(1), &self.limits);
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
