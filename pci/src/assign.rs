//! Giving BARs their addresses, as firmware does: largest first, so that natural alignment wastes nothing.

use std::ops::Range;

use thiserror::Error;

use crate::bar::BarKind;
use crate::bdf::Bdf;

/// A BAR found no room.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "no room for BAR {bar} of {function} ({size:#x} bytes) in the {aperture} aperture; enlarge it or attach fewer devices"
)]
pub struct AssignError {
    /// The function.
    pub function: Bdf,
    /// Index of the BAR.
    pub bar: usize,
    /// Its size in bytes.
    pub size: u64,
    /// Which aperture is full.
    pub aperture: &'static str,
}

/// A BAR that wants an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) function: Bdf,
    pub(crate) bar: usize,
    pub(crate) kind: BarKind,
    pub(crate) size: u64,
}

/// BARs never share a page: each can then be mapped into a user process by itself.
const PAGE: u64 = 4096;

/// Addresses for all `requests`, naturally aligned and page aligned. 64-bit BARs fall back to the 32-bit aperture.
pub(crate) fn assign(
    mut requests: Vec<Request>,
    mmio32: &Range<u64>,
    mmio64: &Range<u64>,
) -> Result<Vec<(Request, u64)>, AssignError> {
    let (mut low, mut high) = (mmio32.clone(), mmio64.clone());
    requests.sort_by_key(|request| {
        (
            std::cmp::Reverse(request.size),
            request.function,
            request.bar,
        )
    });
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
        let Request {
            function,
            bar,
            size,
            ..
        } = request;
        let address = address.ok_or(AssignError {
            function,
            bar,
            size,
            aperture,
        })?;
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
