//! The PCI function that the guest sees of an assigned device.

mod bus;
mod describe;
mod error;
mod interrupts;
mod motion;
mod saved;
mod wanted;

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pci::capability::pcie;
use pci::header::COMMAND;
use pci::{BarWindow, Bdf, Command, IntxSink, MsiSink, MsixTable};

use super::capabilities::CONTROL_FORWARDED;
use super::cdev::VfioCdev;
use super::config::{Effects, VirtualConfig};
use super::direct::Direct;
use super::host::{CONFIG_REGION, HostDevice};
use super::image::{MsiLayout, MsixLayout, PM_CONTROL, PM_STATE};
use super::intx::Intx;
use super::messages::Messages;
use super::migration::Migration;
use super::platform::GuestMappings;
use super::services::Shown;
use super::watcher::{EventLoop, HostListener, Watcher};
use crate::InterruptRoutes;
use crate::ioapic::EndOfInterrupt;
use crate::limit::LogLimit;
use describe::{Described, describe};
pub use error::VfioPciError;
use motion::Motion;

/// Why a device cannot be stopped with its guest.
const CANNOT_MOVE: &str = "it is a device of the host whose driver there cannot stop and save it (VFIO migration), so its DMA would go on";

/// What an assigned function is made of.
pub struct VfioPciParts {
    /// Its address in the guest. On bus 0 it appears as an integrated endpoint, elsewhere as an
    /// endpoint behind a port.
    pub bdf: Bdf,
    /// The device, bound to an iommufd.
    pub device: Arc<VfioCdev>,
    /// What it shows of PASIDs and ATS.
    pub shown: Shown,
    /// Where its messages go.
    pub routes: Arc<dyn InterruptRoutes>,
    /// Where its memory goes.
    pub mappings: Arc<dyn GuestMappings>,
    /// Who hears of what the host says about it; it is logged in any case.
    pub listener: Option<HostListener>,
    /// Where it waits for that.
    pub event_loop: Arc<dyn EventLoop>,
}

/// How the device interrupts.
enum Mode {
    /// Not at all.
    Off,
    /// By its pin.
    Intx,
    /// By messages from configuration space; how many vectors are enabled.
    Msi(Option<Messages>, u16),
    /// By messages from the table.
    Msix(Option<Messages>),
}

struct Control {
    config: VirtualConfig,
    mode: Mode,
    /// Command bits of the host's device that the guest has no say in.
    command: u16,
}

/// An assigned device. It is created after its device was bound, and puts itself behind no page
/// table.
pub struct VfioPci {
    bdf: Bdf,
    name: String,
    host: Arc<dyn HostDevice>,
    has_reset: bool,
    /// If its driver in the host can have it migrate.
    migration: Option<Migration>,
    /// No other lock of the function is taken under it.
    motion: Motion,
    routes: Arc<dyn InterruptRoutes>,
    direct: Direct,
    msix: Option<(MsixLayout, MsixTable)>,
    msi: Option<MsiLayout>,
    intx: Arc<Intx>,
    has_intx: bool,
    /// Taken before the locks of `direct` and `intx`; held during the host's calls. The root
    /// complex takes it under its decode lock, so the root complex is never called with it.
    control: Mutex<Control>,
    /// Where the BARs are, as `control` had it after the last access that ended. Leaf lock: whoever
    /// looks for the windows of all functions waits for no reset of this one.
    windows: Mutex<Vec<BarWindow>>,
    limit: Mutex<LogLimit>,
    /// Declared last: it ends after the interrupts have been turned off.
    _watcher: Box<dyn Any + Send + Sync>,
}

impl VfioPci {
    /// Resets the device and takes it over.
    ///
    /// # Errors
    /// When it is no endpoint, or VFIO refuses.
    pub fn new(parts: VfioPciParts) -> Result<Arc<Self>, VfioPciError> {
        let VfioPciParts {
            bdf,
            device,
            shown,
            routes,
            mappings,
            listener,
            event_loop,
        } = parts;
        let host: Arc<dyn HostDevice> = device;
        Self::with_host(bdf, host, shown, routes, mappings, (listener, &*event_loop))
    }

    pub(super) fn with_host(
        bdf: Bdf,
        host: Arc<dyn HostDevice>,
        shown: Shown,
        routes: Arc<dyn InterruptRoutes>,
        mappings: Arc<dyn GuestMappings>,
        (listener, event_loop): (Option<HostListener>, &dyn EventLoop),
    ) -> Result<Arc<Self>, VfioPciError> {
        let name = host.name();
        let Described {
            has_reset,
            has_intx,
            config,
            parts,
            command,
        } = describe(&*host, bdf, shown)?;
        let failed = |what| VfioPciError::failed(&name, what);
        let migration = Migration::of(&host).map_err(failed("VFIO_DEVICE_FEATURE_MIGRATION"))?;
        let intx = Intx::new(Arc::clone(&host)).map_err(failed("creating an eventfd"))?;
        let intx = Arc::new(intx);
        let watcher = Watcher::start(&host, Arc::clone(&intx), listener, event_loop)
            .map_err(failed("waiting for its events"))?;
        let table = |layout: MsixLayout| {
            let table = MsixTable::new(layout.vectors, bdf, Arc::new(NoSink));
            (layout, table)
        };
        let function = Self {
            bdf,
            has_reset,
            migration,
            motion: Motion::default(),
            routes,
            direct: Direct::new(parts, mappings),
            msix: config.layout.msix.map(table),
            msi: config.layout.msi,
            intx,
            has_intx,
            control: Mutex::new(Control {
                config,
                mode: Mode::Off,
                command,
            }),
            windows: Mutex::default(),
            limit: Mutex::default(),
            _watcher: watcher,
            name,
            host,
        };
        let control = function.control.lock();
        function.show_windows(&control);
        function.write_host_command(&control);
        drop(control);
        Ok(Arc::new(function))
    }

    /// Whether the device can be reset: otherwise it keeps what one guest left in it for the next.
    #[must_use]
    pub fn has_reset(&self) -> bool {
        self.has_reset
    }

    /// Gives the function an interrupt pin (INTA), if the host's device has one that the host can
    /// use; before the guest starts, and once. Returns whether it has one now. The line's owner is
    /// [`end_of_interrupt`](Self::end_of_interrupt).
    pub fn connect_intx(&self, line: Arc<dyn IntxSink>) -> bool {
        let connected = self.has_intx && self.intx.connect(line);
        if connected {
            self.control.lock().config.set_interrupt_pin(1);
        }
        connected
    }

    /// Who is to be told when processors have ended the pin's interrupt.
    #[must_use]
    pub fn end_of_interrupt(&self) -> Weak<dyn EndOfInterrupt> {
        let intx: Arc<dyn EndOfInterrupt> = Arc::clone(&self.intx) as _;
        Arc::downgrade(&intx)
    }

    fn complain(&self, what: fmt::Arguments<'_>) {
        let mut limit = self.limit.lock();
        if let Some(held_back) = limit.pass() {
            log::warn!("{}: {what} ({held_back} messages held back)", self.name);
        }
    }

    /// Lets others know where the BARs are by now.
    fn show_windows(&self, control: &Control) {
        *self.windows.lock() = control.config.windows();
    }

    /// Reads the host's configuration space; ones if it cannot be read.
    fn read_host(&self, offset: u16, data: &mut [u8]) {
        if let Err(error) = self.host.read(CONFIG_REGION, u64::from(offset), data) {
            data.fill(0xff);
            self.complain(format_args!(
                "cannot read configuration space at {offset:#x}: {error}"
            ));
        }
    }

    fn write_host(&self, offset: u16, data: &[u8]) {
        if let Err(error) = self.host.write(CONFIG_REGION, u64::from(offset), data) {
            self.complain(format_args!(
                "cannot write configuration space at {offset:#x}: {error}"
            ));
        }
    }

    /// Changes the bits in `mask` of a register of the host.
    fn update_host(&self, offset: u16, mask: u16, value: u16) {
        let mut data = [0; 2];
        self.read_host(offset, &mut data);
        let value = u16::from_le_bytes(data) & !mask | value & mask;
        self.write_host(offset, &value.to_le_bytes());
    }

    /// Bus mastering and Interrupt Disable are the guest's. Memory Space stays on in the host: what
    /// the guest switches is where the BARs appear to it, and the mapping of a BAR that the host
    /// does not decode is a bus error.
    fn write_host_command(&self, control: &Control) {
        let guest = control.config.command();
        let command = control.command | guest & (Command::BUS_MASTER | Command::INTX_DISABLE);
        self.write_host(COMMAND, &command.to_le_bytes());
    }

    fn apply(&self, control: &mut Control, effects: &Effects) {
        for (offset, data) in &effects.forward {
            self.write_host(*offset, data);
        }
        if let (Some(state), Some(power)) = (effects.power, control.config.layout.power) {
            // Before the device stops answering, and after it answers again.
            if state != 0 {
                self.direct.suspend();
            }
            self.update_host(power + PM_CONTROL, PM_STATE, state);
            if state == 0 {
                self.answers_again(control);
            }
        }
        if let (true, Some(offset)) = (effects.device_control, control.config.layout.pcie) {
            let register = offset + pcie::DEVICE_CONTROL;
            let value = control.config.u16(register);
            self.update_host(register, CONTROL_FORWARDED, value);
        }
        if effects.command {
            let disabled = control.config.command() & Command::INTX_DISABLE != 0;
            // Before the host follows: when Interrupt Disable is cleared, it asks at once for an
            // interrupt that is wanted.
            self.intx.set_quiet(disabled);
            self.write_host_command(control);
        }
        if effects.command || effects.msi || effects.msix {
            self.follow_interrupts(control, effects.msi || effects.msix);
        }
    }

    /// Back to the state after power-on, in the host and towards the guest.
    fn reset_all(&self, control: &mut Control) {
        self.turn_off(control);
        if let Some((_, table)) = &self.msix {
            table.reset();
        }
        self.direct.suspend();
        if let (Some(power), 1..) = (control.config.layout.power, control.config.power_state()) {
            // Its BARs come back below, whether or not it can be reset.
            self.update_host(power + PM_CONTROL, PM_STATE, 0);
        }
        let device_control = |control: &Control| {
            let register = control.config.layout.pcie? + pcie::DEVICE_CONTROL;
            Some((register, control.config.u16(register)))
        };
        let before = device_control(control);
        control.config.reset();
        self.intx.set_quiet(false);
        // The device is stopped even if it cannot be reset.
        self.write_host_command(control);
        if self.has_reset
            && let Err(error) = self.host.reset()
        {
            self.complain(format_args!("the reset failed: {error}"));
        }
        if let Some((register, value)) = device_control(control)
            && before != Some((register, value))
        {
            // The host's kernel restores it after a reset as it was before.
            self.update_host(register, CONTROL_FORWARDED, value);
        }
        self.write_host_command(control);
        self.answers_again(control);
    }

    /// Lets the guest reach the BARs directly again, if the device answers: a device that a failed
    /// reset or power state has left without memory would make each access an error of the
    /// hypervisor's, and end the machine. Trapped accesses to it read as ones.
    fn answers_again(&self, control: &Control) {
        let mut command = [0; 2];
        self.read_host(COMMAND, &mut command);
        let command = u16::from_le_bytes(command);
        let mut power = [0; 2];
        if let Some(at) = control.config.layout.power {
            self.read_host(at + PM_CONTROL, &mut power);
        }
        let power = u16::from_le_bytes(power) & PM_STATE;
        if command != u16::MAX && command & Command::MEMORY != 0 && power == 0 {
            self.direct.resume();
        } else {
            self.complain(format_args!(
                "it does not answer (command {command:#06x}, power state D{power}); its BARs stay out of the guest's direct \
                 reach until it is reset"
            ));
        }
    }
}

impl Drop for VfioPci {
    fn drop(&mut self) {
        let mut control = self.control.lock();
        self.turn_off(&mut control);
        self.direct.suspend();
        control.config.reset();
        self.write_host_command(&control);
    }
}

/// The table here only keeps what the guest writes: messages are sent by the hypervisor.
struct NoSink;

impl MsiSink for NoSink {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {}
}

#[cfg(test)]
mod function_test;
