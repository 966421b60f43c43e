//! The root complex: the functions on the bus, their configuration space over ECAM (section 7.2.2),
//! and the dispatch of memory accesses to their BARs.

mod saved;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard, RwLock};
use thiserror::Error;

use crate::bar::BarWindow;
use crate::bar_assignment::{self, AssignError, Item};
use crate::bdf::Bdf;
use crate::config_layout::CONFIG_SPACE_SIZE;
use crate::decode::{self, Map, Member, Target};
use crate::function::{MsiSink, PciFunction};
use crate::host_bridge::HostBridge;
use crate::hotplug::{PlugError, UnplugError};
use crate::park;
use crate::port::RootPort;
use crate::port_windows::{self, Windows};

/// Bit of an ECAM offset at which the function number starts (section 7.2.2); the bits above are
/// the requester id.
pub const ECAM_FUNCTION_SHIFT: u32 = 12;

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
    /// Functions are added to bus 0; others are plugged into root ports.
    #[error("PCI address {0} is behind a root port; plug the function into that")]
    NotOnRootBus(Bdf),
}

/// Where everything goes: the BARs of functions, and the windows of ports.
#[derive(Default)]
struct Plan {
    bars: Vec<(Arc<dyn PciFunction>, usize, u64)>,
    windows: Vec<(Arc<RootPort>, Windows)>,
}

type Functions = BTreeMap<Bdf, Arc<dyn PciFunction>>;

/// What functions were told last, by their addresses.
type Told = BTreeMap<Bdf, (Arc<dyn PciFunction>, Vec<BarWindow>)>;

/// The bus and everything on it. All methods may be called from any thread.
pub struct RootComplex {
    apertures: Apertures,
    /// On bus 0, root ports among them.
    functions: RwLock<Functions>,
    /// In the order of the buses behind them, which begin with bus 1.
    ports: RwLock<Vec<Arc<RootPort>>>,
    map: RwLock<Map>,
    /// Nothing is put into a slot while a plan is made and carried out, so that one that was found
    /// to be possible stays so. Taken before all other locks.
    plans: Mutex<()>,
    /// Serialises decoding: the windows each function was told last. Taken before a function's own
    /// locks and before `functions`, `ports` and `map`; never while one of those is held.
    told: Mutex<Told>,
}

impl RootComplex {
    /// A bus with nothing but the host bridge at 00:00.0.
    #[must_use]
    pub fn new(apertures: Apertures) -> Self {
        let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge::new());
        Self {
            apertures,
            functions: RwLock::new(BTreeMap::from([(Bdf::from_requester_id(0), bridge)])),
            ports: RwLock::default(),
            map: RwLock::default(),
            plans: Mutex::default(),
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

    /// Puts `function` at `bdf`, on bus 0.
    ///
    /// # Errors
    /// When the address is taken, or is not on bus 0.
    pub fn add(&self, bdf: Bdf, function: Arc<dyn PciFunction>) -> Result<(), AddError> {
        if u16::from(bdf.bus()) >= self.apertures.buses {
            return Err(AddError::NoSuchBus(bdf, self.apertures.buses));
        }
        if bdf.bus() != 0 {
            return Err(AddError::NotOnRootBus(bdf));
        }
        let mut functions = self.functions.write();
        if functions.contains_key(&bdf) {
            return Err(AddError::Taken(bdf));
        }
        functions.insert(bdf, function);
        Ok(())
    }

    /// Puts a root port with an empty slot at `bdf`. The bus behind it is the next one that is
    /// free, from bus 1 on. Messages about hot-plug go to `msi`.
    ///
    /// # Errors
    /// When the address is taken or not on bus 0, or the ECAM region has no bus left.
    pub fn add_port(&self, bdf: Bdf, msi: Arc<dyn MsiSink>) -> Result<Arc<RootPort>, AddError> {
        let mut ports = self.ports.write();
        let bus = u8::try_from(ports.len() + 1)
            .ok()
            .filter(|bus| u16::from(*bus) < self.apertures.buses)
            .ok_or(AddError::NoSuchBus(bdf, self.apertures.buses))?;
        let port = Arc::new(RootPort::new(bdf, bus, msi));
        self.add(bdf, Arc::<RootPort>::clone(&port))?;
        ports.push(Arc::clone(&port));
        Ok(port)
    }

    /// The root ports, in the order in which they were added.
    #[must_use]
    pub fn ports(&self) -> Vec<Arc<RootPort>> {
        self.ports.read().clone()
    }

    /// Puts `function`, which was created for [`RootPort::function_address`] and is in its reset
    /// state, into the slot of `port`. The guest is told if it has started; it powers the slot
    /// on, and assigns the BARs. Before that, the function is simply there at power-on.
    ///
    /// # Errors
    /// When the slot is occupied, or the apertures have no room for the BARs beside all others: the
    /// guest might find some, but firmware would not when the machine is reset.
    pub fn plug(&self, port: &RootPort, function: Arc<dyn PciFunction>) -> Result<(), PlugError> {
        let _planning = self.planning();
        if port.function().is_none() {
            self.plan(Some((port, &function)))?;
        }
        port.insert(function)?;
        self.decode();
        Ok(())
    }

    /// Takes the function out of the slot of `port`. It is in its reset state, nothing reaches it
    /// any more, and it knows that it has no windows.
    ///
    /// # Errors
    /// When the slot is empty, or the guest has not powered it off.
    pub fn unplug(&self, port: &RootPort) -> Result<Arc<dyn PciFunction>, UnplugError> {
        self.take(port, false)
    }

    /// Takes the function out of the slot of `port` while the guest may be using it, as if somebody
    /// had pulled it: what it does is stopped, and the guest finds it gone. Otherwise like
    /// [`unplug`](Self::unplug).
    ///
    /// # Errors
    /// When the slot is empty.
    pub fn pull(&self, port: &RootPort) -> Result<Arc<dyn PciFunction>, UnplugError> {
        self.take(port, true)
    }

    fn take(&self, port: &RootPort, force: bool) -> Result<Arc<dyn PciFunction>, UnplugError> {
        let function = port.take(force)?;
        self.decode();
        Ok(function)
    }

    /// The addresses of all functions, the host bridge included, in order; behind root ports as
    /// firmware numbers buses.
    #[must_use]
    pub fn addresses(&self) -> Vec<Bdf> {
        self.members()
            .into_iter()
            .map(|member| member.address)
            .collect()
    }

    /// Gives every BAR an address, and every root port a bus and windows, as firmware does. Enables
    /// nothing. Windows have room for functions that are plugged in later.
    ///
    /// # Errors
    /// When an aperture is too small; nothing has been changed then.
    pub fn assign_bars(&self) -> Result<(), AssignError> {
        let _planning = self.planning();
        let plan = self.plan(None)?;
        for (function, bar, address) in plan.bars {
            function.assign_bar(bar, address);
        }
        for (port, windows) in plan.windows {
            port.configure(&windows.memory, &windows.prefetchable);
        }
        self.decode();
        Ok(())
    }

    /// What [`assign_bars`](Self::assign_bars) does, with `coming` behind its port as well. To be
    /// called with the lock on plans.
    fn plan(
        &self,
        coming: Option<(&RootPort, &Arc<dyn PciFunction>)>,
    ) -> Result<Plan, AssignError> {
        let Apertures { mmio32, mmio64, .. } = &self.apertures;
        let functions = self.functions();
        let ports: Vec<_> = self
            .ports()
            .into_iter()
            .map(|port| {
                let new = coming.filter(|(to, _)| to.address() == port.address());
                let function = new.map(|(_, function)| Arc::clone(function));
                let function = function.or_else(|| port.function());
                (port, function)
            })
            .collect();
        let mut requests = Vec::new();
        for (bdf, function) in &functions {
            requests.extend(port_windows::bars(*bdf, &**function));
        }
        let spare = port_windows::Spare::new(mmio32, mmio64, ports.len());
        for (port, function) in &ports {
            requests.extend(port_windows::requests(port, function.as_deref(), &spare));
        }
        let assigned = bar_assignment::assign(requests, mmio32, mmio64)?;
        let mut plan = Plan::default();
        for (request, address) in &assigned {
            if let Item::Bar(bdf, bar) = request.item
                && let Some(function) = functions.get(&bdf)
            {
                plan.bars.push((Arc::clone(function), bar, *address));
            }
        }
        for (port, function) in ports {
            let windows = Windows::find(port.address(), &assigned);
            let bars = windows.assign(&port, function.as_deref())?;
            if let Some(function) = function {
                let bars = bars.into_iter();
                plan.bars
                    .extend(bars.map(|(bar, address)| (Arc::clone(&function), bar, address)));
            }
            plan.windows.push((port, windows));
        }
        Ok(plan)
    }

    fn planning(&self) -> MutexGuard<'_, ()> {
        self.plans.lock()
    }

    /// Reads configuration space; `offset` counts from the ECAM base. Absent functions and bytes
    /// beyond the last bus read as ones, as does an access that crosses from one function into
    /// the next.
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

    /// Reads guest-physical `address` from the BAR that decodes it; ones when none does. Returns
    /// whether one did.
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

    /// The function whose BAR decodes guest-physical `address`.
    #[must_use]
    pub fn owner_of(&self, address: u64) -> Option<Bdf> {
        let target = self.target(address, 1)?;
        let members = self.members();
        let mut members = members.iter();
        let owner = members.find(|member| Arc::ptr_eq(&member.function, &target.function));
        owner.map(|member| member.address)
    }

    /// Platform reset: every function back to power-on. The caller plays firmware again with
    /// [`assign_bars`](Self::assign_bars).
    pub fn reset(&self) {
        let members = self.members();
        for member in &members {
            member.function.quiesce();
        }
        for member in &members {
            member.function.reset();
        }
        self.decode();
    }

    /// Whether nothing that began before the last [`reset`](Self::reset) touches guest memory any
    /// more, which then may be filled anew.
    pub fn is_quiet(&self) -> bool {
        self.members()
            .iter()
            .all(|member| member.function.is_quiet())
    }

    /// Whether [`park`](Self::park) can stop all functions.
    ///
    /// # Errors
    /// The first function that it cannot stop, and why.
    pub fn parkable(&self) -> Result<(), (Bdf, String)> {
        park::parkable(&self.members())
    }

    /// Has no function begin anything by itself any more, until [`resume`](Self::resume), and waits
    /// for what they have begun: all of them at the same time, until `until` at most. No vCPU runs,
    /// and nothing is plugged, from before this until after the resume.
    ///
    /// # Errors
    /// The first function that is late, and what it is busy with. All go on then.
    pub fn park(&self, until: Instant) -> Result<(), (Bdf, String)> {
        let outcome = park::park(&self.members(), until);
        if outcome.is_err() {
            self.resume();
        }
        outcome
    }

    /// All functions go on after [`park`](Self::park).
    pub fn resume(&self) {
        for member in self.members() {
            member.function.resume();
        }
    }

    /// A copy, so that no lock is held while a function runs.
    fn functions(&self) -> Functions {
        self.functions.read().clone()
    }

    fn function_at(&self, offset: u64, length: usize) -> Option<(Arc<dyn PciFunction>, u16)> {
        let id = u16::try_from(offset >> ECAM_FUNCTION_SHIFT).ok()?;
        let register = u16::try_from(offset & 0xfff).ok()?;
        if usize::from(register).checked_add(length)? > CONFIG_SPACE_SIZE {
            return None;
        }
        let bdf = Bdf::from_requester_id(id);
        if bdf.bus() != 0 {
            let ports = self.ports.read();
            let routed = ports
                .iter()
                .find_map(|port| port.route(bdf.bus(), bdf.devfn()));
            return Some((routed?? as Arc<dyn PciFunction>, register));
        }
        let functions = self.functions.read();
        functions
            .get(&bdf)
            .map(|function| (Arc::clone(function), register))
    }

    /// All functions, and where accesses reach them: those of bus 0 in the apertures, those behind
    /// a port in its windows too.
    fn members(&self) -> Vec<Member> {
        let apertures = [self.apertures.mmio32.clone(), self.apertures.mmio64.clone()];
        let mut members: Vec<_> = self
            .functions()
            .into_iter()
            .map(|(address, function)| Member {
                address,
                function,
                ranges: apertures.to_vec(),
            })
            .collect();
        for port in self.ports() {
            let Some(endpoint) = port.endpoint() else {
                continue;
            };
            let forwarded = port.forwarded();
            let ranges = forwarded
                .iter()
                .flatten()
                .flat_map(|window| {
                    apertures.iter().map(|aperture| {
                        window.start.max(aperture.start)..window.end.min(aperture.end)
                    })
                })
                .filter(|range| !range.is_empty())
                .collect();
            members.push(Member {
                address: endpoint.address,
                function: endpoint,
                ranges,
            });
        }
        members
    }

    fn target(&self, address: u64, length: usize) -> Option<Target> {
        self.map.read().find(address, length)
    }

    /// Builds the address map anew and tells the functions whose reachable windows changed.
    fn decode(&self) {
        let mut told: MutexGuard<'_, _> = self.told.lock();
        let members = self.members();
        let (map, reached) = decode::decode(&members);
        *self.map.write() = map;
        told.retain(|address, (function, windows)| {
            let stays = members.iter().any(|member| {
                member.address == *address && Arc::ptr_eq(&member.function, function)
            });
            if !stays && !windows.is_empty() {
                function.windows_changed(&[]);
            }
            stays
        });
        // First take windows away everywhere, then add: two functions may have swapped a range.
        for adding in [false, true] {
            for (member, windows) in members.iter().zip(&reached) {
                let (function, before) = told
                    .entry(member.address)
                    .or_insert_with(|| (Arc::clone(&member.function), Vec::new()));
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
                    function.windows_changed(&next);
                    *before = next;
                }
            }
        }
    }
}
