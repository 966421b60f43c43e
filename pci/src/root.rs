//! The root complex: the functions on the bus, their configuration space over ECAM (section 7.2.2), and the dispatch of
//! memory accesses to their BARs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use thiserror::Error;

use crate::assign::{self, AssignError, Request};
use crate::bar::BarWindow;
use crate::bdf::Bdf;
use crate::decode::{self, Map, Target};
use crate::function::PciFunction;
use crate::header::{CONFIG_SPACE_SIZE, ECAM_FUNCTION_SHIFT};
use crate::host_bridge::HostBridge;

/// Where the root complex lies in the guest-physical address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apertures {
    /// First byte of the configuration space, 1 MiB per bus.
    pub ecam_base: u64,
    /// How many buses it covers, from bus 0.
    pub buses: u16,
    /// Where 32-bit BARs are decoded.
    pub mmio32: Range<u64>,
    /// Where 64-bit BARs are decoded; may be empty.
    pub mmio64: Range<u64>,
}

/// A function cannot be added.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AddError {
    /// Another function has that address.
    #[error("PCI address {0} is taken; choose another slot")]
    Taken(Bdf),
    /// No ECAM region for that bus.
    #[error(
        "PCI address {0} lies beyond the last bus ({1} buses exist); choose a lower bus or more buses"
    )]
    NoSuchBus(Bdf, u16),
}

type Functions = BTreeMap<Bdf, Arc<dyn PciFunction>>;

/// The bus and everything on it. All methods may be called from any thread.
pub struct RootComplex {
    apertures: Apertures,
    functions: RwLock<Functions>,
    map: RwLock<Map>,
    /// Serialises decoding: the windows each function was told last. Taken before a function's own locks and before
    /// `functions` and `map`; never while one of those is held.
    told: Mutex<BTreeMap<Bdf, Vec<BarWindow>>>,
}

impl RootComplex {
    /// A bus with nothing but the host bridge at 00:00.0.
    #[must_use]
    pub fn new(apertures: Apertures) -> Self {
        let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge::new());
        Self {
            apertures,
            functions: RwLock::new(BTreeMap::from([(Bdf::from_requester_id(0), bridge)])),
            map: RwLock::default(),
            told: Mutex::default(),
        }
    }

    /// Where the root complex lies.
    #[must_use]
    pub fn apertures(&self) -> &Apertures {
        &self.apertures
    }

    /// Bytes of the ECAM region.
    #[must_use]
    pub fn ecam_size(&self) -> u64 {
        u64::from(self.apertures.buses) << 20
    }

    /// Puts `function` at `bdf`.
    ///
    /// # Errors
    /// When the address is taken or its bus does not exist.
    pub fn add(&self, bdf: Bdf, function: Arc<dyn PciFunction>) -> Result<(), AddError> {
        if u16::from(bdf.bus()) >= self.apertures.buses {
            return Err(AddError::NoSuchBus(bdf, self.apertures.buses));
        }
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if functions.contains_key(&bdf) {
            return Err(AddError::Taken(bdf));
        }
        functions.insert(bdf, function);
        Ok(())
    }

    /// The addresses of all functions, the host bridge included, in order.
    #[must_use]
    pub fn addresses(&self) -> Vec<Bdf> {
        self.functions().keys().copied().collect()
    }

    /// Gives every BAR an address, as firmware does. Enables nothing.
    ///
    /// # Errors
    /// When an aperture is too small; no BAR has been changed then.
    pub fn assign_bars(&self) -> Result<(), AssignError> {
        let functions = self.functions();
        let requests = functions
            .iter()
            .flat_map(|(bdf, function)| {
                let sizes = function.bar_sizes().into_iter();
                sizes.map(|(bar, kind, size)| Request {
                    function: *bdf,
                    bar,
                    kind,
                    size,
                })
            })
            .collect();
        for (request, address) in
            assign::assign(requests, &self.apertures.mmio32, &self.apertures.mmio64)?
        {
            if let Some(function) = functions.get(&request.function) {
                function.assign_bar(request.bar, address);
            }
        }
        self.decode();
        Ok(())
    }

    /// Reads configuration space; `offset` counts from the ECAM base. Absent functions and bytes beyond the last bus
    /// read as ones, as does an access that crosses from one function into the next.
    pub fn read_ecam(&self, offset: u64, data: &mut [u8]) {
        match self.function_at(offset, data.len()) {
            Some((function, register)) => function.read_config(register, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space; writes that nobody answers are dropped.
    pub fn write_ecam(&self, offset: u64, data: &[u8]) {
        let Some((function, register)) = self.function_at(offset, data.len()) else {
            return;
        };
        let change = function.write_config(register, data);
        if change.decode || change.function_reset {
            self.decode();
        }
    }

    /// Reads guest-physical `address` from the BAR that decodes it; ones when none does. Returns whether one did.
    pub fn read_mmio(&self, address: u64, data: &mut [u8]) -> bool {
        match self.target(address, data.len()) {
            Some(target) => {
                target.function.read_bar(target.bar, target.offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes guest-physical `address` to the BAR that decodes it. Returns whether one did.
    pub fn write_mmio(&self, address: u64, data: &[u8]) -> bool {
        let Some(target) = self.target(address, data.len()) else {
            return false;
        };
        target.function.write_bar(target.bar, target.offset, data);
        true
    }

    /// Platform reset: every function back to power-on. The caller plays firmware again with
    /// [`assign_bars`](Self::assign_bars).
    pub fn reset(&self) {
        let functions = self.functions();
        for function in functions.values() {
            function.quiesce();
        }
        for function in functions.values() {
            function.reset();
        }
        self.decode();
    }

    /// A copy, so that no lock is held while a function runs.
    fn functions(&self) -> Functions {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn function_at(&self, offset: u64, length: usize) -> Option<(Arc<dyn PciFunction>, u16)> {
        let id = u16::try_from(offset >> ECAM_FUNCTION_SHIFT).ok()?;
        let register = u16::try_from(offset & 0xfff).ok()?;
        if usize::from(register).checked_add(length)? > CONFIG_SPACE_SIZE {
            return None;
        }
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions
            .get(&Bdf::from_requester_id(id))
            .map(|function| (Arc::clone(function), register))
    }

    fn target(&self, address: u64, length: usize) -> Option<Target> {
        self.map
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .find(address, length)
    }

    /// Builds the address map anew and tells the functions whose reachable windows changed.
    fn decode(&self) {
        let mut told: MutexGuard<'_, _> = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let functions = self.functions();
        let apertures = [self.apertures.mmio32.clone(), self.apertures.mmio64.clone()];
        let (map, reached) = decode::decode(functions.iter(), &apertures);
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = map;
        // First take windows away everywhere, then add: two functions may have swapped a range.
        for adding in [false, true] {
            for (bdf, windows) in &reached {
                let before = told.entry(*bdf).or_default();
                let next: Vec<_> = if adding {
                    windows.clone()
                } else {
                    before
                        .iter()
                        .filter(|w| windows.contains(w))
                        .copied()
                        .collect()
                };
                if *before != next {
                    if let Some(function) = functions.get(bdf) {
                        function.windows_changed(&next);
                    }
                    *before = next;
                }
            }
        }
    }
}
