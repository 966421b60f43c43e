//! A PCI function for teaching and testing: it computes factorials, copies memory and interrupts.
//! Register-compatible with the `edu` device that QEMU's documentation specifies
//! (docs/specs/edu.rst), so that drivers and tests written for that run here.
//!
//! Differences, all of them about errors and time:
//! * commands start at once instead of after 100 ms; they run on the device's own thread, never on
//!   a vCPU's;
//! * a DMA command that leaves the device's 4 KiB buffer is ignored: it neither starts nor
//!   interrupts;
//! * a DMA command that the IOMMU or the closed bus-master gate blocks completes and interrupts as
//!   any other. The device's buffer is then unchanged; towards memory, pages before the first
//!   blocked one may have been written, and no others;
//! * function-level reset stops the work: once it has been requested no DMA happens any more.
//!
//! # Several messages
//! With [`EduOptions::msi_vectors`] above one, and as many enabled by software (Multiple Message
//! Enable), bit `n` of the interrupt status has the vector `n` modulo that number. What raises
//! several bits sends the message of the lowest.
//!
//! # The extension
//! With [`EduFeatures`], the function has the PCIe capabilities ATS, PASID and PRI, and 32-bit
//! registers in BAR 0 that say how the requests of a DMA command travel. Everything is written and
//! read as 32 bits; other sizes read as ones.
//!
//! | offset | register | access |
//! |---|---|---|
//! | 0x100 | features: bit 0 ATS, bit 1 PASID, bit 2 PRI | read-only |
//! | 0x104 | control, see below | read and write |
//! | 0x108 | outcome of the last DMA command, see below | read-only |
//! | 0x10c | translations kept, at most 64 | read-only |
//! | 0x110 | invalidations received; wraps around | read-only |
//! | 0x114 | page requests made; wraps around | read-only |
//! | 0x118 | page requests answered; wraps around | read-only |
//!
//! A command keeps the manner in which it was started, as control says. Bits for features that the
//! device does not have are ignored.
//!
//! | control | meaning |
//! |---|---|
//! | 19:0 | PASID |
//! | 28 | the command's address is sent in translated requests as it is |
//! | 29 | ask for pages that a translation does not permit |
//! | 30 | ask for translations, keep them, and send translated requests |
//! | 31 | requests have the PASID |
//!
//! | outcome | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | a request was blocked |
//! | 2 | a translation does not permit the access |
//! | 3 | a translation request was refused |
//! | 4 | a page request was not taken |
//! | 5 | a page request was answered as invalid or failed |
//! | 6 | a page request was not answered within 10 s |
//! | 7 | a capability that the command needs is not enabled |
//!
//! # Migration
//! With [`EduOptions::migration`] there is BAR 2, for a driver of the host that has the device migrate
//! with a guest; `edu/window.rs` has its map. Such a device has no extension.

mod atc;
mod copier;
mod extension;
mod pri;
mod registers;
mod saved;
mod shared;
mod window;
mod worker;

#[cfg(test)]
mod edu_test;
#[cfg(test)]
mod extension_test;
#[cfg(test)]
mod marks_test;
#[cfg(test)]
mod registers_test;
#[cfg(test)]
mod window_test;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use intel_vtd::{DeviceTlb, SourceId, Unit};
use parking_lot::{Condvar, Mutex};
use pci::{
    BarKind, BarWindow, Bdf, ConfigBuilder, ConfigChange, ConfigSpace, Identity, IntxSink, MsiSink,
    PciFunction,
};
use state::{RestoreError, SaveError, Section};

pub use extension::EduFeatures;

use crate::{Dma, Memory};
use atc::Atc;
use copier::Link;
use pri::Capabilities;
use registers::Action;
use shared::{Inner, Shared};
use window::{Fixed, Mode, WINDOW_SIZE, Window};

/// Bytes of BAR 0.
const BAR_SIZE: u64 = 1 << 20;

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EduOptions {
    /// The address bits that the device can drive: others are cleared from the addresses of its
    /// DMA.
    pub dma_mask: u64,
    /// MSI vectors that it offers: 1, 2, 4, 8, 16 or 32. Others are rounded down to such a number.
    pub msi_vectors: u8,
    /// The extension. Without effect where [`migration`](Self::migration) is on: none of that is in
    /// an image.
    pub features: EduFeatures,
    /// BAR 2 has the device stand still, tells what it is like, and has it become like another one:
    /// for a driver of the host that has it migrate with a guest.
    pub migration: bool,
}

impl EduOptions {
    /// What of the extension there is.
    fn extension(&self) -> EduFeatures {
        match self.migration {
            true => EduFeatures::default(),
            false => self.features,
        }
    }

    /// What is in an image, and has to be so where that goes.
    fn fixed(&self) -> Fixed {
        Fixed {
            dma_mask: self.dma_mask,
            msi_vectors: 1 << self.msi_vectors.clamp(1, 32).ilog2(),
        }
    }
}

impl Default for EduOptions {
    /// 28 bits and one vector, as documented for the device.
    fn default() -> Self {
        Self {
            dma_mask: 0x0fff_ffff,
            msi_vectors: 1,
            features: EduFeatures::default(),
            migration: false,
        }
    }
}

/// The device.
pub struct Edu {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

impl Edu {
    /// A device at `bdf` that reaches memory through `dma`. If `unit` is in front of it, it keeps a
    /// device-TLB there.
    ///
    /// # Errors
    /// When the device's thread cannot be started.
    pub fn new(
        bdf: Bdf,
        dma: Dma,
        msi: Arc<dyn MsiSink>,
        intx: Arc<dyn IntxSink>,
        unit: Option<Arc<Unit<Memory>>>,
        options: EduOptions,
    ) -> io::Result<Arc<Self>> {
        let (config, capabilities) = config_space(&options);
        let dma = dma.gated(config.bus_master_flag());
        let atc = Arc::new(Atc::default());
        let unit = unit.map(|unit| (unit, SourceId(bdf.as_u16())));
        let shared = Arc::new(Shared {
            bdf,
            fixed: options.fixed(),
            link: Link { atc, unit },
            capabilities,
            msi,
            intx,
            inner: Mutex::new(Inner::new(
                config,
                options.extension(),
                options.migration.then(Window::default),
            )),
            changed: Condvar::new(),
        });
        let worker = worker::start(Arc::clone(&shared), dma)?;
        let link = &shared.link;
        if let Some((unit, source)) = link.unit.as_ref().filter(|_| options.extension().ats) {
            unit.attach_device_tlb(*source, Arc::clone(&link.atc) as Arc<dyn DeviceTlb>);
        }
        Ok(Arc::new(Self {
            shared,
            worker: Some(worker),
        }))
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        self.shared.inner.lock().ending = true;
        self.shared.changed.notify_all();
        self.shared.link.atc.abort();
        if let Some((unit, source)) = &self.shared.link.unit {
            unit.detach_device_tlb(*source);
        }
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has already said so.
            let _ = worker.join();
        }
    }
}

fn config_space(options: &EduOptions) -> (ConfigSpace, Capabilities) {
    let mut builder = ConfigBuilder::endpoint(Identity {
        vendor: 0x1234,
        device: 0x11e8,
        class: [0x00, 0xff, 0x00],
        revision: 0x10,
        subsystem_vendor: 0x1af4,
        subsystem_device: 0x1100,
    });
    builder.add_bar(0, BarKind::Memory32, BAR_SIZE);
    if options.migration {
        builder.add_bar(2, BarKind::Memory32, WINDOW_SIZE);
    }
    builder.set_interrupt_pin(1);
    let log2_vectors = options.fixed().msi_vectors.ilog2();
    builder.add_msi(u8::try_from(log2_vectors).unwrap_or(0));
    builder.add_pcie_endpoint();
    let capabilities = Capabilities::add(&mut builder, options.extension());
    (builder.build(), capabilities)
}

impl PciFunction for Edu {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut inner = self.shared.inner.lock();
        self.shared.update_capabilities(&mut inner);
        inner.config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        let mut inner = self.shared.inner.lock();
        let change = inner.config.write(offset, data);
        if change.function_reset {
            drop(inner);
            self.shared.reset();
            return change;
        }
        self.shared.update_capabilities(&mut inner);
        let messages = inner.config.take_pending_msi();
        if change.intx || change.msi {
            self.shared.drive(&mut inner);
        }
        drop(inner);
        self.shared.send(messages);
        change
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let value = if bar != 0 {
            self.shared.read_window(offset, data.len())
        } else {
            let inner = self.shared.inner.lock();
            let (registers, size) = (&inner.registers, data.len());
            if registers.extension.has(offset) {
                let cached = self.shared.link.atc.cached();
                registers.extension.read(offset, size, cached)
            } else {
                registers.read(offset, size)
            }
        };
        data.fill(0xff);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(byte, value)| *byte = value);
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        let shared = &self.shared;
        if bar != 0 {
            return shared.write_window(offset, data);
        }
        let mut inner = shared.inner.lock();
        if inner.mode() == Mode::StandsStill {
            return;
        }
        let mut message = None;
        match inner.registers.write(offset, data) {
            Action::None => {}
            Action::Raise(bits) => message = shared.raise(&mut inner, bits),
            Action::Acknowledge => shared.drive(&mut inner),
            Action::Factorial(value) if inner.resets == 0 => inner.factorial = Some(value),
            Action::Copy(copy) if inner.resets == 0 => inner.dma = Some(copy),
            Action::Factorial(_) | Action::Copy(_) => {}
            Action::OutOfBounds => {
                inner.complain("a DMA command leaves the device's buffer; it is ignored")
            }
        }
        let work = inner.factorial.is_some() || inner.dma.is_some();
        drop(inner);
        if work {
            shared.changed.notify_all();
        }
        shared.send(message);
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.shared.inner.lock().config.decoded_bars().collect()
    }

    fn bar_sizes(&self) -> Vec<(usize, BarKind, u64)> {
        self.shared.inner.lock().config.bar_sizes().collect()
    }

    fn assign_bar(&self, bar: usize, address: u64) {
        self.shared
            .inner
            .lock()
            .config
            .set_bar_address(bar, address);
    }

    fn park(&self) {
        self.shared.set_parking(true);
    }

    fn parked(&self) -> Result<(), String> {
        match self.shared.is_parked() {
            true => Ok(()),
            false => Err("its DMA engine is at work".to_owned()),
        }
    }

    fn resume(&self) {
        self.shared.set_parking(false);
    }

    fn save(&self) -> Result<Section, SaveError> {
        self.save_function()
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.restore_function(section)
    }

    fn reset(&self) {
        self.shared.reset();
    }
}
