//! Pins: guest memory that a device uses beyond its transaction, by system calls that may block.
//!
//! A transaction translates the pages and pins them. Then it ends, and the pages stay the device's
//! until the [`Pinned`] is dropped: the completion of an invalidation that takes one of them away
//! waits for that. Nothing else does: no transaction, no other invalidation, no register access.
//!
//! I/O that is completed later, and elsewhere, [keeps](Pinned::keep) the pages: they are the device's
//! until their `DmaPin` is released.
//!
//! System calls mark nothing of what they write, and may write at any time up to that. So pages that
//! are pinned for writing are marked as written when they are released.

use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap as _, MS};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, Permissions,
    VolatileSlice,
};

use super::pin_slot::{Held, PinSlot};
use super::port::Path;
use super::shared::DmaState;
use super::transaction::DmaTransaction;
use super::used::{Domains, Run, Used};

/// The most translations that are looked up for a pin at a time: it bounds a transaction, and what an
/// invalidation looks at.
pub(super) const MOST_STEPS: usize = 1024;

/// Room for the pages that a device has pinned at a time. To be used again and again: then pinning
/// allocates nothing.
///
/// It belongs to no view, and a view may be dropped while pages are pinned. A device that has
/// several requests under way has a `DmaPin` for each.
pub struct DmaPin<M> {
    /// Keeps guest memory from going away under the device.
    memory: Option<M>,
    /// `None` behind no unit.
    place: Option<Place<M>>,
    runs: Vec<Run>,
    /// Marks `runs`, if they are pinned for writing.
    mark: Option<fn(&M, &[Run])>,
    /// For the list in the slot.
    spare: Vec<Run>,
}

/// Where the drain looks.
struct Place<M> {
    state: Arc<DmaState<M>>,
    slot: Arc<PinSlot>,
}

impl<M> DmaPin<M> {
    /// The most pieces of memory that are pinned at a time. It is half of what a system call takes
    /// (`IOV_MAX`).
    pub const MOST_PIECES: usize = 512;

    /// Without pages.
    pub const fn new() -> Self {
        Self {
            memory: None,
            place: None,
            runs: Vec::new(),
            mark: None,
            spare: Vec::new(),
        }
    }

    /// Gives back what is pinned, if anything is. What is pinned for writing is marked in the bitmaps
    /// of guest memory, written or not: nothing may be written to it any more.
    pub fn release(&mut self) {
        if let (Some(mark), Some(memory)) = (self.mark.take(), &self.memory) {
            mark(memory, &self.runs);
        }
        self.runs.clear();
        if let Some(place) = &self.place {
            self.spare = place.slot.release();
        }
    }
}

impl<M> Default for DmaPin<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Drop for DmaPin<M> {
    fn drop(&mut self) {
        self.release();
        if let Some(Place { state, slot }) = self.place.take() {
            state.unregister_pin(&slot);
        }
    }
}

/// Pages that a device has pinned, until it is dropped.
pub struct Pinned<'p, M> {
    pin: &'p mut DmaPin<M>,
    length: usize,
}

impl<M> Drop for Pinned<'_, M> {
    fn drop(&mut self) {
        self.pin.release();
    }
}

impl<M> Pinned<'_, M> {
    /// Bytes that are pinned. There may be less than was asked for, but not nothing.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was asked for.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Keeps the pages pinned until the `DmaPin` is released, dropped or used again, for I/O that goes
    /// on when this function has returned. Guest memory stays mapped as long, wherever the `DmaPin` is
    /// moved to. Returns how many bytes that are.
    pub fn keep(self) -> usize {
        let length = self.length;
        std::mem::forget(self);
        length
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Pinned<'_, M> {
    /// The memory, in the order in which it was asked for; at most [`DmaPin::MOST_PIECES`].
    ///
    /// # Errors
    /// None as long as guest memory is what it was when it was pinned.
    pub fn slices(
        &self,
    ) -> impl Iterator<Item = Result<VolatileSlice<'_, MS<'_, M::Target>>, GuestMemoryError>> {
        let memory = self.pin.memory.as_ref();
        self.pin.runs.iter().map(move |run| {
            let address = GuestAddress(run.output);
            let length = usize::try_from(run.length).unwrap_or(usize::MAX);
            let memory = memory.ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
            GuestMemoryBackend::get_slice(&**memory, address, length)
        })
    }
}

impl<M: Clone + Deref<Target: GuestMemoryBackend>> DmaTransaction<'_, M> {
    /// Pins `ranges` for `access`, which is an access as any other: of its faults, and of the bits
    /// that it sets in the tables. What `pin` has held before is released.
    ///
    /// It pins what comes first, if there is more than a pin takes: [`Pinned::len`] says how much.
    /// The device is then to come back for the rest.
    ///
    /// Whoever holds the pages is to release them in a time that a guest can wait for, which is that
    /// of its I/O. While it does not, the invalidation of one of them does not complete, and with it
    /// none behind it in the queue.
    ///
    /// # Errors
    /// An address does not translate, or is not memory: nothing is pinned.
    pub fn pin<'p>(
        &self,
        pin: &'p mut DmaPin<M>,
        ranges: impl IntoIterator<Item = (GuestAddress, usize)>,
        access: Permissions,
    ) -> Result<Pinned<'p, M>, GuestMemoryError> {
        pin.release();
        let mut pin = Pinned { pin, length: 0 };
        let mut steps = MOST_STEPS;
        for (address, length) in ranges {
            let found = self.pieces(
                &mut pin.pin.runs,
                (address.0, length as u64),
                access,
                &mut steps,
            )?;
            pin.length += found;
            if found != length {
                break;
            }
        }
        self.hold(pin.pin, access);
        Ok(pin)
    }

    /// Adds a range to `runs`: as much of it as there is room and `steps` are left for. Returns how
    /// much that was.
    fn pieces(
        &self,
        runs: &mut Vec<Run>,
        (start, length): (u64, u64),
        access: Permissions,
        steps: &mut usize,
    ) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        while done < length && *steps != 0 {
            let input = start
                .checked_add(done)
                .ok_or(GuestMemoryError::GuestAddressOverflow)?;
            let run = self
                .piece(input, length - done, access)
                .ok_or(GuestMemoryError::InvalidGuestAddress(GuestAddress(input)))?;
            let is_full = runs.len() == DmaPin::<M>::MOST_PIECES;
            match runs.last_mut() {
                Some(last) if self.continues(last, &run) => last.length += run.length,
                _ if is_full => break,
                _ => runs.push(run),
            }
            done += run.length;
            *steps -= 1;
        }
        usize::try_from(done).map_err(|_| GuestMemoryError::GuestAddressOverflow)
    }

    /// What is at `input`, up to the end of its page, of its region of memory, or of `most` bytes.
    fn piece(&self, input: u64, most: u64, access: Permissions) -> Option<Run> {
        if !self.is_open() {
            return None;
        }
        let (output, length) = self.stretch(input, most, access)?;
        let (region, offset) = self.near().find(output)?;
        let length = length.min(region.len().checked_sub(offset.0)?);
        (length != 0).then_some(Run {
            input,
            output,
            length,
        })
    }

    /// Whether `run` goes on where `last` ends, in the same region of memory.
    fn continues(&self, last: &Run, run: &Run) -> bool {
        last.input.checked_add(last.length) == Some(run.input)
            && last.output.checked_add(last.length) == Some(run.output)
            && self
                .near()
                .find(last.output)
                .is_some_and(|(region, offset)| offset.0 + last.length < region.len())
    }

    /// From here on, the drain knows of the pages.
    fn hold(&self, pin: &mut DmaPin<M>, access: Permissions) {
        let port = self.port();
        let memory = port.memory();
        if !pin
            .memory
            .as_ref()
            .is_some_and(|held| ptr::eq(&**held, &**memory))
        {
            pin.memory = Some(memory.clone());
        }
        pin.mark = access.has_write().then_some(mark::<M>);
        let Path::Translated { state, source } = &port.path else {
            return;
        };
        let is_here = |place: &Place<M>| Arc::ptr_eq(&place.state, state);
        if !pin.place.as_ref().is_some_and(is_here) {
            if let Some(Place { state, slot }) = pin.place.take() {
                state.unregister_pin(&slot);
            }
            pin.place = Some(Place {
                state: Arc::clone(state),
                slot: state.register_pin(),
            });
        }
        let Some(place) = &pin.place else { return };
        let mut runs = std::mem::take(&mut pin.spare);
        runs.clone_from(&pin.runs);
        let mut used = Used {
            domains: Domains::Any,
            stage: None,
            runs,
        };
        if self.is_identity() {
            used.domains = Domains::None;
        } else if let Some(resolved) = self.bound() {
            used.by(resolved);
        }
        let held = Held {
            source: *source,
            pasid: self.pasid(),
            privileged: self.privileged(),
            kind: self.kind(),
            access,
            used,
        };
        place.slot.hold(self.generation(), held);
    }
}

/// Marks what may have been written.
fn mark<M: Deref<Target: GuestMemoryBackend>>(memory: &M, runs: &[Run]) {
    for run in runs {
        // A run is in one region.
        if let Some((region, offset)) = memory.to_region_addr(GuestAddress(run.output))
            && let (Ok(offset), Ok(length)) =
                (usize::try_from(offset.0), usize::try_from(run.length))
        {
            region.bitmap().mark_dirty(offset, length);
        }
    }
}
