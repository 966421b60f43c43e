//! A host device, routes and mappings that record what is done with them.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pci::{Bdf, IntxSink, MsiMessage};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::fake_migration::FakeMigration;
use super::host::{
    Armed, CONFIG_REGION, HostDevice, IrqKind, Irqs, MigrationFeatures, MigrationState, Region,
};
use super::image::Image;
use super::platform::GuestMappings;
use crate::{InterruptRoute, InterruptRoutes};

/// The configuration space of a made-up device: MSI-X at 40, PM at 60, PCI Express at 80, MSI at
/// c0, vendor-specific at e0, VPD at f0; extended: ATS at 100, serial number at 148, SR-IOV at 160,
/// vendor-specific at 1a0, error reporting at 200.
pub(super) fn image() -> Box<Image> {
    let mut image = Box::new([0; 4096]);
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x00, &[0x36, 0x1b, 0x10, 0x00]);
    set(0x04, &[0x06, 0x01, 0x18, 0x00]); // SERR, bus master, memory; interrupt pending, capability list
    set(0x08, &[0x02, 0x02, 0x08, 0x01]);
    set(0x0e, &[0x80]); // multi-function
    set(0x10, &[0x04, 0, 0, 0xfe, 0, 0, 0, 0]); // BAR 0: 64-bit
    set(0x18, &[0x01, 0xe0, 0, 0]); // BAR 2: I/O
    set(0x1c, &[0x08, 0, 0, 0xfd]); // BAR 3: 32-bit prefetchable
    set(0x2c, &[0xf4, 0x1a, 0x00, 0x11]);
    set(0x34, &[0x40]);
    set(0x3c, &[0x0b, 0x01]);
    // MSI-X: 65 vectors, table at BAR 0 + 2000, pending bits at BAR 0 + 3000.
    set(
        0x40,
        &[0x11, 0x60, 0x40, 0x80, 0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0],
    );
    // PM: version 3, D1, PME from everywhere; no soft reset, PME enabled, D0.
    set(0x60, &[0x01, 0x80, 0x03, 0xfa, 0x08, 0x01, 0, 0]);
    // PCI Express: version 2, endpoint; 512-byte payloads, extended tags, FLR, slot power.
    set(0x80, &[0x10, 0xc0, 0x02, 0x00, 0x22, 0x81, 0x00, 0x1c]);
    set(0x88, &[0x3f, 0x29, 0x20, 0x00]); // control with errors and 256-byte payloads; transactions pending
    set(0x8c, &[0x43, 0xfc, 0x47, 0x05, 0x40, 0x00, 0x43, 0x10]); // link: x4 at 8 GT/s, ASPM
    set(0xa4, &[0x1f, 0x08, 0x0f, 0x00, 0x00, 0x04, 0x00, 0x00]);
    set(0xac, &[0x0e, 0x00, 0x80, 0x00, 0x03, 0x00, 0x00, 0x00]);
    // MSI: 64-bit, maskable, 4 vectors.
    set(0xc0, &[0x05, 0xe0, 0x84, 0x01]);
    set(0xe0, &[0x09, 0xf0, 0x10, 0x77, 0x78]);
    set(0xf0, &[0x03, 0x00, 0xaa, 0xbb, 0xcc]);
    set(0x100, &[0x0f, 0x00, 0x81, 0x14, 0x20]);
    set(0x148, &[0x03, 0x00, 0x01, 0x16, 1, 2, 3, 4, 5, 6, 7, 8]);
    set(0x160, &[0x10, 0x00, 0x01, 0x1a, 0xff]);
    set(
        0x1a0,
        &[0x0b, 0x00, 0x01, 0x20, 0x34, 0x12, 0x00, 0x02, 0x99],
    );
    set(0x200, &[0x01, 0x00, 0x02, 0x00, 0x55]);
    image
}

/// What the fake device was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Write(u32, u64, Vec<u8>),
    Arm(IrqKind, u32, Vec<bool>),
    Disarm(IrqKind),
    Unmask,
    Reset,
}

pub(super) struct FakeHost {
    pub(super) config: Mutex<Box<Image>>,
    pub(super) config_size: u64,
    pub(super) regions: BTreeMap<u32, Region>,
    pub(super) irqs: BTreeMap<IrqKind, Irqs>,
    pub(super) has_reset: bool,
    /// The host has no more vectors than this.
    pub(super) vectors: u32,
    pub(super) broken: AtomicBool,
    /// While a test has this, no reset ends.
    pub(super) hold: Mutex<()>,
    pub(super) calls: Mutex<Vec<Call>>,
    pub(super) events: Mutex<BTreeMap<(IrqKind, u32), EventFd>>,
    /// It cannot be migrated at first.
    pub(super) migration: Mutex<FakeMigration>,
}

impl FakeHost {
    pub(super) fn new() -> Self {
        let region = |size, mappable: &[Range<u64>]| Region {
            size,
            mappable: mappable.to_vec(),
        };
        let whole: Vec<_> = std::iter::once(0..0x4000).collect();
        let regions = BTreeMap::from([
            (0, region(0x4000, &whole)),
            (2, region(0x20, &[])),
            (3, region(0x100, &[])),
        ]);
        let irq = |count, dynamic| Irqs { count, dynamic };
        let irqs = BTreeMap::from([
            (IrqKind::Intx, irq(1, true)),
            (IrqKind::Msi, irq(4, false)),
            (IrqKind::Msix, irq(65, true)),
            (IrqKind::Request, irq(1, false)),
        ]);
        Self {
            config: Mutex::new(image()),
            config_size: 4096,
            regions,
            irqs,
            has_reset: true,
            vectors: 4096,
            broken: AtomicBool::new(false),
            hold: Mutex::default(),
            calls: Mutex::default(),
            events: Mutex::default(),
            migration: Mutex::default(),
        }
    }

    /// One that can be migrated.
    pub(super) fn movable() -> Self {
        Self {
            migration: Mutex::new(FakeMigration::whole()),
            ..Self::new()
        }
    }

    pub(super) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().expect("calls"))
    }

    pub(super) fn signal(&self, kind: IrqKind, vector: u32) {
        let events = self.events.lock().expect("events");
        events[&(kind, vector)].write(1).expect("signalled");
    }

    fn record(&self, call: Call) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        self.calls.lock().expect("calls").push(call);
        Ok(())
    }
}

impl HostDevice for FakeHost {
    fn name(&self) -> String {
        "PCI device 0000:01:00.0".to_owned()
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        if region == CONFIG_REGION {
            let at = usize::try_from(offset).expect("offset");
            data.copy_from_slice(&self.config.lock().expect("config")[at..at + data.len()]);
        } else {
            data.fill(0x5a);
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.record(Call::Write(region, offset, data.to_vec()))?;
        if region == CONFIG_REGION {
            let at = usize::try_from(offset).expect("offset");
            let mut config = self.config.lock().expect("config");
            let disabled = config[5] & 4 != 0;
            config[at..at + data.len()].copy_from_slice(data);
            let cleared = disabled && config[5] & 4 == 0;
            drop(config);
            if cleared
                && self
                    .events
                    .lock()
                    .expect("events")
                    .contains_key(&(IrqKind::Intx, 0))
            {
                // The pin is still wanted: VFIO signals it before the write returns.
                self.signal(IrqKind::Intx, 0);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn region(&self, region: u32) -> io::Result<Region> {
        if region == CONFIG_REGION {
            return Ok(Region {
                size: self.config_size,
                ..Region::default()
            });
        }
        Ok(self.regions.get(&region).cloned().unwrap_or_default())
    }

    fn map(&self, _region: u32, part: Range<u64>) -> io::Result<Arc<MmapRegion>> {
        let length = usize::try_from(part.end - part.start).expect("length");
        Ok(Arc::new(MmapRegion::new(length).expect("memory")))
    }

    fn irqs(&self, kind: IrqKind) -> io::Result<Irqs> {
        Ok(self.irqs.get(&kind).copied().unwrap_or_default())
    }

    fn arm(&self, kind: IrqKind, start: u32, events: &[Option<&EventFd>]) -> io::Result<Armed> {
        let armed = events.iter().map(Option::is_some).collect();
        self.record(Call::Arm(kind, start, armed))?;
        let count = u32::try_from(events.len()).expect("count");
        if start + count > self.vectors {
            return Ok(Armed::Only(self.vectors));
        }
        for (vector, event) in (start..).zip(events) {
            if let Some(event) = event {
                let event = event.try_clone().expect("clone");
                let mut known = self.events.lock().expect("events");
                known.insert((kind, vector), event);
            }
        }
        Ok(Armed::All)
    }

    fn disarm(&self, kind: IrqKind) -> io::Result<()> {
        let mut events = self.events.lock().expect("events");
        events.retain(|(known, _), _| *known != kind);
        self.record(Call::Disarm(kind))
    }

    fn unmask_intx(&self) -> io::Result<()> {
        self.record(Call::Unmask)
    }

    fn has_reset(&self) -> io::Result<bool> {
        Ok(self.has_reset)
    }

    fn reset(&self) -> io::Result<()> {
        self.record(Call::Reset)?;
        let _hold = self.hold.lock().expect("hold");
        self.migration.lock().expect("migration").reset();
        Ok(())
    }

    fn migration(&self) -> io::Result<Option<MigrationFeatures>> {
        Ok(self.migration.lock().expect("migration").features)
    }

    fn migration_state(&self) -> io::Result<MigrationState> {
        self.migration.lock().expect("migration").state()
    }

    fn set_migration_state(&self, state: MigrationState) -> io::Result<()> {
        self.migration.lock().expect("migration").set(state)
    }

    fn read_migration(&self, data: &mut [u8]) -> io::Result<usize> {
        self.migration.lock().expect("migration").read(data)
    }

    fn write_migration(&self, data: &[u8]) -> io::Result<()> {
        self.migration.lock().expect("migration").write(data)
    }
}

/// Routes: what each of them sends, in the order in which they were added. A dropped one leaves its
/// last message, and counts as gone.
#[derive(Default)]
pub(super) struct FakeRoutes {
    pub(super) added: Mutex<Vec<(Bdf, Arc<FakeRoute>)>>,
    pub(super) alive: Arc<AtomicUsize>,
    /// No more routes than this are alive at a time, if it is not zero.
    pub(super) limit: usize,
    /// How often messages were set.
    pub(super) changes: AtomicUsize,
}

#[derive(Default)]
pub(super) struct FakeRoute {
    pub(super) message: Mutex<Option<MsiMessage>>,
}

struct Handle {
    number: u32,
    alive: Arc<AtomicUsize>,
}

impl FakeRoutes {
    pub(super) fn messages(&self) -> Vec<Option<MsiMessage>> {
        let added = self.added.lock().expect("added");
        let routes = added.iter();
        routes
            .map(|(_, route)| *route.message.lock().expect("message"))
            .collect()
    }

    pub(super) fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }
}

impl InterruptRoutes for FakeRoutes {
    fn add(&self, source: Bdf, _event: EventFd) -> io::Result<Box<dyn InterruptRoute>> {
        if self.limit > 0 && self.alive() >= self.limit {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let route = Arc::new(FakeRoute::default());
        let mut added = self.added.lock().expect("added");
        let number = u32::try_from(added.len()).expect("few");
        added.push((source, route));
        self.alive.fetch_add(1, Ordering::Relaxed);
        let alive = Arc::clone(&self.alive);
        Ok(Box::new(Handle { number, alive }))
    }

    fn set_messages(&self, messages: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let added = self.added.lock().expect("added");
        for (number, message) in messages {
            let (_, route) = &added[usize::try_from(*number).expect("few")];
            *route.message.lock().expect("message") = *message;
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
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is mapped into the guest: address and length.
#[derive(Default)]
pub(super) struct FakeMappings {
    pub(super) mapped: Arc<Mutex<Vec<(u64, u64)>>>,
}

struct Mapped {
    entry: (u64, u64),
    mapped: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl FakeMappings {
    pub(super) fn sorted(&self) -> Vec<(u64, u64)> {
        let mut mapped = self.mapped.lock().expect("mapped").clone();
        mapped.sort_unstable();
        mapped
    }
}

impl GuestMappings for FakeMappings {
    fn map(
        &self,
        address: u64,
        _memory: &Arc<MmapRegion>,
        _offset: u64,
        length: u64,
    ) -> io::Result<Box<dyn Any + Send + Sync>> {
        let entry = (address, length);
        self.mapped.lock().expect("mapped").push(entry);
        let mapped = Arc::clone(&self.mapped);
        Ok(Box::new(Mapped { entry, mapped }))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut mapped = self.mapped.lock().expect("mapped");
        mapped.retain(|entry| *entry != self.entry);
    }
}

/// A line that remembers its levels.
#[derive(Default)]
pub(super) struct FakeLine {
    pub(super) levels: Mutex<Vec<bool>>,
}

impl IntxSink for FakeLine {
    fn set_level(&self, asserted: bool) {
        self.levels.lock().expect("levels").push(asserted);
    }
}
