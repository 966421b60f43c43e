//! Marks of the pages of guest memory that this process has written to, for whoever sends the memory
//! of a running machine elsewhere.
//!
//! KVM says what vCPUs write. What devices and the unit write, it does not see: vm-memory says so to
//! [`Marks`], which every region of guest memory has. While nobody asks for marks, a write costs one
//! look at a flag.
//!
//! A mark follows the write that it is for. Were it the other way round, it could be taken before the
//! write, with what was in the page, and the write be lost.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::{AtomicBitmap, Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Bytes that a mark is for.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A mark for each page of a region of guest memory, with nothing marked until [`begin`](Self::begin).
#[derive(Debug)]
pub struct Marks {
    is_on: AtomicBool,
    pages: AtomicBitmap,
}

impl Marks {
    /// Bytes of the pages that marks are for.
    pub const PAGE: usize = PAGE.get();

    /// Forgets all marks, and has pages be marked from here on. Writes that are under way on other
    /// threads may be missed: this is for when there are none.
    pub fn begin(&self) {
        self.pages.reset();
        self.is_on.store(true, Ordering::SeqCst);
    }

    /// Whether pages are marked at the moment.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }

    /// Has no page be marked any more.
    pub fn end(&self) {
        self.is_on.store(false, Ordering::SeqCst);
    }

    /// The marks since the last call, a bit for each page, from the lowest bit of the first word on.
    /// What is written meanwhile is in these, or in the next.
    pub fn take(&self) -> Vec<u64> {
        self.pages.get_and_reset()
    }
}

impl Default for Marks {
    /// Of no pages.
    fn default() -> Self {
        Self::with_len(0)
    }
}

impl NewBitmap for Marks {
    fn with_len(bytes: usize) -> Self {
        Self {
            is_on: AtomicBool::new(false),
            pages: AtomicBitmap::new(bytes, PAGE),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for Marks {
    type S = MarksSlice<'a>;
}

impl Marks {
    /// Apart from what is done without it, so that a write of a guest that nobody follows is no more than a
    /// write and a look.
    #[cold]
    #[inline(never)]
    fn mark(&self, offset: usize, bytes: usize) {
        self.pages.set_addr_range(offset, bytes);
    }
}

impl Bitmap for Marks {
    #[inline(always)]
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        // Whoever turns marks on does so while no device is at work, and sets them to work again by
        // locks, which show them this.
        if self.is_on.load(Ordering::Relaxed) {
            self.mark(offset, bytes);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.is_addr_set(offset)
    }

    #[inline(always)]
    fn slice_at(&self, offset: usize) -> MarksSlice<'_> {
        MarksSlice {
            marks: self,
            offset,
        }
    }
}

/// The marks of a part of a region. It is vm-memory's `RefSlice` for [`Marks`], but always a part of whoever
/// uses it: that one is a call for each access.
#[derive(Clone, Copy, Debug)]
pub struct MarksSlice<'a> {
    marks: &'a Marks,
    offset: usize,
}

impl WithBitmapSlice<'_> for MarksSlice<'_> {
    type S = Self;
}

impl BitmapSlice for MarksSlice<'_> {}

impl Bitmap for MarksSlice<'_> {
    #[inline(always)]
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        // Whoever accesses memory there has checked that it is there.
        self.marks
            .mark_dirty(self.offset.wrapping_add(offset), bytes);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.marks.dirty_at(self.offset.wrapping_add(offset))
    }

    #[inline(always)]
    fn slice_at(&self, offset: usize) -> Self {
        Self {
            marks: self.marks,
            offset: self.offset.wrapping_add(offset),
        }
    }
}

#[cfg(test)]
mod marks_test;
#[cfg(test)]
mod speed_test;
#[cfg(test)]
pub(crate) mod testing;
