//! The windows that firmware gives root ports: for the BARs of the functions behind them, and for
//! functions to come.

use std::ops::Range;

use crate::bar::BarKind;
use crate::bar_assignment::{self, AssignError, Item, PAGE, Request};
use crate::bdf::Bdf;
use crate::bridge::WINDOW_UNIT;
use crate::function::PciFunction;
use crate::port::RootPort;

/// How much of the 32-bit aperture a port is to have at least.
const SPARE_32: u64 = 16 << 20;
/// How much of the 64-bit aperture a port is to have at least, for prefetchable BARs.
const SPARE_64: u64 = 4 << 30;

/// What each port has at least: all of them together leave half of an aperture to others.
pub(crate) struct Spare {
    memory: u64,
    prefetchable: u64,
}

impl Spare {
    pub(crate) fn new(mmio32: &Range<u64>, mmio64: &Range<u64>, ports: usize) -> Self {
        let ports = u64::try_from(ports).unwrap_or(u64::MAX).max(1);
        let share = |aperture: &Range<u64>, most: u64| {
            let size = aperture.end.saturating_sub(aperture.start) / 2 / ports;
            // The power of two that is not above it.
            let size = size.checked_ilog2().map_or(0, |bits| 1 << bits);
            if size < WINDOW_UNIT {
                0
            } else {
                size.min(most)
            }
        };
        Self {
            memory: share(mmio32, SPARE_32),
            prefetchable: share(mmio64, SPARE_64),
        }
    }
}

/// The BARs of a function.
pub(crate) fn bars(address: Bdf, function: &dyn PciFunction) -> impl Iterator<Item = Request> {
    let sizes = function.bar_sizes().into_iter();
    sizes.map(move |(bar, kind, size)| Request {
        item: Item::Bar(address, bar),
        kind,
        size,
    })
}

/// The BARs of `function` behind `port`. Only prefetchable ones have a place above 4 GiB.
fn bars_behind(port: &RootPort, function: Option<&dyn PciFunction>) -> Vec<Request> {
    let Some(function) = function else {
        return Vec::new();
    };
    bars(port.function_address(), function)
        .map(|request| Request {
            kind: match request.kind {
                BarKind::Memory64 { prefetchable: true } => request.kind,
                _ => BarKind::Memory32,
            },
            ..request
        })
        .collect()
}

/// The windows that `port` needs with `function` behind it.
pub(crate) fn requests(
    port: &RootPort,
    function: Option<&dyn PciFunction>,
    spare: &Spare,
) -> Vec<Request> {
    let bars = bars_behind(port, function);
    let size = |low: bool, spare: u64| {
        let needed = bars
            .iter()
            .filter(|request| (request.kind == BarKind::Memory32) == low)
            .map(|request| request.size.max(PAGE))
            .fold(0, u64::saturating_add);
        match needed.max(spare) {
            0 => None,
            // Sizes are powers of two, largest first: nothing is lost between them.
            size => size.max(WINDOW_UNIT).checked_next_power_of_two(),
        }
    };
    let window = |item, kind, size| Request { item, kind, size };
    let memory = size(true, spare.memory)
        .map(|size| window(Item::Window(port.address()), BarKind::Memory32, size));
    let prefetchable = size(false, spare.prefetchable).map(|size| {
        let kind = BarKind::Memory64 { prefetchable: true };
        window(Item::PrefetchableWindow(port.address()), kind, size)
    });
    memory.into_iter().chain(prefetchable).collect()
}

/// The windows of a port; empty ones are closed.
pub(crate) struct Windows {
    pub(crate) memory: Range<u64>,
    pub(crate) prefetchable: Range<u64>,
}

impl Windows {
    /// The windows of `port` among what was assigned.
    pub(crate) fn find(port: Bdf, assigned: &[(Request, u64)]) -> Self {
        let window = |item: Item| {
            assigned
                .iter()
                .find(|(request, _)| request.item == item)
                .map_or(0..0, |(request, start)| *start..start + request.size)
        };
        Self {
            memory: window(Item::Window(port)),
            prefetchable: window(Item::PrefetchableWindow(port)),
        }
    }

    /// Addresses for the BARs of `function` behind `port`: index and address.
    pub(crate) fn assign(
        &self,
        port: &RootPort,
        function: Option<&dyn PciFunction>,
    ) -> Result<Vec<(usize, u64)>, AssignError> {
        let bars = bars_behind(port, function);
        let assigned = bar_assignment::assign(bars, &self.memory, &self.prefetchable)?;
        let bars = assigned.into_iter().filter_map(|(request, address)| {
            let Item::Bar(_, bar) = request.item else {
                return None;
            };
            Some((bar, address))
        });
        Ok(bars.collect())
    }
}
