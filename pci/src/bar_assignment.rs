//! The assignment of addresses to BARs and bridge windows, as firmware does it: largest first,
//! naturally aligned.
//!
//! Each assignment is made anew from what is there, so what was unplugged leaves nothing behind.

use std::ops::Range;

use thiserror::Error;
use vm_allocator::{AddressAllocator, AllocPolicy};

use crate::bar::BarKind;
use crate::bdf::Bdf;

/// Something found no room.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AssignError {
    /// A BAR.
    #[error(
        "no room for BAR {bar} of {function} ({size:#x} bytes) in the {aperture} aperture; enlarge it or attach fewer devices"
    )]
    Bar {
        /// The function.
        function: Bdf,
        /// Index of the BAR.
        bar: usize,
        /// Its size in bytes.
        size: u64,
        /// Which aperture is full.
        aperture: &'static str,
    },
    /// A window of a root port.
    #[error(
        "no room for a window of root port {port} ({size:#x} bytes) in the {aperture} aperture; enlarge it or attach fewer devices"
    )]
    Window {
        /// The port.
        port: Bdf,
        /// Its size in bytes.
        size: u64,
        /// Which aperture is full.
        aperture: &'static str,
    },
}

/// What wants an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    /// A BAR of a function.
    Bar(Bdf, usize),
    /// The window of a root port.
    Window(Bdf),
    /// The prefetchable window of a root port.
    PrefetchableWindow(Bdf),
}

/// A wish for an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) item: Item,
    pub(crate) kind: BarKind,
    /// Bytes; a power of two.
    pub(crate) size: u64,
}

impl Request {
    fn failed(self, aperture: &'static str) -> AssignError {
        let size = self.size;
        match self.item {
            Item::Bar(function, bar) => AssignError::Bar {
                function,
                bar,
                size,
                aperture,
            },
            Item::Window(port) | Item::PrefetchableWindow(port) => AssignError::Window {
                port,
                size,
                aperture,
            },
        }
    }
}

/// BARs never share a page: each can then be mapped into a user process by itself.
pub(crate) const PAGE: u64 = 4096;

/// Addresses for all `requests`, naturally aligned and page aligned. 64-bit BARs fall back to the
/// 32-bit aperture.
pub(crate) fn assign(
    mut requests: Vec<Request>,
    mmio32: &Range<u64>,
    mmio64: &Range<u64>,
) -> Result<Vec<(Request, u64)>, AssignError> {
    let (mut low, mut high) = (allocator(mmio32), allocator(mmio64));
    requests.sort_by_key(|request| (std::cmp::Reverse(request.size), request.item));
    let mut assigned = Vec::with_capacity(requests.len());
    for request in requests {
        let size = request.size.max(PAGE);
        let (address, aperture) = match request.kind {
            BarKind::Memory32 => (take(&mut low, size), "32-bit"),
            BarKind::Memory64 { .. } => (
                take(&mut high, size).or_else(|| take(&mut low, size)),
                "64-bit",
            ),
        };
        let address = address.ok_or_else(|| request.failed(aperture))?;
        assigned.push((request, address));
    }
    Ok(assigned)
}

/// Hands out the addresses of an aperture, unless it is empty. Address zero means "unassigned", so
/// it is never given.
fn allocator(aperture: &Range<u64>) -> Option<AddressAllocator> {
    let start = aperture.start.max(1);
    AddressAllocator::new(start, aperture.end.checked_sub(start)?).ok()
}

/// The lowest naturally aligned range of `size` bytes that is free.
fn take(free: &mut Option<AddressAllocator>, size: u64) -> Option<u64> {
    let range = free
        .as_mut()?
        .allocate(size, size, AllocPolicy::FirstMatch)
        .ok()?;
    Some(range.start())
}
