//! The modern virtio PCI transport (section 4.1), non-transitional.
//!
//! One 64-bit BAR holds everything, MSI-X included; its layout is in `bar`. There is no INTx pin: a
//! driver without MSI-X has to poll. `VIRTIO_F_RING_RESET` and `VIRTIO_F_NOTIFICATION_DATA` are not
//! on offer.
//!
//! Locks: `config` before `state`, and that of `calls` behind both; none is taken by the device's
//! thread. Queue notifications take none.

mod bar;
mod calls;
#[cfg(test)]
mod calls_test;
mod cap;
mod common;
mod config;
mod link;
#[cfg(test)]
mod pci_test;
mod saved;
mod state;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::state::{RestoreError, SaveError, Section};
use log::warn;
use parking_lot::Mutex;
use pci::{BarKind, BarWindow, Bdf, ConfigChange, ConfigSpace, MsiSink, MsixTable, PciFunction};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::state::{DRIVER_WAIT, Parts, RESET_WAIT, State};
use super::device::{DeviceKind, Halt, LiveConfig, VirtioDevice};
use super::session::Transport as _;
use crate::limit::LogLimit;
use crate::{Dma, Doorbells, InterruptRoutes};
use bar::{BAR, Region};
use calls::Calls;
use cap::AccessCapability;
use config::{config_space, thread_name};
use link::Link;

/// A virtio device as a PCI function.
pub struct VirtioPci {
    config: Mutex<ConfigSpace>,
    access: AccessCapability,
    state: Mutex<State>,
    link: Arc<Link>,
    device_config: Vec<u8>,
    /// What is there in its place, if it changes.
    live_config: Option<Arc<dyn LiveConfig>>,
    /// One per queue. The device's thread waits for them, whoever signals them.
    kicks: Vec<EventFd>,
    doorbells: Arc<dyn Doorbells>,
    bus_master: Arc<AtomicBool>,
    /// What accesses guest memory besides the device's thread.
    elsewhere: Option<Arc<dyn Halt>>,
    /// Why it cannot be stopped for a while.
    unstoppable: Option<&'static str>,
    /// Why it cannot be saved.
    unsavable: Option<&'static str>,
    kind: DeviceKind,
    /// Held while the hypervisor is told; taken after no other lock of this function.
    rung: Mutex<Rung>,
}

impl VirtioPci {
    /// Puts `device` on the bus at `bdf`. `dma` must be the port of that requester. `routes` are for
    /// interrupts of queues that somebody else serves.
    ///
    /// # Errors
    /// When the host gives no eventfds.
    pub fn new(
        bdf: Bdf,
        dma: Dma,
        msi: Arc<dyn MsiSink>,
        routes: Arc<dyn InterruptRoutes>,
        doorbells: Arc<dyn Doorbells>,
        device: Box<dyn VirtioDevice>,
    ) -> io::Result<Arc<Self>> {
        let queues = device.queue_sizes().len();
        let kicks = (0..queues)
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<Vec<_>>>()?;
        let (device_config, live_config) = (device.config(), device.live_config());
        // One vector for configuration changes, one per queue.
        let vectors = u16::try_from(queues + 1).map_err(|_| io::ErrorKind::InvalidInput)?;

        let has_config = !device_config.is_empty() || live_config.is_some();
        let (config, access) = config_space(device.kind(), queues, vectors, has_config);
        let bus_master = config.bus_master_flag();
        let msix = MsixTable::new(vectors, bdf, msi).gated(Arc::clone(&bus_master));
        let calls = Calls::new(bdf, routes, device.calls()?);
        let elsewhere = device.halt();
        let (unstoppable, unsavable) = (device.unstoppable(), device.unsavable());
        let kind = device.kind();
        let parts = Parts {
            name: format!("{}-{bdf}", thread_name(device.kind())),
            dma: dma.gated(Arc::clone(&bus_master)),
            kicks: kicks
                .iter()
                .map(EventFd::try_clone)
                .collect::<io::Result<Vec<_>>>()?,
        };
        Ok(Arc::new(Self {
            config: Mutex::new(config),
            access,
            link: Arc::new(Link::new(msix, calls, queues)),
            state: Mutex::new(State::new(device, parts)),
            device_config,
            live_config,
            kicks,
            doorbells,
            bus_master,
            elsewhere,
            unstoppable,
            unsavable,
            kind,
            rung: Mutex::default(),
        }))
    }

    /// Reset of the function: the virtio device, MSI-X and configuration space. The device's thread
    /// is waited for, for `most` at most. To be called without a lock: other vCPUs, and the bus when
    /// it decodes, do not wait with us.
    fn reset_function(&self, most: Duration) {
        // The thread first: if bus mastering went first, it would take the failing access for a
        // mistake of the guest.
        self.tell_to_stop();
        self.state.lock().reset(&self.link, most);
        let mut config = self.config.lock();
        self.link.reset_msix();
        config.reset();
    }

    /// Nothing that the device does begins an access to guest memory from here on.
    fn tell_to_stop(&self) {
        self.state.lock().quiesce();
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.halt();
        }
    }

    /// A device whose thread makes an access while bus mastering is off needs a reset. What goes on
    /// elsewhere does not see that bit: it is stopped when the bit goes away.
    fn obey_bus_master(&self) {
        self.link.bus_master_changed();
        if !self.bus_master.load(Ordering::Acquire)
            && let Some(elsewhere) = &self.elsewhere
            && elsewhere.halt()
        {
            self.link.needs_reset();
        }
    }

    fn kick(&self, queue: u64) {
        let kick = usize::try_from(queue)
            .ok()
            .and_then(|queue| self.kicks.get(queue));
        if let Some(kick) = kick
            && let Err(error) = kick.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            warn!("virtio: cannot signal a queue: {error}");
        }
    }

    /// Moves the doorbells to the notification addresses behind `base`.
    fn move_doorbells(&self, base: Option<u64>) {
        let mut rung = self.rung.lock();
        if rung.base == base {
            return;
        }
        rung.base = base;
        for (address, queue) in std::mem::take(&mut rung.added) {
            if let Some(kick) = self.kicks.get(queue) {
                self.doorbells.remove(address, kick);
            }
        }
        let Some(base) = base else { return };
        for (queue, kick) in self.kicks.iter().enumerate() {
            let address = base.wrapping_add(bar::notify_offset(queue));
            match self.doorbells.add(address, kick) {
                Ok(()) => rung.added.push((address, queue)),
                // The write arrives in `write_bar` and works as well. A guest can move its BARs as
                // often as it likes.
                Err(error) => {
                    if let Some(held_back) = rung.limit.pass() {
                        warn!(
                            "virtio: no doorbell for a queue, notifications take the slow path: {error} ({held_back} messages held back)"
                        );
                    }
                }
            }
        }
    }
}

/// What the hypervisor was told about doorbells.
#[derive(Default)]
struct Rung {
    /// Where the BAR was then.
    base: Option<u64>,
    /// Address and queue of each doorbell that exists.
    added: Vec<(u64, usize)>,
    limit: LogLimit,
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let access = self.access.access(&self.config.lock(), offset, data.len());
        if let Some(access) = access {
            let mut value = [0; 4];
            if let Some(part) = value.get_mut(..access.length) {
                self.read_bar(usize::from(BAR), access.offset, part);
            }
            self.config.lock().set_bytes(self.access.data(), &value);
        }
        self.config.lock().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        let mut config = self.config.lock();
        let mut change = config.write(offset, data);
        if change.function_reset {
            drop(config);
            self.reset_function(DRIVER_WAIT);
            change.decode = true;
            return change;
        }
        if change.msix
            && let Some((enabled, masked)) = config.msix_control()
        {
            self.link.set_msix_control(enabled, masked);
        }
        let access = self.access.access(&config, offset, data.len());
        let value = config.read_u32(self.access.data()).to_le_bytes();
        drop(config);
        self.obey_bus_master();
        if let Some(access) = access
            && let Some(part) = value.get(..access.length)
        {
            self.write_bar(usize::from(BAR), access.offset, part);
        }
        change
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != usize::from(BAR) {
            return;
        }
        let (region, at) = bar::region(offset);
        match region {
            Region::Common => self.state.lock().read_common(at, data, &self.link),
            Region::Isr => {
                if let Some(first) = data.first_mut() {
                    *first = self.link.take_isr();
                }
            }
            Region::Device => match &self.live_config {
                Some(config) => config.read(at, data),
                None => {
                    let start = usize::try_from(at).unwrap_or(usize::MAX);
                    let config = self.device_config.iter().skip(start);
                    for (byte, value) in data.iter_mut().zip(config) {
                        *byte = *value;
                    }
                }
            },
            Region::MsixTable => self.link.read_table(at, data),
            Region::MsixPba => self.link.read_pba(at, data),
            Region::Notify(_) | Region::Hole => {}
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar != usize::from(BAR) {
            return;
        }
        let (region, at) = bar::region(offset);
        match region {
            Region::Common => self.state.lock().write_common(at, data, &self.link),
            Region::Notify(queue) => self.kick(queue),
            Region::MsixTable => self.link.write_table(at, data),
            Region::Device => {
                // One that does not change has no field that can be written either.
                if let Some(config) = &self.live_config {
                    config.write(at, data);
                }
            }
            Region::Isr | Region::MsixPba | Region::Hole => {}
        }
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.config.lock().decoded_bars().collect()
    }

    fn bar_sizes(&self) -> Vec<(usize, BarKind, u64)> {
        self.config.lock().bar_sizes().collect()
    }

    fn assign_bar(&self, bar: usize, address: u64) {
        self.config.lock().set_bar_address(bar, address);
    }

    fn windows_changed(&self, windows: &[BarWindow]) {
        let base = windows
            .iter()
            .find(|window| window.bar == usize::from(BAR))
            .map(|window| window.base);
        self.move_doorbells(base);
    }

    fn quiesce(&self) {
        self.tell_to_stop();
    }

    fn parkable(&self) -> Result<(), String> {
        match self.unstoppable {
            None => Ok(()),
            Some(why) => Err(why.to_owned()),
        }
    }

    fn park(&self) {
        self.state.lock().park();
    }

    fn parked(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        if state.is_parked(&self.link) {
            return Ok(());
        }
        Err(format!(
            "the thread {} is still at work on a request; see whether what is behind the device, such as a file's server, answers, or try again",
            state.name()
        ))
    }

    fn resume(&self) {
        self.state.lock().resume();
    }

    fn save(&self) -> Result<Section, SaveError> {
        self.save_function()
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.restore_function(section)
    }

    fn reset(&self) {
        self.reset_function(RESET_WAIT);
    }

    fn is_quiet(&self) -> bool {
        self.state.lock().is_quiet(&self.link)
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.move_doorbells(None);
    }
}
