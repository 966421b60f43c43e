//! The address map of the bus: the BAR windows of all functions as a sorted list of disjoint
//! pieces.

use std::ops::Range;
use std::sync::Arc;

use crate::bar::BarWindow;
use crate::bdf::Bdf;
use crate::function::PciFunction;

/// A part of a window that accesses reach.
#[derive(Clone)]
pub(crate) struct Piece {
    /// First and last address of the piece.
    first: u64,
    last: u64,
    /// Address at which the whole window starts.
    base: u64,
    bar: usize,
    function: Arc<dyn PciFunction>,
}

/// The decoded address map.
#[derive(Default)]
pub(crate) struct Map {
    /// Sorted, disjoint.
    pieces: Vec<Piece>,
}

/// An access that a function answers.
pub(crate) struct Target {
    pub(crate) function: Arc<dyn PciFunction>,
    pub(crate) bar: usize,
    pub(crate) offset: u64,
}

impl Map {
    /// Adds a window. What an earlier window covers stays with it; returns whether the window was
    /// taken whole.
    pub(crate) fn add(&mut self, window: BarWindow, function: &Arc<dyn PciFunction>) -> bool {
        let Some(end) = window.last() else {
            return false;
        };
        let mut free = Vec::new();
        let mut next = Some(window.base);
        for piece in self
            .pieces
            .iter()
            .filter(|piece| piece.first <= end && window.base <= piece.last)
        {
            if let Some(start) = next.filter(|start| *start < piece.first) {
                free.push((start, piece.first - 1));
            }
            next = piece.last.checked_add(1);
        }
        if let Some(start) = next.filter(|start| *start <= end) {
            free.push((start, end));
        }
        let whole = free == [(window.base, end)];
        for (first, last) in free {
            let at = self.pieces.partition_point(|piece| piece.first < first);
            let function = Arc::clone(function);
            self.pieces.insert(
                at,
                Piece {
                    first,
                    last,
                    base: window.base,
                    bar: window.bar,
                    function,
                },
            );
        }
        whole
    }

    /// Who answers an access of `length` bytes at `address`; an access across the end of a piece
    /// reaches nobody.
    pub(crate) fn find(&self, address: u64, length: usize) -> Option<Target> {
        let last = address.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        let index = self
            .pieces
            .partition_point(|piece| piece.first <= address)
            .checked_sub(1)?;
        let piece = self.pieces.get(index).filter(|piece| last <= piece.last)?;
        Some(Target {
            function: Arc::clone(&piece.function),
            bar: piece.bar,
            offset: address - piece.base,
        })
    }
}

/// A function, and where on the bus it is.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) address: Bdf,
    pub(crate) function: Arc<dyn PciFunction>,
    /// Where accesses can reach it at all.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// The map of `members` in order, and for each of them the windows that accesses reach whole.
pub(crate) fn decode(members: &[Member]) -> (Map, Vec<Vec<BarWindow>>) {
    let mut map = Map::default();
    let mut reached = Vec::new();
    for Member {
        function, ranges, ..
    } in members
    {
        let mut windows = function.windows();
        windows.retain(|window| inside(window, ranges) && map.add(*window, function));
        reached.push(windows);
    }
    (map, reached)
}

fn inside(window: &BarWindow, ranges: &[Range<u64>]) -> bool {
    window.last().is_some_and(|last| {
        ranges
            .iter()
            .any(|range| range.contains(&window.base) && range.contains(&last))
    })
}
