//! Giving BARs their addresses, as firmware does: largest first, so that natural alignment wastes nothing.

use std::ops::Range;

use thiserror::Error;

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

/// Addresses for all `requests`, naturally aligned and page aligned. 64-bit BARs fall back to the 32-bit aperture.
pub(crate) fn assign(
    mut requests: Vec<Request>,
    mmio32: &Range<u64>,
    mmio64: &Range<u64>,
) -> Result<Vec<(Request, u64)>, AssignError> {
    let (mut low, mut high) = (mmio32.clone(), mmio64.clone());
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

/// Cuts `size` naturally aligned bytes off the front of `free`. Address zero means "unassigned", so it is never given.
fn take(free: &mut Range<u64>, size: u64) -> Option<u64> {
    let start = free.start.max(1).checked_next_multiple_of(size)?;
    let end = start.checked_add(size)?;
    if end > free.end {
        return None;
    }
    free.start = end;
    Some(start)
}
