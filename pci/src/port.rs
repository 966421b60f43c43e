//! A PCI Express root port with a hot-plug slot for one function.
//!
//! A function is put into a slot and taken out of it through the
//! [`RootComplex`](crate::RootComplex):
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! # use pci::{MsiSink, PciFunction, RemovalOutcome, RootComplex};
//! # fn example(root: &RootComplex, msi: Arc<dyn MsiSink>, function: Arc<dyn PciFunction>)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! // When the machine is made; its ECAM window has room for one bus more.
//! let port = root.add_port(pci::Bdf::new(0, 3, 0).ok_or("address")?, msi)?;
//! // The function is created for this address: its requests carry it.
//! let address = port.function_address();
//! # let _ = address;
//! // Before or after the guest has started.
//! root.plug(&port, function)?;
//! // Ask the guest, wait for it, and take the function out.
//! port.request_removal()?;
//! if port.wait_for_removal(Duration::from_secs(30)) == RemovalOutcome::PoweredOff {
//!     let function = root.unplug(&port)?;
//!     # drop(function);
//! }
//! # Ok(()) }
//! ```
//!
//! Configuration accesses are routed by the bus numbers that the guest has written into the port.
//! The requester id of the function stays the one that firmware gives it, so a guest that renumbers
//! buses has to leave the ports' alone. Requests of the function pass whatever the port's Bus
//! Master Enable says; its own decides.
//!
//! There is no power management capability: Linux leaves hot-plug ports in D0 anyway.

mod saved;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use state::{RestoreError, SaveError, Section};

use crate::bdf::Bdf;
use crate::config::ConfigChange;
use crate::endpoint::Endpoint;
use crate::function::{MsiSink, PciFunction};
use crate::hotplug::{PlugError, Removal, RemovalOutcome, SlotState, UnplugError};
use crate::msi::MsiMessage;
use crate::slot::{Indicator, Registers};

/// A root port.
pub struct RootPort {
    address: Bdf,
    /// The bus behind it, as firmware numbers it.
    bus: u8,
    msi: Arc<dyn MsiSink>,
    /// Serialises changes of the link with what they do to the function. Taken before all other
    /// locks, and never by the root complex while it holds one of its own.
    order: Mutex<()>,
    /// How many are about to pull the function out. A guest that writes to the port meanwhile does
    /// not hold them up: what becomes of the function is left to them.
    pulling: AtomicUsize,
    /// Leaf lock.
    state: Mutex<State>,
    /// Signalled when software has written a command, when the slot is emptied, and at a reset.
    changed: Condvar,
}

struct State {
    registers: Registers,
    endpoint: Option<Arc<Endpoint>>,
    /// Firmware has run: what changes now is hot-plug.
    started: bool,
    removal: Removal,
}

impl RootPort {
    /// A port at `address` with an empty slot; firmware gives number `bus` to the bus behind it,
    /// which is also the slot's.
    pub(crate) fn new(address: Bdf, bus: u8, msi: Arc<dyn MsiSink>) -> Self {
        let state = State {
            registers: Registers::new(bus),
            endpoint: None,
            started: false,
            removal: Removal::None,
        };
        Self {
            address,
            bus,
            msi,
            order: Mutex::default(),
            pulling: AtomicUsize::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// The port's own address.
    #[must_use]
    pub fn address(&self) -> Bdf {
        self.address
    }

    /// The address of the function behind the port: device 0 of the bus that firmware numbers.
    #[must_use]
    pub fn function_address(&self) -> Bdf {
        Bdf::from_requester_id(u16::from(self.bus) << 8)
    }

    /// The slot's state.
    #[must_use]
    pub fn slot(&self) -> SlotState {
        let state = self.lock();
        SlotState {
            occupied: state.endpoint.is_some(),
            powered: state.registers.powered(),
            link_up: state.registers.link_up(),
            power_indicator: state.registers.power_indicator(),
            attention_indicator: state.registers.attention_indicator(),
            removal_requested: state.removal != Removal::None,
        }
    }

    /// The function in the slot.
    #[must_use]
    pub fn function(&self) -> Option<Arc<dyn PciFunction>> {
        let endpoint = self.endpoint()?;
        Some(Arc::clone(&endpoint.function))
    }

    /// Asks the guest to give up the function, by pressing the attention button. Linux waits five
    /// seconds, in which another press would cancel, and powers the slot off when it has
    /// unbound the driver. Does nothing if power is off.
    ///
    /// # Errors
    /// When there is no function, or the guest is about to follow an earlier request or changes the
    /// power for another reason.
    pub fn request_removal(&self) -> Result<(), UnplugError> {
        let _order = self.in_order();
        let mut state = self.lock();
        if state.endpoint.is_none() {
            return Err(UnplugError::Empty(self.address));
        }
        if !state.registers.powered() {
            return Ok(());
        }
        if state.removal != Removal::None {
            return Err(UnplugError::Requested(self.address));
        }
        if state.registers.power_indicator() == Indicator::Blinking {
            return Err(UnplugError::Busy(self.address));
        }
        state.removal = Removal::Requested;
        if state.registers.button_unnoticed() {
            return Ok(());
        }
        let message = state.registers.press_button();
        drop(state);
        self.send(message);
        Ok(())
    }

    /// Waits until the guest has powered off the slot and its power indicator no longer blinks, or
    /// has declined; at most for `timeout`.
    #[must_use]
    pub fn wait_for_removal(&self, timeout: Duration) -> RemovalOutcome {
        let end = Instant::now().checked_add(timeout);
        let mut state = self.lock();
        loop {
            let powered = state.registers.powered();
            let blinking = state.registers.power_indicator() == Indicator::Blinking;
            if !powered && !blinking {
                return RemovalOutcome::PoweredOff;
            }
            if powered && state.removal == Removal::None {
                return RemovalOutcome::Declined;
            }
            let left = end.map_or(Duration::MAX, |end| {
                end.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                if !powered {
                    return RemovalOutcome::PoweredOff;
                }
                if state.removal == Removal::Requested {
                    state.removal = Removal::None;
                }
                return RemovalOutcome::TimedOut;
            }
            self.changed.wait_for(&mut state, left);
        }
    }

    /// Puts `function`, which is in its reset state, into the slot.
    pub(crate) fn insert(&self, function: Arc<dyn PciFunction>) -> Result<(), PlugError> {
        let _order = self.in_order();
        let mut state = self.lock();
        if state.endpoint.is_some() {
            return Err(PlugError::Occupied(self.address));
        }
        let endpoint = Endpoint::new(self.function_address(), function);
        state.endpoint = Some(Arc::clone(&endpoint));
        let message = if state.started {
            state.registers.set_occupied(true)
        } else {
            state.registers.power_on(true);
            None
        };
        endpoint.set_link_up(state.registers.link_up());
        drop(state);
        self.send(message);
        Ok(())
    }

    /// Takes the function out of the slot, which is powered off unless this is by force.
    pub(crate) fn take(&self, force: bool) -> Result<Arc<dyn PciFunction>, UnplugError> {
        // In this order: the pull ends before the next change of the link.
        let (_order, _pulling);
        if force {
            _pulling = Pulling::begin(&self.pulling);
        }
        _order = self.in_order();
        let mut state = self.lock();
        let in_use = state.started && state.registers.powered();
        if state.endpoint.is_some() && in_use && !force {
            return Err(UnplugError::Powered(self.address));
        }
        let endpoint = state
            .endpoint
            .take()
            .ok_or(UnplugError::Empty(self.address))?;
        state.removal = Removal::None;
        let message = if state.started {
            state.registers.set_occupied(false)
        } else {
            state.registers.power_on(false);
            None
        };
        drop(state);
        self.changed.notify_all();
        endpoint.set_link_up(false);
        // By force: the guest may have switched it off meanwhile, which was left to this.
        if in_use || force {
            endpoint.quiesce();
            endpoint.reset();
        }
        self.send(message);
        Ok(Arc::clone(&endpoint.function))
    }

    /// The function behind the port, when a configuration access to `bus` reaches it: the access
    /// must be to the secondary bus. `None` if the bus is not behind this port; `Some(None)` if
    /// it is, but nobody is there.
    pub(crate) fn route(&self, bus: u8, devfn: u8) -> Option<Option<Arc<Endpoint>>> {
        let state = self.lock();
        let (secondary, subordinate) = state.registers.config.buses_behind();
        if secondary == 0 || !(secondary..=subordinate).contains(&bus) {
            return None;
        }
        let there = bus == secondary && devfn == 0 && state.registers.link_up();
        Some(state.endpoint.clone().filter(|_| there))
    }

    /// What is in the slot, reachable or not.
    pub(crate) fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.lock().endpoint.clone()
    }

    /// The addresses that the port forwards.
    pub(crate) fn forwarded(&self) -> [Option<Range<u64>>; 2] {
        self.lock().registers.config.forwarded()
    }

    /// Firmware's work: bus numbers and windows. What changes from now on is hot-plug.
    pub(crate) fn configure(&self, memory: &Range<u64>, prefetchable: &Range<u64>) {
        let mut state = self.lock();
        state.started = true;
        let config = &mut state.registers.config;
        config.set_bus_behind(self.bus);
        config.set_windows(memory, prefetchable);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn in_order(&self) -> MutexGuard<'_, ()> {
        self.order.lock()
    }

    /// Makes the function reachable or not, as the registers say.
    fn show_link(&self) {
        let state = self.lock();
        let (endpoint, up) = (state.endpoint.clone(), state.registers.link_up());
        drop(state);
        if let Some(endpoint) = endpoint {
            endpoint.set_link_up(up);
        }
    }

    /// Whether the function is about to be pulled out.
    pub(crate) fn is_pulled(&self) -> bool {
        self.pulling.load(Ordering::Acquire) > 0
    }

    fn send(&self, messages: impl IntoIterator<Item = MsiMessage>) {
        for message in messages {
            self.msi.signal(self.address, message.address, message.data);
        }
    }
}

/// While it exists, the function is about to be pulled out.
struct Pulling<'a>(&'a AtomicUsize);

impl<'a> Pulling<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl State {
    /// Follows what the guest does about a removal.
    fn observe(&mut self) {
        let blinking = self.registers.power_indicator() == Indicator::Blinking;
        self.removal = match self.removal {
            Removal::Requested if blinking => Removal::Noticed,
            Removal::Noticed if !blinking && self.registers.powered() => Removal::None,
            other => other,
        };
    }
}

impl PciFunction for RootPort {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.lock().registers.config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        // Looked at before the wait for one's turn, and after it.
        let order = (!self.is_pulled()).then(|| self.in_order());
        let follows = order.is_some() && !self.is_pulled();
        let mut state = self.lock();
        let before = (
            state.registers.link_up(),
            state.registers.config.forwarded(),
        );
        let messages = state.registers.write(offset, data);
        state.observe();
        let after = (
            state.registers.link_up(),
            state.registers.config.forwarded(),
        );
        let endpoint = state.endpoint.clone();
        drop(state);
        if let Some(endpoint) = endpoint.filter(|_| follows && before.0 != after.0) {
            endpoint.set_link_up(after.0);
            if !after.0 {
                endpoint.quiesce();
                endpoint.reset();
            }
        }
        if !follows && !self.is_pulled() {
            // The pull is over, and there may be another function by now.
            let _order = self.in_order();
            self.show_link();
        }
        self.changed.notify_all();
        self.send(messages);
        ConfigChange {
            decode: before != after,
            ..ConfigChange::default()
        }
    }

    fn save(&self) -> Result<Section, SaveError> {
        self.save_port()
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.restore_port(section)
    }

    /// Back to power-on values: an occupied slot has power, an empty one has not. The function is
    /// reset by the root complex.
    fn reset(&self) {
        let _order = self.in_order();
        let mut state = self.lock();
        let occupied = state.endpoint.is_some();
        state.registers.power_on(occupied);
        state.started = false;
        state.removal = Removal::None;
        drop(state);
        self.show_link();
        self.changed.notify_all();
    }
}
