//! What the device's thread, the driver's look at the configuration, and the control have in common.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MemOptions;
use crate::virtio::device::LiveConfig;

/// See the module. Sizes are bytes.
pub(super) struct Shared {
    address: u64,
    size: u64,
    block: u64,
    /// What the guest is asked to have plugged.
    requested: AtomicU64,
    /// How often that has changed, from [`FIRST`](Self::FIRST) on.
    changes: AtomicU64,
    plugged: AtomicU64,
    /// Readable while the thread is to look at the size that is asked for.
    asked: EventFd,
    driver: AtomicBool,
}

impl Shared {
    pub(super) const FIRST: u64 = 1;

    pub(super) fn new(options: &MemOptions) -> io::Result<Self> {
        Ok(Self {
            address: options.address,
            size: options.size,
            block: options.block,
            requested: AtomicU64::new(options.requested),
            changes: AtomicU64::new(Self::FIRST),
            plugged: AtomicU64::new(0),
            asked: EventFd::new(EFD_NONBLOCK)?,
            driver: AtomicBool::new(false),
        })
    }

    pub(super) fn block(&self) -> u64 {
        self.block
    }

    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::Acquire)
    }

    /// Whether so much can be asked for.
    pub(super) fn can_be(&self, requested: u64) -> bool {
        requested <= self.size && requested.is_multiple_of(self.block)
    }

    pub(super) fn set_requested(&self, bytes: u64) {
        if self.requested.swap(bytes, Ordering::AcqRel) != bytes {
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn set_plugged(&self, bytes: u64) {
        self.plugged.store(bytes, Ordering::Release);
    }

    pub(super) fn asked(&self) -> &EventFd {
        &self.asked
    }

    /// Has the thread look, once there is one.
    pub(super) fn ask(&self) {
        // An error means that it has been asked as often as the event can count.
        let _ = self.asked.write(1);
    }

    pub(super) fn set_driver(&self, is_there: bool) {
        self.driver.store(is_there, Ordering::Release);
    }
}

impl LiveConfig for Shared {
    /// `struct virtio_mem_config` (section 5.15.4): all of the region can be used.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let fields = [
            self.block,
            // No NUMA node.
            0,
            self.address,
            self.size,
            self.size,
            self.plugged.load(Ordering::Acquire),
            self.requested(),
        ];
        let bytes = fields.iter().flat_map(|field| field.to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(bytes.skip(start)) {
            *byte = value;
        }
    }

    /// The driver writes none of them.
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// How a memory device is. Sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemFigures {
    /// Of the region.
    pub size: u64,
    /// Of a block.
    pub block: u64,
    /// What the guest is asked to have plugged.
    pub requested: u64,
    /// What it has plugged.
    pub plugged: u64,
    /// Whether it has a driver at work.
    pub has_driver: bool,
}

/// Changes how much of a memory device the guest is asked to plug, and tells of it, for as long as the
/// device is there.
#[derive(Clone)]
pub struct MemControl(Weak<Shared>);

impl MemControl {
    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        Self(Arc::downgrade(shared))
    }

    /// Asks the guest to have so many bytes plugged. Tells whether that can be: they are a multiple of the size
    /// of a block, and no more than the region has; and the device is there.
    pub fn request(&self, bytes: u64) -> bool {
        match self.0.upgrade() {
            Some(shared) if shared.can_be(bytes) => {
                shared.set_requested(bytes);
                shared.ask();
                true
            }
            _ => false,
        }
    }

    /// How it is, if the device is there still.
    #[must_use]
    pub fn figures(&self) -> Option<MemFigures> {
        let shared = self.0.upgrade()?;
        Some(MemFigures {
            size: shared.size,
            block: shared.block,
            requested: shared.requested(),
            plugged: shared.plugged.load(Ordering::Acquire),
            has_driver: shared.driver.load(Ordering::Acquire),
        })
    }
}
