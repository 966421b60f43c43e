//! A virtio driver for tests. It works on a device through configuration space and BAR only, as a
//! guest does. Offsets and bits are literals from the specification.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pci::{Bdf, MsiMessage, MsiSink, PciFunction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::device::VirtioDevice;
use super::pci::VirtioPci;
use crate::{Doorbells, InterruptRoute, InterruptRoutes, Memory};

pub(super) const MEMORY_SIZE: usize = 8 << 20;
/// A bound for whatever has to happen.
pub(super) const SOON: Duration = Duration::from_secs(60);
/// Long enough for something that must not happen.
pub(super) const A_WHILE: Duration = Duration::from_millis(100);

/// VERSION_1 and ACCESS_PLATFORM.
pub(super) const BASE_FEATURES: u64 = 0x3_0000_0000;
pub(super) const INDIRECT: u64 = 0x1000_0000;
pub(super) const EVENT_IDX: u64 = 0x2000_0000;
pub(super) const PACKED: u64 = 1 << 34;

/// Records messages.
#[derive(Default)]
pub(super) struct Messages(pub(super) Mutex<Vec<u32>>);

impl MsiSink for Messages {
    fn signal(&self, _requester: Bdf, _address: u64, data: u32) {
        self.0.lock().unwrap().push(data);
    }
}

/// Records doorbells; refuses those at and above 0x8000_0000.
#[derive(Default)]
pub(super) struct FakeDoorbells(pub(super) Mutex<Vec<u64>>);

impl Doorbells for FakeDoorbells {
    fn add(&self, address: u64, _fd: &EventFd) -> io::Result<()> {
        if address >= 0x8000_0000 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.0.lock().unwrap().push(address);
        Ok(())
    }

    fn remove(&self, address: u64, _fd: &EventFd) {
        let mut doorbells = self.0.lock().unwrap();
        let at = doorbells.iter().position(|other| *other == address);
        doorbells.remove(at.expect("only what was added is removed"));
    }
}

/// Routes by number: the event, and the message.
type Added = Arc<Mutex<BTreeMap<u32, (EventFd, Option<MsiMessage>)>>>;

/// A hypervisor that has `most` routes. It looks at events when it is asked to.
pub(super) struct FakeRoutes {
    most: u32,
    added: Added,
    /// Data of messages.
    sent: Mutex<Vec<u32>>,
    /// How often it was told something.
    pub(super) changes: AtomicUsize,
}

struct Handle {
    number: u32,
    added: Added,
}

impl FakeRoutes {
    pub(super) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self {
            most,
            added: Arc::default(),
            sent: Mutex::default(),
            changes: AtomicUsize::default(),
        })
    }

    pub(super) fn alive(&self) -> usize {
        self.added.lock().unwrap().len()
    }

    /// Sends a message for each event that is signalled, and returns how many there were so far with
    /// this data.
    pub(super) fn sent(&self, data: u32) -> usize {
        let mut sent = self.sent.lock().unwrap();
        for (event, message) in self.added.lock().unwrap().values() {
            if let Some(message) = message
                && event.read().is_ok()
            {
                sent.push(message.data);
            }
        }
        sent.iter().filter(|sent| **sent == data).count()
    }
}

impl InterruptRoutes for FakeRoutes {
    fn add(&self, _source: Bdf, event: EventFd) -> io::Result<Box<dyn InterruptRoute>> {
        let mut added = self.added.lock().unwrap();
        let number = (0..self.most).find(|number| !added.contains_key(number));
        let number = number.ok_or(io::ErrorKind::OutOfMemory)?;
        added.insert(number, (event, None));
        let added = Arc::clone(&self.added);
        Ok(Box::new(Handle { number, added }))
    }

    fn set_messages(&self, messages: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let mut added = self.added.lock().unwrap();
        for (number, message) in messages {
            added.get_mut(number).unwrap().1 = *message;
        }
        Ok(())
    }
}

impl InterruptRoute for Handle {
    fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.added.lock().unwrap().remove(&self.number);
    }
}

/// Waits until `done` holds; panics if that takes long.
pub(super) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "never happened: {what}");
        sleep(Duration::from_millis(1));
    }
}

/// All of a guest's memory.
pub(super) fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap())
}

/// The driver.
pub(super) struct Driver {
    pub(super) function: Arc<VirtioPci>,
    pub(super) memory: Memory,
    pub(super) doorbells: Arc<FakeDoorbells>,
    pub(super) routes: Arc<FakeRoutes>,
    pub(super) messages: Arc<Messages>,
    /// What the device adds to an address.
    pub(super) iova: u64,
}

impl Driver {
    /// A device out of reset, with memory space and bus mastering on, and MSI-X vector n sending n.
    /// Behind no IOMMU.
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::behind(device, 0, |memory| crate::Dma::direct(Arc::clone(memory)))
    }

    /// The same behind what `port` makes, with all of memory mapped at `iova`.
    pub(super) fn behind(
        device: Box<dyn VirtioDevice>,
        iova: u64,
        port: impl FnOnce(&Memory) -> crate::Dma,
    ) -> Self {
        let memory = memory();
        let port = port(&memory);
        Self::with_memory(device, iova, memory, port)
    }

    /// The same with this memory, behind `port`.
    pub(super) fn with_memory(
        device: Box<dyn VirtioDevice>,
        iova: u64,
        memory: Memory,
        port: crate::Dma,
    ) -> Self {
        Self::with_routes(device, iova, memory, port, FakeRoutes::new(64))
    }

    /// The same with a hypervisor that has these routes.
    pub(super) fn with_routes(
        device: Box<dyn VirtioDevice>,
        iova: u64,
        memory: Memory,
        port: crate::Dma,
        routes: Arc<FakeRoutes>,
    ) -> Self {
        let messages = Arc::new(Messages::default());
        let doorbells = Arc::new(FakeDoorbells::default());
        let function = VirtioPci::new(
            Bdf::new(0, 3, 0).unwrap(),
            port,
            Arc::<Messages>::clone(&messages),
            Arc::<FakeRoutes>::clone(&routes),
            Arc::<FakeDoorbells>::clone(&doorbells),
            device,
        )
        .unwrap();
        let driver = Self {
            function,
            memory,
            doorbells,
            routes,
            messages,
            iova,
        };
        driver.enable_function();
        driver
    }

    /// Command register and MSI-X, as after a function reset.
    pub(super) fn enable_function(&self) {
        self.function.write_config(4, &6_u16.to_le_bytes());
        let msix = self.find_capability(0x11, |_| true);
        self.function
            .write_config(msix + 2, &0x8000_u16.to_le_bytes());
        let mut control = [0; 2];
        self.function.read_config(msix + 2, &mut control);
        for vector in 0..=u32::from(u16::from_le_bytes(control) & 0x7ff) {
            let entry = 0x2000 + 16 * u64::from(vector);
            self.write(entry, &0xfee0_0000_u32.to_le_bytes());
            self.write(entry + 4, &0_u32.to_le_bytes());
            self.write(entry + 8, &vector.to_le_bytes());
            self.write(entry + 12, &0_u32.to_le_bytes());
        }
    }

    pub(super) fn find_capability(&self, id: u8, wanted: impl Fn(u16) -> bool) -> u16 {
        let mut at = u16::from(self.config_byte(0x34));
        while at != 0 {
            if self.config_byte(at) == id && wanted(at) {
                return at;
            }
            at = u16::from(self.config_byte(at + 1));
        }
        panic!("no capability {id:#x}");
    }

    pub(super) fn config_byte(&self, at: u16) -> u8 {
        let mut byte = [0];
        self.function.read_config(at, &mut byte);
        byte[0]
    }

    pub(super) fn write(&self, at: u64, data: &[u8]) {
        self.function.write_bar(0, at, data);
    }

    pub(super) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0xa5; N];
        self.function.read_bar(0, at, &mut data);
        data
    }

    pub(super) fn status(&self) -> u8 {
        self.read::<1>(20)[0]
    }

    pub(super) fn set_status(&self, status: u8) {
        self.write(20, &[status]);
    }

    pub(super) fn offered(&self) -> u64 {
        self.write(0, &0_u32.to_le_bytes());
        let low = u32::from_le_bytes(self.read(4));
        self.write(0, &1_u32.to_le_bytes());
        let high = u32::from_le_bytes(self.read(4));
        u64::from(high) << 32 | u64::from(low)
    }

    /// Everything up to FEATURES_OK; the result is whether the device agrees.
    pub(super) fn negotiate(&self, features: u64) -> bool {
        self.set_status(0);
        eventually("reset completes", || self.status() == 0);
        self.set_status(1);
        self.set_status(3);
        let bytes = features.to_le_bytes();
        self.write(8, &0_u32.to_le_bytes());
        self.write(12, &bytes[..4]);
        self.write(8, &1_u32.to_le_bytes());
        self.write(12, &bytes[4..]);
        self.set_status(11);
        self.status() == 11
    }

    /// Sets up and enables queue `index` with `size` entries and its own vector; its memory is the
    /// 64 KiB at `0x10000 * (index + 1)`.
    pub(super) fn queue(&self, index: u16, size: u16) -> Ring {
        let base = 0x10000 * (u64::from(index) + 1);
        let ring = Ring {
            index,
            size,
            descriptors: base,
            available: base + 0x8000,
            used: base + 0xc000,
            next_descriptor: AtomicU16::new(0),
            next_available: AtomicU16::new(0),
            next_used: AtomicU16::new(0),
        };
        self.memory
            .write_slice(&[0; 0x10000], GuestAddress(base))
            .unwrap();
        self.write(16, &0_u16.to_le_bytes());
        self.write(22, &index.to_le_bytes());
        self.write(24, &size.to_le_bytes());
        self.write(26, &(index + 1).to_le_bytes());
        for (at, value) in [
            (32, ring.descriptors),
            (40, ring.available),
            (48, ring.used),
        ] {
            let bytes = (value + self.iova).to_le_bytes();
            self.write(at, &bytes[..4]);
            self.write(at + 4, &bytes[4..]);
        }
        self.write(28, &1_u16.to_le_bytes());
        ring
    }

    /// Negotiates `features` besides the mandatory ones, sets up `queues` queues of 16, and starts.
    pub(super) fn start(&self, features: u64, queues: u16) -> Vec<Ring> {
        assert!(
            self.negotiate(BASE_FEATURES | features),
            "features {features:#x} refused"
        );
        let rings = (0..queues).map(|index| self.queue(index, 16)).collect();
        self.set_status(15);
        rings
    }

    pub(super) fn kick(&self, ring: &Ring) {
        self.write(
            0x1000 + 4 * u64::from(ring.index),
            &ring.index.to_le_bytes(),
        );
    }

    /// Waits for the device to give up.
    pub(super) fn expect_needs_reset(&self) {
        eventually("DEVICE_NEEDS_RESET", || self.status() & 64 != 0);
    }

    /// Interrupts received so far, by vector.
    pub(super) fn interrupts(&self, vector: u32) -> usize {
        self.routes.sent(vector) + self.messages(vector)
    }

    /// Those of them that the device has sent itself.
    pub(super) fn messages(&self, vector: u32) -> usize {
        self.messages
            .0
            .lock()
            .unwrap()
            .iter()
            .filter(|data| **data == vector)
            .count()
    }
}

/// A buffer of a chain: address, length, device-writable.
pub(super) type Buffer = (u64, u32, bool);

/// A queue's memory.
pub(super) struct Ring {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    next_descriptor: AtomicU16,
    next_available: AtomicU16,
    next_used: AtomicU16,
}

impl Ring {
    /// Writes descriptor `index` of the table at `table`.
    pub(super) fn descriptor(
        driver: &Driver,
        table: u64,
        index: u16,
        (address, length, flags, next): (u64, u32, u16, u16),
    ) {
        let mut bytes = address.wrapping_add(driver.iova).to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        driver
            .memory
            .write_slice(&bytes, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }

    /// Writes `buffers` as a chain into the table at `table`, from `first` on.
    pub(super) fn chain(
        driver: &Driver,
        table: u64,
        first: u16,
        size: u16,
        buffers: &[Buffer],
    ) -> u16 {
        let mut index = first;
        for (number, (address, length, write)) in buffers.iter().enumerate() {
            let more = number + 1 < buffers.len();
            let next = (index + 1) % size;
            let flags = u16::from(more) | u16::from(*write) << 1;
            Self::descriptor(driver, table, index, (*address, *length, flags, next));
            index = next;
        }
        index
    }

    /// Makes a chain of `buffers` available, and returns its head. Descriptors are used in turn.
    pub(super) fn add(&self, driver: &Driver, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor.load(Ordering::Relaxed);
        let next = Self::chain(driver, self.descriptors, head, self.size, buffers);
        self.next_descriptor.store(next, Ordering::Relaxed);
        self.offer(driver, head);
        head
    }

    /// Makes descriptor `head` available.
    pub(super) fn offer(&self, driver: &Driver, head: u16) {
        let slot = self.next_available.fetch_add(1, Ordering::Relaxed);
        let entry = self.available + 4 + 2 * u64::from(slot % self.size);
        driver.memory.write_obj(head, GuestAddress(entry)).unwrap();
        let index = slot.wrapping_add(1);
        driver
            .memory
            .store(index, GuestAddress(self.available + 2), Ordering::Release)
            .unwrap();
    }

    /// The next used element, if there is one: head and length.
    pub(super) fn try_used(&self, driver: &Driver) -> Option<(u32, u32)> {
        let index: u16 = driver
            .memory
            .load(GuestAddress(self.used + 2), Ordering::Acquire)
            .unwrap();
        let next = self.next_used.load(Ordering::Relaxed);
        if index == next {
            return None;
        }
        self.next_used
            .store(next.wrapping_add(1), Ordering::Relaxed);
        let element = self.used + 4 + 8 * u64::from(next % self.size);
        let head = driver.memory.read_obj(GuestAddress(element)).unwrap();
        let length = driver.memory.read_obj(GuestAddress(element + 4)).unwrap();
        Some((head, length))
    }

    /// Waits for the next used element.
    pub(super) fn used(&self, driver: &Driver) -> (u32, u32) {
        let mut found = None;
        eventually("a used buffer", || {
            found = self.try_used(driver);
            found.is_some()
        });
        found.unwrap()
    }
}
