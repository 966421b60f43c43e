//! Hot-plug: devices that come and go behind root ports while the guest runs.
//!
//! What is plugged in stays there across a reset of the guest. A device leaves either when the
//! guest has let go of it, which it is asked for by the slot's attention button, or by force, which
//! a guest may take badly.

mod changes;
mod error;
mod later;
mod unplugged;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use pci::{Bdf, PciFunction, RemovalOutcome, RootComplex, RootPort};

use super::settled::addressed;
use crate::config::{FunctionConfig, FunctionKind};
use changes::Changes;
pub(crate) use error::HotPlugError;
pub(crate) use later::plug_later;
pub(crate) use unplugged::Unplugged;

/// How long a guest has to let go of a device. Linux waits five seconds before it begins, and one
/// before it is done.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long accesses that are under way may keep a function that nobody can reach any more.
const LINGER: Duration = Duration::from_secs(5);

/// Makes functions and takes back what they had besides themselves.
pub(crate) trait Maker: Send + Sync {
    /// A function of that kind for this address, in its reset state.
    ///
    /// # Errors
    /// When it cannot be had; nothing is left of it then.
    fn make(&self, bdf: Bdf, kind: &FunctionKind) -> anyhow::Result<Arc<dyn PciFunction>>;

    /// The function at `bdf` is about to be dropped. It does nothing any more.
    fn release(&self, bdf: Bdf);
}

/// The slots of a machine and what is in them.
pub(crate) struct HotPlug {
    root: Arc<RootComplex>,
    maker: Box<dyn Maker>,
    ports: Vec<Port>,
    /// Names of functions on bus 0, root ports among them.
    fixed: Vec<(Bdf, String)>,
    /// One for each of `ports`. A leaf lock.
    slots: Mutex<Vec<Slot>>,
    /// Functions that are out of their slots, and wait for a host that does not answer.
    departed: Mutex<Vec<(Bdf, Arc<dyn PciFunction>)>>,
    changes: Changes,
}

/// Keeps devices from coming and going.
pub(crate) struct HotPlugHold(Arc<HotPlug>);

impl Drop for HotPlugHold {
    fn drop(&mut self) {
        self.0.changes.set_held(false);
    }
}

struct Port {
    name: String,
    port: Arc<RootPort>,
}

/// What is known about a slot besides what its port knows.
#[derive(Default)]
struct Slot {
    /// The device in it, or on the way.
    device: Option<FunctionConfig>,
    stage: Stage,
    /// Counts devices, to tell a new one from the one before it.
    count: u64,
}

impl Slot {
    /// Name of the device in it.
    fn id(&self) -> Option<&str> {
        self.device.as_ref()?.id.as_deref()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Empty,
    /// A device is being made for it.
    Coming,
    There,
    /// Its device is out of reach of the guest, and not gone yet.
    Going,
}

impl HotPlug {
    /// For the root ports of `root`, by their names, and what is behind them from the start:
    /// `functions` is what the machine was made from, with their addresses.
    pub(crate) fn new(
        root: Arc<RootComplex>,
        maker: Box<dyn Maker>,
        ports: Vec<(String, Arc<RootPort>)>,
        functions: &[(Bdf, &FunctionConfig)],
    ) -> Arc<Self> {
        let ports: Vec<_> = ports
            .into_iter()
            .map(|(name, port)| Port { name, port })
            .collect();
        let slots = ports.iter().map(|port| {
            let bdf = port.port.function_address();
            match functions.iter().find(|(at, _)| *at == bdf) {
                None => Slot::default(),
                Some((_, function)) => Slot {
                    device: Some((*function).clone()),
                    stage: Stage::There,
                    count: 0,
                },
            }
        });
        let slots = Mutex::new(slots.collect());
        let fixed = functions
            .iter()
            .filter(|(bdf, _)| bdf.bus() == 0)
            .filter_map(|(bdf, function)| Some((*bdf, function.id.clone()?)))
            .collect();
        Arc::new(Self {
            root,
            maker,
            ports,
            fixed,
            slots,
            departed: Mutex::default(),
            changes: Changes::default(),
        })
    }

    /// Nothing comes or goes until [`thaw`](Self::thaw), as the guest is paused.
    ///
    /// # Errors
    /// What is on its way, which needs the guest, or the host.
    pub(crate) fn freeze(&self) -> Result<(), String> {
        self.changes.freeze()?;
        // Nothing departs any more.
        if let Some(bdf) = self.lingering() {
            self.thaw();
            return Err(format!(
                "the device that was removed from {bdf} waits for a host that does not answer; see whether what is behind it, such as a file's server, answers"
            ));
        }
        Ok(())
    }

    /// Devices may come and go again.
    pub(crate) fn thaw(&self) {
        self.changes.thaw();
    }

    /// Has nothing come or go while the guest is being migrated, which is paused at the moment, until what
    /// is returned is dropped.
    pub(crate) fn hold(self: &Arc<Self>) -> HotPlugHold {
        self.changes.set_held(true);
        HotPlugHold(Arc::clone(self))
    }

    /// Makes a function and puts it into the slot of the port that it names. The guest is told, and
    /// does the rest. May take long: files are opened, and for devices of the host guest memory may
    /// have to be pinned.
    ///
    /// # Errors
    /// See [`HotPlugError`].
    pub(crate) fn add(&self, config: &FunctionConfig) -> Result<String, HotPlugError> {
        pluggable(&config.kind)?;
        let index = self.port_of(config)?;
        let Some(Port { name, port }) = self.ports.get(index) else {
            return Err(HotPlugError::NoPorts);
        };
        let _change = self.changes.begin(name)?;
        let config = &addressed(config).map_err(HotPlugError::Make)?;
        let reservation = self.reserve(index, config)?;
        let bdf = port.function_address();
        // What one that is gone by now has held is free again.
        self.is_quiet();
        let function = self
            .maker
            .make(bdf, &config.kind)
            .map_err(HotPlugError::Make)?;
        if let Err(error) = self.root.plug(port, Arc::clone(&function)) {
            self.release(bdf, function);
            return Err(HotPlugError::Make(error.into()));
        }
        reservation.keep();
        let id = config.id.as_deref().unwrap_or(name);
        log::info!("`{id}` is plugged into `{name}` at {bdf}");
        Ok(format!("{id} is in the slot of {name}, at {bdf}\n"))
    }

    /// Takes out the device named `id`, or the one behind the port of that name, when the guest has
    /// let go of it. Waits for that as long as [`PATIENCE`], unless by `force`. When it returns,
    /// nothing of the device is left.
    ///
    /// # Errors
    /// See [`HotPlugError`].
    pub(crate) fn remove(&self, id: &str, force: bool) -> Result<String, HotPlugError> {
        let (index, count) = self.find(id)?;
        let Some(Port { name, port }) = self.ports.get(index) else {
            return Err(HotPlugError::NoPorts);
        };
        let _change = self.changes.begin(id)?;
        if !force {
            self.wait(id, port, (index, count))?;
        }
        self.depart(id, (index, count))?;
        let function = if force {
            self.root.pull(port)
        } else {
            self.root.unplug(port)
        };
        let function = function.map_err(|error| {
            self.set(index, Stage::There);
            HotPlugError::Slot(error)
        })?;
        self.release(port.function_address(), function);
        self.set(index, Stage::Empty);
        log::info!("`{id}` is out of the slot of `{name}`");
        Ok(format!("{id} is out of the slot of {name}\n"))
    }

    /// The host wants the device at `bdf` back, and may say so again and again: the guest is asked
    /// for it, if it is behind a port.
    pub(crate) fn give_back(self: &Arc<Self>, bdf: Bdf) {
        let Some(port) = self.port_of_function(bdf) else {
            return;
        };
        let (plug, name) = (Arc::clone(self), port.name.clone());
        // Not here: this is the event loop, which the removal waits for.
        let asking = move || {
            if let Err(error) = plug.remove(&name, false) {
                log::debug!("the host wants the device behind `{name}` back: {error}");
            }
        };
        let thread = thread::Builder::new().name("give-back".to_owned());
        if let Err(error) = thread.spawn(asking) {
            log::debug!("the host wants the device at {bdf} back: {error}");
        }
    }

    /// What is to be said about the function at `bdf`, in words that begin with a blank: its name,
    /// its port, its slot.
    pub(crate) fn describe(&self, bdf: Bdf) -> String {
        let name = |id: Option<&str>| id.map(|id| format!(" id={id}")).unwrap_or_default();
        for (index, Port { name: bus, port }) in self.ports.iter().enumerate() {
            if port.function_address() == bdf {
                let slots = self.lock();
                let id = slots.get(index).and_then(Slot::id);
                return format!("{} bus={bus}", name(id));
            }
            if port.address() == bdf {
                let state = port.slot();
                let word = |set, yes, no| if set { yes } else { no };
                return format!(
                    " id={bus} slot={},{}{}",
                    word(state.occupied, "occupied", "empty"),
                    word(state.powered, "power-on", "power-off"),
                    word(state.removal_requested, ",removal-requested", ""),
                );
            }
        }
        let fixed = self.fixed.iter().find(|(at, _)| *at == bdf);
        name(fixed.map(|(_, id)| id.as_str()))
    }

    /// What has the function at `bdf` be gone, in words.
    pub(crate) fn how_to_remove(&self, bdf: Bdf) -> String {
        let slots = self.lock();
        let mut places = self.ports.iter().zip(slots.iter());
        match places.find(|(port, _)| port.port.function_address() == bdf) {
            Some((port, slot)) => {
                let id = slot.id().unwrap_or(&port.name);
                format!("write `device-del {id}` first")
            }
            None => "start the guest without it, or with it behind a pcie-root-port, from where `device-del` takes it away"
                .to_owned(),
        }
    }

    /// The devices in all slots, as they would be asked for.
    pub(crate) fn plugged(&self) -> Vec<FunctionConfig> {
        let slots = self.lock();
        let there = slots.iter().filter(|slot| slot.stage == Stage::There);
        there.filter_map(|slot| slot.device.clone()).collect()
    }

    /// The function behind a root port, whether the guest can reach it or not.
    pub(crate) fn function(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        self.port_of_function(bdf)?.port.function()
    }

    /// The port that the function at `bdf` is behind.
    fn port_of_function(&self, bdf: Bdf) -> Option<&Port> {
        let mut ports = self.ports.iter();
        ports.find(|port| port.port.function_address() == bdf)
    }

    /// Asks the guest for the device, and waits until it has let go.
    fn wait(&self, id: &str, port: &RootPort, slot: (usize, u64)) -> Result<(), HotPlugError> {
        port.request_removal()
            .map_err(|error| self.explain(error, id, slot))?;
        let id = id.to_owned();
        match port.wait_for_removal(PATIENCE) {
            RemovalOutcome::PoweredOff => Ok(()),
            _ if !self.is_there(slot) => Err(HotPlugError::Overtaken(id)),
            RemovalOutcome::Declined => Err(HotPlugError::Declined { id }),
            RemovalOutcome::TimedOut => Err(HotPlugError::TimedOut { id }),
        }
    }

    /// An error of the slot that `id` was in.
    fn explain(&self, error: pci::UnplugError, id: &str, slot: (usize, u64)) -> HotPlugError {
        if self.is_there(slot) {
            HotPlugError::Slot(error)
        } else {
            HotPlugError::Overtaken(id.to_owned())
        }
    }

    /// Nobody else takes out what is in that slot from now on, and nothing is put there. Another
    /// device may be there by now: it stays.
    fn depart(&self, id: &str, (index, count): (usize, u64)) -> Result<(), HotPlugError> {
        let mut slots = self.lock();
        let there = slots
            .get_mut(index)
            .filter(|slot| slot.stage == Stage::There && slot.count == count);
        let slot = there.ok_or_else(|| HotPlugError::Overtaken(id.to_owned()))?;
        slot.stage = Stage::Going;
        Ok(())
    }

    fn is_there(&self, (index, count): (usize, u64)) -> bool {
        let slots = self.lock();
        slots
            .get(index)
            .is_some_and(|slot| slot.stage == Stage::There && slot.count == count)
    }

    /// The place of a device, by its name or its port's.
    fn find(&self, id: &str) -> Result<(usize, u64), HotPlugError> {
        let slots = self.lock();
        let mut places = self.ports.iter().zip(slots.iter()).enumerate();
        let found = places.find(|(_, (port, slot))| {
            slot.stage != Stage::Empty && (slot.id() == Some(id) || port.name == id)
        });
        let busy = |port: &Port, what| {
            let port = port.name.clone();
            Err(HotPlugError::Busy { port, what })
        };
        match found {
            None => {
                let there = self.ports.iter().zip(slots.iter());
                let there = there
                    .filter(|(_, slot)| slot.stage == Stage::There)
                    .map(|(port, slot)| slot.id().unwrap_or(&port.name));
                Err(HotPlugError::NoDevice {
                    id: id.to_owned(),
                    there: match there.collect::<Vec<_>>().as_slice() {
                        [] => "all slots are empty".to_owned(),
                        names => format!("choose one of {}", names.join(", ")),
                    },
                })
            }
            Some((index, (port, slot))) => match slot.stage {
                Stage::Coming => busy(port, "its device is still on the way in"),
                Stage::Going => busy(port, "its device is on the way out already"),
                Stage::Empty | Stage::There => Ok((index, slot.count)),
            },
        }
    }

    fn port_of(&self, config: &FunctionConfig) -> Result<usize, HotPlugError> {
        let names: Vec<_> = self.ports.iter().map(|port| port.name.as_str()).collect();
        if names.is_empty() {
            return Err(HotPlugError::NoPorts);
        }
        let ports = names.join(", ");
        let Some(bus) = &config.bus else {
            return Err(HotPlugError::NoBus { ports });
        };
        let index = names.iter().position(|name| name == bus);
        index.ok_or_else(|| HotPlugError::UnknownPort {
            bus: bus.clone(),
            ports,
        })
    }

    /// Keeps others out of an empty slot.
    fn reserve(
        &self,
        index: usize,
        device: &FunctionConfig,
    ) -> Result<Reservation<'_>, HotPlugError> {
        let mut slots = self.lock();
        if let Some(id) = device.id.as_deref() {
            let fixed = self.fixed.iter().map(|(_, name)| name.as_str());
            let plugged = slots
                .iter()
                .filter(|slot| slot.stage != Stage::Empty)
                .filter_map(Slot::id);
            if fixed.chain(plugged).any(|name| name == id) {
                return Err(HotPlugError::NameTaken(id.to_owned()));
            }
        }
        let (Some(slot), Some(port)) = (slots.get_mut(index), self.ports.get(index)) else {
            return Err(HotPlugError::NoPorts);
        };
        let port = port.name.clone();
        let what = match slot.stage {
            Stage::Empty => {
                *slot = Slot {
                    device: Some(device.clone()),
                    stage: Stage::Coming,
                    count: slot.count.wrapping_add(1),
                };
                return Ok(Reservation {
                    plug: self,
                    index,
                    becomes: Stage::Empty,
                });
            }
            Stage::There => {
                let device = slot.id().unwrap_or(&port).to_owned();
                return Err(HotPlugError::Occupied { port, device });
            }
            Stage::Coming => "another device is on its way into it",
            Stage::Going => "the device before is not quite gone",
        };
        Err(HotPlugError::Busy { port, what })
    }

    fn set(&self, index: usize, stage: Stage) {
        if let Some(slot) = self.lock().get_mut(index) {
            slot.stage = stage;
            if stage == Stage::Empty {
                slot.device = None;
            }
        }
    }

    /// Whether nothing that was taken out touches guest memory any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.lingering().is_none()
    }

    /// Where the first function was that was taken out, and touches guest memory.
    fn lingering(&self) -> Option<Bdf> {
        let mut departed = self.departed.lock();
        departed.retain(|(_, function)| !function.is_quiet());
        departed.first().map(|(bdf, _)| *bdf)
    }

    /// Drops a function that nothing reaches any more, and all that belongs to it.
    fn release(&self, bdf: Bdf, function: Arc<dyn PciFunction>) {
        self.maker.release(bdf);
        if !function.is_quiet() {
            log::warn!(
                "the host does not answer what the device at {bdf} has begun, which ends when it does"
            );
            self.departed.lock().push((bdf, function));
            return;
        }
        let rest = Arc::downgrade(&function);
        drop(function);
        // An access that began before may still hold it. The next function at this address must
        // find nothing of this one.
        let end = Instant::now() + LINGER;
        while rest.strong_count() != 0 {
            if Instant::now() >= end {
                log::warn!("the function at {bdf} is still busy; left behind");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock()
    }
}

/// A slot for a device that is being made.
struct Reservation<'a> {
    plug: &'a HotPlug,
    index: usize,
    becomes: Stage,
}

impl Reservation<'_> {
    fn keep(mut self) {
        self.becomes = Stage::There;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.plug.set(self.index, self.becomes);
    }
}

fn pluggable(kind: &FunctionKind) -> Result<(), HotPlugError> {
    let (what, why) = match kind {
        FunctionKind::Console => (
            "a virtio-console",
            "it takes the standard streams over when nido starts; give it on the command line",
        ),
        FunctionKind::RootPort => (
            "a pcie-root-port",
            "the machine's buses are set when nido starts; give it on the command line",
        ),
        FunctionKind::Memory(_) => (
            "a virtio-mem",
            "its region of memory is there from the start; give it on the command line",
        ),
        _ => return Ok(()),
    };
    Err(HotPlugError::NotPluggable { what, why })
}

#[cfg(test)]
mod hotplug_test;
