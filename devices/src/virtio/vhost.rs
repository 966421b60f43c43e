//! Devices whose queues the kernel serves: vhost-net and vhost-vsock (<linux/vhost.h>). The same seam
//! serves those of another process (`user`).
//!
//! At `DRIVER_OK` the queues are handed over, and from then on the kernel takes notifications and
//! moves the data without us (`Queues`). What stays here is what the kernel cannot know: which
//! interrupt a queue has, and what the guest's IOMMU says.
//!
//! Behind a unit the kernel is given no guest memory as such. It has an IOTLB for each device, and
//! says which translations it misses (`VIRTIO_F_ACCESS_PLATFORM`, `VHOST_IOTLB_MISS`). Each is
//! answered by what the unit says to that access ([`DmaTransaction::grant`](intel_vtd::DmaTransaction::grant)),
//! and taken back when the guest invalidates it ([`Invalidations`]). No answer that is out of date
//! can stay behind:
//! * A translation is looked up and given to the kernel within one DMA transaction. The unit waits
//!   for transactions that began before an invalidation, and only then tells observers. So what an
//!   observer takes back is there by then, and what comes later is read from the tables as they are
//!   after the invalidation.
//! * The kernel changes its IOTLB under the mutexes of all queues of the device, which it holds while
//!   it uses translations. So `VHOST_IOTLB_INVALIDATE` returns when no access uses them any more, and
//!   not before. (With the module parameter `experimental_zcopytx` packets would be read later, and
//!   a device would not stop before they are sent; vhost-net is refused then.)
//!
//! A transaction thus takes as long as the kernel does for one turn of a queue, which it bounds by
//! packets and bytes.
//!
//! An access that the unit blocks is recorded as any device's, and the device needs a reset: the
//! kernel has no way to be told no.

mod backend;
mod engine;
mod error;
#[cfg(test)]
pub(super) mod fake;
mod invalidations;
mod kernel;
mod log;
mod queues;
mod rings;
mod shared;
mod sys;
mod user;
#[cfg(test)]
mod vhost_test;

pub(super) use engine::{Addressee, Engine, NetEngine, VsockEngine};
pub use error::OpenError;
pub use invalidations::Invalidations;
pub(super) use kernel::Kernel;
pub use log::{WriteLog, Writer};
pub(super) use queues::Queues;
pub(super) use shared::Shared;
pub use user::{UserBlockOptions, UserError, UserNetOptions, VhostUser};

use std::sync::Arc;

use intel_vtd::SourceId;

/// How a device that the kernel serves sees guest memory.
#[derive(Clone)]
pub enum Place {
    /// All of it: there is no unit.
    Direct(crate::Memory),
    /// As the unit says to requests of `source`.
    Behind {
        /// Guest memory.
        memory: crate::Memory,
        /// What hears of the unit's invalidations.
        invalidations: Arc<Invalidations>,
        /// Who the device is.
        source: SourceId,
    },
}

impl Place {
    fn memory(&self) -> &crate::Memory {
        match self {
            Self::Direct(memory) | Self::Behind { memory, .. } => memory,
        }
    }

    fn is_translated(&self) -> bool {
        matches!(self, Self::Behind { .. })
    }
}
