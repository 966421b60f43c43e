//! Guest RAM that comes and goes while devices are assigned (virtio-mem).
//!
//! A piece that comes is mapped, and so pinned, in each address space that maps all guest memory, and then in
//! the shadows whose tables lead there. One that goes is taken from the shadows first, and then from
//! the former: when that is done, no device reaches it, and nothing of it is pinned.
//!
//! The host unmaps what was mapped by one call as a whole only. So what is to go by itself has to come as a piece
//! of its own, and no area of a shadow goes from one piece into the next.

use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use vm_memory::GuestMemoryBackend;

use super::AssignedDevices;
use crate::host_iommu::{HostIommu, IoasId, Rights};
use crate::ram::{Ram, RamPiece};

/// `ENOENT` of `IOMMU_IOAS_UNMAP`: nothing is mapped there.
const ENOENT: i32 = 2;

/// Why guest RAM is what it was.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// There is RAM already.
    #[error("there is memory of the guest at {:#x} to {:#x} already", .0.start, .0.end - 1)]
    Taken(Range<u64>),
    /// Something of it is not a piece of its own.
    #[error("the memory at {:#x} to {:#x} is mapped together with other memory", .0.start, .0.end - 1)]
    Together(Range<u64>),
    /// What devices write is being found out, for the memory that there was when that began.
    #[error("the guest is about to move; memory can be plugged again when it has moved, or stays")]
    Tracked,
    /// A device does not reach so far.
    #[error("devices cannot reach the memory at {:#x} to {:#x}", .0.start, .0.end - 1)]
    OutOfReach(Range<u64>),
    /// The host refuses.
    #[error(
        "the host does not {what} the memory at {:#x} to {:#x} for devices: {cause}; see the limit of locked memory (`ulimit -l`)",
        range.start,
        range.end - 1
    )]
    Host {
        /// `map` or `unmap`.
        what: &'static str,
        /// Which memory.
        range: Range<u64>,
        /// Its reason.
        cause: io::Error,
    },
}

/// An address space that maps all guest memory.
type Space = (Arc<dyn HostIommu>, IoasId);

impl<M> AssignedDevices<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
{
    /// Has devices reach `pieces` as guest RAM, where the guest's tables lead there. Pinning them takes its
    /// time, in which the guest goes on.
    ///
    /// # Errors
    /// See [`PlugError`]; devices reach what they did before.
    pub fn plug(&self, pieces: &[RamPiece]) -> Result<(), PlugError> {
        let _alone = self.changes.lock();
        let (ram, spaces) = {
            let hosts = self.hosts_at_once();
            if hosts.resources.dirty.is_some() {
                return Err(PlugError::Tracked);
            }
            let ram = hosts.resources.ram.with(pieces);
            let ram = ram.map_err(PlugError::Taken)?;
            let mut spaces: Vec<Space> = Vec::new();
            for space in hosts.memories() {
                let mut ranges = pieces.iter().map(RamPiece::range);
                let far = ranges.find(|range| !space.mappable(range.clone()).eq([range.clone()]));
                if let Some(range) = far {
                    return Err(PlugError::OutOfReach(range));
                }
                spaces.push((Arc::clone(&space.host), space.id));
            }
            (ram, spaces)
        };
        let mut mapped = Vec::new();
        for space in &spaces {
            for piece in pieces {
                let range = piece.range();
                let memory = piece.memory(&range);
                let outcome = space.0.map(space.1, range.start, &memory, Rights::ALL);
                if let Err(cause) = outcome {
                    undo(mapped);
                    let what = "map";
                    return Err(PlugError::Host { what, range, cause });
                }
                mapped.push((space, range));
            }
        }
        self.set_ram(ram);
        Ok(())
    }

    /// Has no device reach what is guest RAM of `range`, which came by [`plug`](Self::plug) in pieces that are
    /// within it. It is pinned no more when this returns.
    ///
    /// # Errors
    /// See [`PlugError`]. If the host refuses, it may be tried again: what there was is RAM to no device any
    /// more, but may be reached and pinned still.
    pub fn unplug(&self, range: &Range<u64>) -> Result<(), PlugError> {
        let _alone = self.changes.lock();
        let (ram, spaces) = {
            let hosts = self.hosts_at_once();
            let ram = hosts.resources.ram.without(range);
            let ram = ram.map_err(PlugError::Together)?;
            let spaces = hosts.memories();
            let spaces = spaces.map(|space| (Arc::clone(&space.host), space.id));
            (ram, spaces.collect::<Vec<Space>>())
        };
        self.set_ram(ram);
        for space in &spaces {
            unmap(space, range).map_err(|cause| PlugError::Host {
                what: "unmap",
                range: range.clone(),
                cause,
            })?;
        }
        Ok(())
    }

    /// Guest RAM is another one: shadows follow.
    fn set_ram(&self, ram: Ram) {
        let mut hosts = self.hosts_at_once();
        hosts.resources.ram = Arc::new(ram);
        self.with_tables(|tables| {
            if let Some(tables) = tables {
                hosts.ram_has_changed(tables);
            }
        });
        self.retry_later(&mut hosts);
    }
}

/// Unmaps what was mapped in vain.
fn undo(mapped: Vec<(&Space, Range<u64>)>) {
    for (space, range) in mapped {
        if let Err(error) = unmap(space, &range) {
            log::warn!(
                "the host does not unmap {:#x} to {:#x}, which no device is to reach: {error}",
                range.start,
                range.end - 1
            );
        }
    }
}

/// Unmaps all of a range, of which parts may be.
fn unmap((host, space): &Space, range: &Range<u64>) -> io::Result<()> {
    match host.unmap(*space, range.start, range.end - range.start) {
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(()),
        outcome => outcome.map(drop),
    }
}
