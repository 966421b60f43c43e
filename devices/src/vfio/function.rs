//! The PCI function that the guest sees of an assigned device.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pci::{
    BarKind, BarWindow, Bdf, CONFIG_SPACE_SIZE, ConfigChange, IntxSink, MsiMessage, MsiSink,
    MsixTable, PciFunction,
};
use thiserror::Error;

use super::bars::{self, BAR_COUNT};
use super::capabilities::{self, CONTROL_FORWARDED, Facts};
use super::cdev::VfioCdev;
use super::config::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY, COMMAND_PARITY,
    COMMAND_SERR, DEVICE_CONTROL, Effects, Image, MSI_ENABLE, MSIX_ENABLE, MSIX_FUNCTION_MASK,
    MsiLayout, MsixLayout, PM_CONTROL, PM_STATE, VirtualConfig, chunk,
};
use super::direct::{Direct, Part};
use super::host::{CONFIG_REGION, HostDevice, IrqKind};
use super::intx::Intx;
use super::messages::{MessageError, Messages};
use super::platform::{EndOfInterrupt, GuestMappings, InterruptRoutes};
use super::watcher::{HostListener, Watcher};
use crate::limit::LogLimit;

/// What an assigned function is made of.
pub struct VfioPciParts {
    /// Its address in the guest. On bus 0 it appears as an integrated endpoint, elsewhere as an endpoint behind a port.
    pub bdf: Bdf,
    /// The device, bound to an iommufd.
    pub device: Arc<VfioCdev>,
    /// Where its messages go.
    pub routes: Arc<dyn InterruptRoutes>,
    /// Where its memory goes.
    pub mappings: Arc<dyn GuestMappings>,
    /// Who hears of what the host says about it; it is logged in any case.
    pub listener: Option<HostListener>,
}

/// A device cannot be assigned.
#[derive(Debug, Error)]
pub enum VfioPciError {
    /// It is a bridge, or what its configuration space says makes no sense.
    #[error("{device} has a header of type {header:#04x}; only endpoints (type 0) can be assigned")]
    NotAnEndpoint {
        /// The device.
        device: String,
        /// The header type.
        header: u8,
    },
    /// It does not answer.
    #[error(
        "{device} does not answer (its configuration space reads as ones); it may have been removed, or need a power cycle"
    )]
    Gone {
        /// The device.
        device: String,
    },
    /// VFIO refused something.
    #[error("{device}: {what} failed: {source}")]
    Io {
        /// The device.
        device: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
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

/// An assigned device. It is created after its device was bound, and puts itself behind no page table.
pub struct VfioPci {
    bdf: Bdf,
    name: String,
    host: Arc<dyn HostDevice>,
    has_reset: bool,
    routes: Arc<dyn InterruptRoutes>,
    direct: Direct,
    msix: Option<(MsixLayout, MsixTable)>,
    msi: Option<MsiLayout>,
    intx: Arc<Intx>,
    has_intx: bool,
    /// Taken before the locks of `direct` and `intx`; held during the host's calls. The root complex takes it under its
    /// decode lock, so the root complex is never called with it.
    control: Mutex<Control>,
    limit: Mutex<LogLimit>,
    /// Declared last: the thread ends after the interrupts have been turned off.
    _watcher: Watcher,
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
            routes,
            mappings,
            listener,
        } = parts;
        Self::with_host(bdf, device, routes, mappings, listener)
    }

    pub(super) fn with_host(
        bdf: Bdf,
        host: Arc<dyn HostDevice>,
        routes: Arc<dyn InterruptRoutes>,
        mappings: Arc<dyn GuestMappings>,
        listener: Option<HostListener>,
    ) -> Result<Arc<Self>, VfioPciError> {
        let name = host.name();
        let failed = |what| {
            let device = name.clone();
            move |source| VfioPciError::Io {
                device,
                what,
                source,
            }
        };
        let has_reset = host.has_reset().map_err(failed("VFIO_DEVICE_GET_INFO"))?;
        if has_reset {
            host.reset().map_err(failed("resetting it"))?;
        }
        let image = read_image(&*host).map_err(failed("reading its configuration space"))?;
        let [header] = chunk(&image[..], 0x0e);
        if chunk(&image[..], 0) == [0xff; 4] {
            return Err(VfioPciError::Gone { device: name });
        }
        if header & 0x7f != 0 {
            return Err(VfioPciError::NotAnEndpoint {
                device: name,
                header,
            });
        }
        let mut regions = Vec::new();
        let mut sizes = [0; BAR_COUNT];
        for (index, size) in (0..).zip(&mut sizes) {
            let region = host.region(index).map_err(failed("describing its BARs"))?;
            *size = region.size;
            regions.push(region);
        }
        let count = |kind| host.irqs(kind).map_or(0, |irqs| irqs.count);
        let facts = Facts {
            on_root_bus: bdf.bus() == 0,
            has_reset,
            msi: count(IrqKind::Msi),
            msix: count(IrqKind::Msix),
        };
        let config = capabilities::build(&image, bars::decode(&image, &sizes), facts);
        let mut direct = Vec::new();
        for bar in &config.bars {
            let Some(region) = regions.get(bar.index) else {
                continue;
            };
            let trapped = config
                .layout
                .msix
                .map(|msix| bars::msix_ranges(bar.index, &msix))
                .unwrap_or_default();
            for part in bars::direct_parts(region.size, &region.mappable, &trapped) {
                let offset = part.start;
                let index = u32::try_from(bar.index).unwrap_or(0);
                let memory = host.map(index, part).map_err(failed("mapping its BARs"))?;
                direct.push(Part {
                    bar: bar.index,
                    offset,
                    memory,
                });
            }
        }
        let command = u16::from_le_bytes(chunk(&image[..], COMMAND));
        let intx = Intx::new(Arc::clone(&host)).map_err(failed("creating an eventfd"))?;
        let intx = Arc::new(intx);
        let watcher = Watcher::start(&host, Arc::clone(&intx), listener)
            .map_err(failed("starting its thread"))?;
        let table = |layout: MsixLayout| {
            let table = MsixTable::new(layout.vectors, bdf, Arc::new(NoSink));
            (layout, table)
        };
        let function = Self {
            bdf,
            has_reset,
            routes,
            direct: Direct::new(direct, mappings),
            msix: config.layout.msix.map(table),
            msi: config.layout.msi,
            intx,
            has_intx: count(IrqKind::Intx) > 0,
            control: Mutex::new(Control {
                config,
                mode: Mode::Off,
                command: COMMAND_MEMORY | command & (COMMAND_PARITY | COMMAND_SERR),
            }),
            limit: Mutex::default(),
            _watcher: watcher,
            name,
            host,
        };
        let control = function.lock();
        function.write_host_command(&control);
        drop(control);
        Ok(Arc::new(function))
    }

    /// Whether the device can be reset: otherwise it keeps what one guest left in it for the next.
    #[must_use]
    pub fn has_reset(&self) -> bool {
        self.has_reset
    }

    /// Gives the function an interrupt pin (INTA), if the host's device has one that the host can use; before the guest
    /// starts, and once. Returns whether it has one now. The line's owner is [`end_of_interrupt`](Self::end_of_interrupt).
    pub fn connect_intx(&self, line: Arc<dyn IntxSink>) -> bool {
        let connected = self.has_intx && self.intx.connect(line);
        if connected {
            self.lock().config.set_interrupt_pin(1);
        }
        connected
    }

    /// Who is to be told when processors have ended the pin's interrupt.
    #[must_use]
    pub fn end_of_interrupt(&self) -> Weak<dyn EndOfInterrupt> {
        let intx: Arc<dyn EndOfInterrupt> = Arc::clone(&self.intx) as _;
        Arc::downgrade(&intx)
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, what: fmt::Arguments<'_>) {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held_back) = limit.pass() {
            log::warn!("{}: {what} ({held_back} messages held back)", self.name);
        }
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

    /// Bus mastering and Interrupt Disable are the guest's. Memory Space stays on in the host: what the guest switches is
    /// where the BARs appear to it, and the mapping of a BAR that the host does not decode is a bus error.
    fn write_host_command(&self, control: &Control) {
        let guest = control.config.command();
        let command = control.command | guest & (COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE);
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
                self.direct.resume();
            }
        }
        if let (true, Some(pcie)) = (effects.device_control, control.config.layout.pcie) {
            let register = pcie + DEVICE_CONTROL;
            let value = control.config.u16(register);
            self.update_host(register, CONTROL_FORWARDED, value);
        }
        if effects.command {
            let disabled = control.config.command() & COMMAND_INTX_DISABLE != 0;
            if disabled {
                self.intx.set_quiet(true);
            }
            self.write_host_command(control);
            if !disabled {
                // The host asks again, by the event, for an interrupt that is wanted.
                self.intx.set_quiet(false);
            }
        }
        if effects.command || effects.msi || effects.msix {
            self.follow_interrupts(control, effects.msi || effects.msix);
        }
    }

    /// Makes the way of interrupting what configuration space says. `messages`: what is sent may have changed, too.
    fn follow_interrupts(&self, control: &mut Control, messages: bool) {
        let config = &control.config;
        let msix = self.msix.as_ref();
        let msix_control = msix.map_or(0, |(layout, _)| config.u16(layout.offset + 2));
        let msi = self
            .msi
            .filter(|msi| config.u16(msi.offset + 2) & MSI_ENABLE != 0);
        if let Some((_, table)) = msix {
            table.set_control(
                msix_control & MSIX_ENABLE != 0,
                msix_control & MSIX_FUNCTION_MASK != 0,
            );
        }
        if let (Some((layout, _)), true) = (msix, msix_control & MSIX_ENABLE != 0) {
            if !matches!(control.mode, Mode::Msix(_)) {
                self.turn_off(control);
                let vectors = Messages::msix(self.bdf, &self.host, &self.routes, layout.vectors);
                control.mode = Mode::Msix(self.enabled("MSI-X", vectors));
            } else if !messages {
                return;
            }
            for vector in 0..layout.vectors {
                self.follow_vector(control, vector);
            }
        } else if let Some(msi) = msi {
            let wanted = msi_messages(config, msi);
            let count = u16::try_from(wanted.len()).unwrap_or(0);
            match &mut control.mode {
                Mode::Msi(Some(vectors), known) if *known == count => {
                    for (vector, message) in (0..).zip(wanted) {
                        if let Err(error) = vectors.set(vector, message) {
                            self.complain_vector(vector, &error);
                        }
                    }
                }
                // It failed, and would again.
                Mode::Msi(None, known) if *known == count => {}
                _ => {
                    self.turn_off(control);
                    let vectors = Messages::msi(
                        self.bdf,
                        &self.host,
                        &self.routes,
                        &wanted,
                        &mut |vector, error| self.complain_vector(vector, error),
                    );
                    control.mode = Mode::Msi(self.enabled("MSI", vectors), count);
                }
            }
        } else if config.command() & COMMAND_MEMORY != 0 && self.intx.is_connected() {
            // Drivers that use the pin switch the device's memory on first; a device without driver needs no interrupt.
            if !matches!(control.mode, Mode::Intx) {
                self.turn_off(control);
                control.mode = Mode::Intx;
                if let Err(error) = self.intx.enable() {
                    self.complain(format_args!(
                        "cannot enable INTx, the device will not interrupt: {error}"
                    ));
                }
            }
        } else {
            self.turn_off(control);
        }
    }

    fn enabled(&self, what: &str, vectors: Result<Messages, MessageError>) -> Option<Messages> {
        vectors
            .inspect_err(|error| {
                self.complain(format_args!(
                    "cannot enable {what}, the device will not interrupt: {error}"
                ));
            })
            .ok()
    }

    fn complain_vector(&self, vector: u16, error: &MessageError) {
        self.complain(format_args!(
            "interrupt vector {vector} stays silent: {error}"
        ));
    }

    /// The host takes one kind of interrupt at a time.
    fn turn_off(&self, control: &mut Control) {
        if let Mode::Intx = std::mem::replace(&mut control.mode, Mode::Off) {
            self.intx.disable();
        }
    }

    /// Makes what a vector sends what its table entry says.
    fn follow_vector(&self, control: &mut Control, vector: u16) {
        let (Some((layout, table)), Mode::Msix(Some(vectors))) = (&self.msix, &mut control.mode)
        else {
            return;
        };
        let Some(entry) = table.entry(vector) else {
            return;
        };
        let function = control.config.u16(layout.offset + 2) & MSIX_FUNCTION_MASK != 0;
        let message = (!entry.masked && !function).then_some(entry.message);
        if let Err(error) = vectors.set(vector, message) {
            self.complain_vector(vector, &error);
        }
    }

    fn write_table(&self, layout: &MsixLayout, table: &MsixTable, offset: u64, data: &[u8]) {
        let mut control = self.lock();
        let at = offset - layout.table;
        table.write_table(at, data);
        let length = u64::try_from(data.len()).unwrap_or(0);
        let last = at.saturating_add(length.saturating_sub(1)) / 16;
        for vector in at / 16..=last {
            if let Ok(vector) = u16::try_from(vector) {
                self.follow_vector(&mut control, vector);
            }
        }
    }

    /// Pending bits, eight vectors in a byte.
    fn read_pba(&self, layout: &MsixLayout, offset: u64, data: &mut [u8]) {
        let control = self.lock();
        data.fill(0);
        let Mode::Msix(Some(vectors)) = &control.mode else {
            return;
        };
        for (byte, at) in data.iter_mut().zip(offset - layout.pba..) {
            for bit in 0..8 {
                let vector = u16::try_from(at.saturating_mul(8) + bit);
                if vector.is_ok_and(|vector| vectors.is_pending(vector)) {
                    *byte |= 1 << bit;
                }
            }
        }
    }

    /// Back to the state after power-on, in the host and towards the guest.
    fn reset_all(&self, control: &mut Control) {
        self.turn_off(control);
        if let Some((_, table)) = &self.msix {
            table.reset();
        }
        self.direct.suspend();
        control.config.reset();
        self.intx.set_quiet(false);
        // The device is stopped even if it cannot be reset.
        self.write_host_command(control);
        if self.has_reset
            && let Err(error) = self.host.reset()
        {
            self.complain(format_args!("the reset failed: {error}"));
        }
        self.write_host_command(control);
        self.direct.resume();
    }
}

impl Drop for VfioPci {
    fn drop(&mut self) {
        let mut control = self.lock();
        self.turn_off(&mut control);
        self.direct.suspend();
        control.config.reset();
        self.write_host_command(&control);
    }
}

impl PciFunction for VfioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut control = self.lock();
        let end = offset.saturating_add(u16::try_from(data.len()).unwrap_or(u16::MAX));
        let pending_read = |msi: &MsiLayout| {
            let pending = msi.mask() + 4;
            msi.maskable && offset < pending + 4 && pending < end
        };
        if let Some(msi) = self.msi.filter(pending_read) {
            let pending = match &control.mode {
                Mode::Msi(Some(vectors), count) => (0..*count)
                    .filter(|vector| vectors.is_pending(*vector))
                    .fold(0, |bits, vector| bits | 1 << vector),
                _ => 0,
            };
            control.config.set_u32(msi.mask() + 4, pending);
        }
        control.config.read(offset, data, |offset, data| {
            self.read_host(offset, data);
        });
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        let mut control = self.lock();
        let before = control.config.command();
        let effects = control.config.write(offset, data);
        if effects.reset && self.has_reset {
            self.reset_all(&mut control);
            return ConfigChange {
                decode: true,
                function_reset: true,
                ..ConfigChange::default()
            };
        }
        self.apply(&mut control, &effects);
        let after = control.config.command();
        let changed = before ^ after;
        ConfigChange {
            decode: effects.decode,
            bus_master: (changed & COMMAND_BUS_MASTER != 0)
                .then_some(after & COMMAND_BUS_MASTER != 0),
            msi: effects.msi,
            msix: effects.msix,
            function_reset: false,
            intx: changed & COMMAND_INTX_DISABLE != 0,
        }
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        if let Some((layout, table)) = &self.msix {
            if bar == layout.table_bar && within(offset, layout.table, layout.table_size()) {
                return table.read_table(offset - layout.table, data);
            }
            if bar == layout.pba_bar && within(offset, layout.pba, layout.pba_size()) {
                return self.read_pba(layout, offset, data);
            }
        }
        let region = u32::try_from(bar).unwrap_or(u32::MAX);
        if let Err(error) = self.host.read(region, offset, data) {
            data.fill(0xff);
            self.complain(format_args!(
                "cannot read BAR {bar} at {offset:#x}: {error}"
            ));
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        if let Some((layout, table)) = &self.msix {
            if bar == layout.table_bar && within(offset, layout.table, layout.table_size()) {
                return self.write_table(layout, table, offset, data);
            }
            if bar == layout.pba_bar && within(offset, layout.pba, layout.pba_size()) {
                return;
            }
        }
        let region = u32::try_from(bar).unwrap_or(u32::MAX);
        if let Err(error) = self.host.write(region, offset, data) {
            self.complain(format_args!(
                "cannot write BAR {bar} at {offset:#x}: {error}"
            ));
        }
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.lock().config.windows()
    }

    fn bar_sizes(&self) -> Vec<(usize, BarKind, u64)> {
        let control = self.lock();
        let bars = control.config.bars.iter();
        bars.map(|bar| (bar.index, bar.kind, bar.size)).collect()
    }

    fn assign_bar(&self, bar: usize, address: u64) {
        self.lock().config.assign_bar(bar, address);
    }

    fn windows_changed(&self, windows: &[BarWindow]) {
        self.direct.follow(windows, |error| {
            self.complain(format_args!(
                "the hypervisor does not map a BAR, accesses to it will be slow: {error}"
            ));
        });
    }

    /// No DMA and no messages from now on.
    fn quiesce(&self) {
        let control = self.lock();
        self.write_host(COMMAND, &control.command.to_le_bytes());
    }

    fn reset(&self) {
        self.reset_all(&mut self.lock());
    }
}

fn within(offset: u64, start: u64, size: u64) -> bool {
    offset.checked_sub(start).is_some_and(|at| at < size)
}

/// What the vectors that software enabled send; `None` for those that it masked.
fn msi_messages(config: &VirtualConfig, msi: MsiLayout) -> Vec<Option<MsiMessage>> {
    let control = config.u16(msi.offset + 2);
    let (offered, enabled) = (control >> 1 & 7, control >> 4 & 7);
    let count = 1_u32 << u32::from(enabled.min(offered));
    let mut address = u64::from(config.u32(msi.offset + 4));
    if msi.wide {
        address |= u64::from(config.u32(msi.offset + 8)) << 32;
    }
    let data = u32::from(config.u16(msi.data()));
    let mask = if msi.maskable {
        config.u32(msi.mask())
    } else {
        0
    };
    let low = count - 1;
    (0..count)
        .map(|vector| {
            let data = data & !low | vector;
            (mask >> vector & 1 == 0).then_some(MsiMessage { address, data })
        })
        .collect()
}

/// The host's configuration space; zero beyond its end, where a conventional device has none.
fn read_image(host: &dyn HostDevice) -> io::Result<Box<Image>> {
    let size = host.region(CONFIG_REGION)?.size;
    let length =
        usize::try_from(size).map_or(CONFIG_SPACE_SIZE, |size| size.min(CONFIG_SPACE_SIZE));
    let mut image = Box::new([0; CONFIG_SPACE_SIZE]);
    host.read(
        CONFIG_REGION,
        0,
        image.get_mut(..length).unwrap_or_default(),
    )?;
    Ok(image)
}

/// The table here only keeps what the guest writes: messages are sent by the hypervisor.
struct NoSink;

impl MsiSink for NoSink {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {}
}

#[cfg(test)]
#[path = "function_test.rs"]
mod tests;
