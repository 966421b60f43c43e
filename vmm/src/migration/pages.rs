//! Runs of pages as frames: copied while the guest may write to them, those of zeros by their number.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::error::{Result, StreamError};
use super::outbox::Outbox;
use super::send::Sent;
use super::wire::{Kind, PAGE, PIECE, ZEROS_MOST};
use crate::memory::holes::Holes;

/// Most pages of a frame: what a processor's cache holds well.
const MOST: u64 = 64;
const _: () = assert!(MOST * PAGE as u64 <= PIECE as u64);

/// What a page holds that is sent by its number only.
static ZEROS: [u8; PAGE] = [0; PAGE];

/// Puts pages into frames, each frame of as many that follow each other as may be.
#[derive(Debug)]
pub(super) struct Pages {
    open: Option<Open>,
    sent: Sent,
    /// The page that is looked at.
    page: Box<[u8; PAGE]>,
    holes: Holes,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            open: None,
            sent: Sent::default(),
            page: Box::new(ZEROS),
            holes: Holes::default(),
        }
    }
}

/// The frame that the next page may belong to.
#[derive(Clone, Copy, Debug)]
struct Open {
    is_zeros: bool,
    start: u64,
    pages: u64,
}

impl Open {
    fn takes(&self, address: u64, is_zeros: bool) -> bool {
        let most = match self.is_zeros {
            true => ZEROS_MOST,
            false => MOST,
        };
        let next = self.start.wrapping_add(self.pages * PAGE as u64);
        self.is_zeros == is_zeros && next == address && self.pages < most
    }
}

impl Pages {
    /// Adds the page at `address`, as it is now.
    pub(super) fn add<M: GuestMemoryBackend>(
        &mut self,
        outbox: &mut Outbox,
        memory: &M,
        address: u64,
    ) -> Result<()> {
        // The guest may write to it at any time: what is looked at and sent is this copy.
        let place = memory.get_slice(GuestAddress(address), PAGE);
        if !address.is_multiple_of(PAGE as u64) {
            return Err(StreamError::NoPage(address));
        }
        let place = place.map_err(|_| StreamError::NoPage(address))?;
        // What the host has given no memory is not looked at, or it would get some.
        if self.holes.has(memory, address) {
            *self.page = ZEROS;
        } else {
            place.copy_to(self.page.as_mut_slice());
        }
        let is_zeros = *self.page == ZEROS;
        if !self.open.is_some_and(|open| open.takes(address, is_zeros)) {
            self.close(outbox);
            self.begin(outbox, address, is_zeros);
        }
        if let Some(open) = &mut self.open {
            open.pages += 1;
        }
        if is_zeros {
            self.sent.zeros += 1;
        } else {
            outbox.add(self.page.as_slice());
            self.sent.data += 1;
        }
        Ok(())
    }

    fn begin(&mut self, outbox: &mut Outbox, start: u64, is_zeros: bool) {
        outbox.begin();
        outbox.add(&start.to_le_bytes());
        if !is_zeros {
            outbox.add(&0u64.to_le_bytes());
        }
        self.open = Some(Open {
            is_zeros,
            start,
            pages: 0,
        });
    }

    /// Ends the frame that was begun, if one was. It can be sent then.
    pub(super) fn close(&mut self, outbox: &mut Outbox) {
        let Some(open) = self.open.take() else {
            return;
        };
        if open.is_zeros {
            outbox.add(&open.pages.to_le_bytes());
            outbox.end(Kind::Zeros);
        } else {
            outbox.end(Kind::Pages);
        }
    }

    /// What was added so far.
    pub(super) fn sent(&self) -> Sent {
        self.sent
    }
}
