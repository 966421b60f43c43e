//! Device status (section 2.1), ISR status (section 4.1.4.5) and interrupt vectors: the part of the
//! transport that the device's thread touches as well. That thread takes no lock here; who changes
//! what interrupts do takes that of [`Calls`].

pub(super) mod saved;

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use pci::MsixTable;

use super::calls::Calls;
use crate::virtio::session::Transport;

/// `VIRTIO_MSI_NO_VECTOR` of <linux/virtio_pci.h>: no interrupt (section 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Device status bits (section 2.1), which the register holds in one byte.
#[allow(clippy::cast_possible_truncation)]
pub(super) mod status {
    use virtio_bindings::virtio_config as config;

    /// The operating system has noticed the device.
    pub(crate) const ACKNOWLEDGE: u8 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
    /// It knows how to drive it.
    pub(crate) const DRIVER: u8 = config::VIRTIO_CONFIG_S_DRIVER as u8;
    /// The driver is ready.
    pub(crate) const DRIVER_OK: u8 = config::VIRTIO_CONFIG_S_DRIVER_OK as u8;
    /// Negotiation is complete.
    pub(crate) const FEATURES_OK: u8 = config::VIRTIO_CONFIG_S_FEATURES_OK as u8;
    /// The device cannot go on.
    pub(crate) const NEEDS_RESET: u8 = config::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    /// The driver has given up.
    pub(crate) const FAILED: u8 = config::VIRTIO_CONFIG_S_FAILED as u8;
}

/// `VIRTIO_PCI_ISR_*` of <linux/virtio_pci.h>, which virtio-bindings lacks (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Status and interrupts of one device.
pub(super) struct Link {
    /// Set by the driver, except `NEEDS_RESET`.
    pub(super) status: AtomicU8,
    msix: MsixTable,
    calls: Calls,
    isr: AtomicU8,
    /// Changes with the device-specific configuration.
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
}

impl Link {
    pub(super) fn new(msix: MsixTable, calls: Calls, queues: usize) -> Self {
        Self {
            status: AtomicU8::new(0),
            msix,
            calls,
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// Reading the ISR status clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.calls.collect(|queue| self.queue_interrupt(queue));
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Another one than before each change of the device-specific configuration of which the driver is
    /// told (section 2.5.1). Its fields are read whole, each by itself.
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn queue_vector(&self, queue: usize) -> u16 {
        self.queue_vectors
            .get(queue)
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.valid(vector), Ordering::Release);
    }

    pub(super) fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(queue) {
            self.change(|| slot.store(self.valid(vector), Ordering::Release));
        }
    }

    /// Reads the MSI-X table.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        self.msix.read_table(offset, data);
    }

    /// Writes the MSI-X table.
    pub(super) fn write_table(&self, offset: u64, data: &[u8]) {
        self.change(|| self.msix.write_table(offset, data));
    }

    /// Reads the pending bits of MSI-X.
    pub(super) fn read_pba(&self, offset: u64, data: &mut [u8]) {
        self.calls.collect(|queue| self.queue_interrupt(queue));
        self.msix.read_pba(offset, data);
    }

    /// MSI-X was enabled, disabled or masked.
    pub(super) fn set_msix_control(&self, enabled: bool, masked: bool) {
        self.change(|| self.msix.set_control(enabled, masked));
    }

    /// Resets MSI-X.
    pub(super) fn reset_msix(&self) {
        self.change(|| self.msix.reset());
    }

    /// Bus mastering may have changed.
    pub(super) fn bus_master_changed(&self) {
        self.change(|| {});
    }

    /// Changes what interrupts do, and has the hypervisor follow.
    fn change<R>(&self, body: impl FnOnce() -> R) -> R {
        self.calls.change(
            |queue| self.queue_interrupt(queue),
            body,
            |queue| self.msix.message(self.queue_vector(queue)),
        )
    }

    /// Back to no status, no vectors, nothing pending. MSI-X itself belongs to the function, not to
    /// the virtio device.
    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.change(|| {
            for vector in &self.queue_vectors {
                vector.store(NO_VECTOR, Ordering::Release);
            }
        });
        self.isr.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    /// A vector that the table does not have reads back as `NO_VECTOR` (section 4.1.5.1.2.1).
    fn valid(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// The ISR bits are for drivers without MSI-X (section 4.1.4.5.1). There is no INTx pin: such a
    /// driver polls.
    fn interrupt(&self, isr: u8, vector: u16) {
        if !self.msix.enabled() {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        } else if vector != NO_VECTOR {
            self.msix.notify(vector);
        }
    }
}

impl Transport for Link {
    fn queue_interrupt(&self, index: usize) {
        self.interrupt(ISR_QUEUE, self.queue_vector(index));
    }

    fn has_route(&self, index: usize) -> bool {
        self.calls.has(index)
    }

    fn needs_reset(&self) {
        let before = self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        // 2.1.2: the notification is owed only to a driver that has said DRIVER_OK.
        if before & status::DRIVER_OK != 0 && before & status::NEEDS_RESET == 0 {
            self.interrupt(ISR_CONFIG, self.config_vector());
        }
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.interrupt(ISR_CONFIG, self.config_vector());
    }
}
