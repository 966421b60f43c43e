//! For tests: a guest whose function is saved and becomes another one, with the memory that it had;
//! and queues of both kinds, which do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::Duration;

use pci::{Bdf, PciFunction as _};
use state::{RestoreError, Section};
use vm_memory::{Bytes, GuestAddress};

use super::device::VirtioDevice;
use super::pci::VirtioPci;
use super::testing::{
    Buffer, Driver, FakeDoorbells, FakeRoutes, MEMORY_SIZE, Messages, PACKED, Ring, eventually,
};

impl Driver {
    /// Parks the function.
    pub(super) fn park(&self) {
        self.function.park();
        eventually("it parks", || self.function.parked().is_ok());
    }

    /// Parks and saves it.
    pub(super) fn saved(&self) -> Section {
        self.park();
        self.function.save().expect("saved")
    }

    /// A function with `device` that becomes what was saved as `section`, and is parked.
    pub(super) fn restored(
        &self,
        device: Box<dyn VirtioDevice>,
        section: &Section,
    ) -> Result<Self, RestoreError> {
        let messages = Arc::<Messages>::default();
        let doorbells = Arc::<FakeDoorbells>::default();
        let routes = FakeRoutes::new(64);
        let function = VirtioPci::new(
            Bdf::new(0, 3, 0).unwrap(),
            crate::Dma::direct(Arc::clone(&self.memory)),
            Arc::clone(&messages) as _,
            Arc::clone(&routes) as _,
            Arc::clone(&doorbells) as _,
            device,
        )
        .unwrap();
        function.restore(section)?;
        Ok(Self {
            function,
            memory: Arc::clone(&self.memory),
            doorbells,
            routes,
            messages,
            iova: 0,
        })
    }

    /// The function becomes another one, with `device`. Memory is as it was until then, no interrupt
    /// is sent, and what can be seen is the same.
    pub(super) fn move_to(&mut self, device: Box<dyn VirtioDevice>) {
        let section = self.saved();
        let before = self.all_memory();
        let next = self.restored(device, &section).expect("restored");
        assert_eq!(next.function.parked(), Ok(()));
        sleep(Duration::from_millis(2));
        assert_eq!(next.saved(), section, "saved once more");
        assert!(self.all_memory() == before, "written before it goes on");
        assert!(next.messages.0.lock().unwrap().is_empty());
        *self = next;
        self.function.resume();
    }

    pub(super) fn all_memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY_SIZE];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// The same as [`start`](Self::start), for queues of either kind.
    pub(super) fn start_queues(&self, features: u64, queues: u16) -> Vec<Queue> {
        let rings = self.start(features, queues).into_iter();
        let queue = |ring| match features & PACKED {
            0 => Queue::Split(ring),
            _ => Queue::Packed(PackedRing::new(ring)),
        };
        rings.map(queue).collect()
    }
}

/// A queue's memory.
pub(super) enum Queue {
    Split(Ring),
    Packed(PackedRing),
}

/// That of a packed one (section 2.8), whose chains are used in order.
pub(super) struct PackedRing {
    ring: Ring,
    /// How many descriptors have been made available, and how many are used.
    available: AtomicU16,
    used: AtomicU16,
}

impl PackedRing {
    fn new(ring: Ring) -> Self {
        Self {
            ring,
            available: AtomicU16::new(0),
            used: AtomicU16::new(0),
        }
    }

    /// Where descriptor number `count` of all is, and whether the wrap counter is set there.
    fn place(&self, count: u16) -> (u64, bool) {
        let size = self.ring.size;
        let at = self.ring.descriptors + 16 * u64::from(count % size);
        (at, (count / size).is_multiple_of(2))
    }

    fn add(&self, driver: &Driver, buffers: &[Buffer]) {
        let first = self.available.load(Ordering::Relaxed);
        let mut count = first;
        let mut marks = Vec::new();
        for (index, (address, length, write)) in buffers.iter().enumerate() {
            let (at, wrap) = self.place(count);
            let more = index + 1 < buffers.len();
            let put = |offset: u64, bytes: &[u8]| {
                let at = GuestAddress(at + offset);
                driver.memory.write_slice(bytes, at).unwrap();
            };
            put(0, &address.to_le_bytes());
            put(8, &length.to_le_bytes());
            put(12, &u16::try_from(buffers.len()).unwrap().to_le_bytes());
            let mark = if wrap { 0x80 } else { 0x8000 };
            let flags = u16::from(more) | u16::from(*write) << 1 | mark;
            marks.push((at, flags));
            count += 1;
        }
        self.available.store(count, Ordering::Relaxed);
        // The first one last.
        for (at, flags) in marks.into_iter().rev() {
            let at = GuestAddress(at + 14);
            driver.memory.store(flags, at, Ordering::Release).unwrap();
        }
    }

    /// The bytes written of the next chain. Its name is how many descriptors it has.
    fn try_used(&self, driver: &Driver) -> Option<u32> {
        let count = self.used.load(Ordering::Relaxed);
        let (at, wrap) = self.place(count);
        let flags: u16 = driver
            .memory
            .load(GuestAddress(at + 14), Ordering::Acquire)
            .unwrap();
        if flags & 0x8080 != if wrap { 0x8080 } else { 0 } {
            return None;
        }
        let written = driver.memory.read_obj(GuestAddress(at + 8)).unwrap();
        let entries: u16 = driver.memory.read_obj(GuestAddress(at + 12)).unwrap();
        self.used.store(count + entries, Ordering::Relaxed);
        Some(written)
    }
}

impl Queue {
    pub(super) fn add(&self, driver: &Driver, buffers: &[Buffer]) {
        match self {
            Self::Split(ring) => {
                ring.add(driver, buffers);
            }
            Self::Packed(ring) => ring.add(driver, buffers),
        }
    }

    pub(super) fn kick(&self, driver: &Driver) {
        match self {
            Self::Split(ring) => driver.kick(ring),
            Self::Packed(ring) => driver.kick(&ring.ring),
        }
    }

    /// How many bytes were written to the next chain, if it is used.
    pub(super) fn try_used(&self, driver: &Driver) -> Option<u32> {
        match self {
            Self::Split(ring) => ring.try_used(driver).map(|(_, length)| length),
            Self::Packed(ring) => ring.try_used(driver),
        }
    }

    /// The same, once it is used.
    pub(super) fn used(&self, driver: &Driver) -> u32 {
        let mut found = None;
        eventually("a used buffer", || {
            found = self.try_used(driver);
            found.is_some()
        });
        found.unwrap()
    }
}
