//! A unit, its driver and the oracle, with everything that has to agree between them.

mod ats;
mod dma;
pub mod guest;
mod pages;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use intel_vtd::{
    DmaTransaction, DmaView, EventSink, InterruptMessage, Pasid, SourceId, Unit, UnitConfig,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::background::Background;
use crate::driver::{Driver, command, queue};
use crate::facts::Facts;
use crate::faultlog::{Expected, FaultLog};
use crate::flushes::{Flush, Flushes};
use crate::image::Image;
use crate::interrupt::{self, InterruptFlushes, Remapping};
use crate::ram::Memory;
use crate::rng::Rng;
use crate::walker::Root;

/// Memory of the machine: start and length of each region. The last is where no DMA may ever
/// arrive.
pub const REGIONS: [(u64, u64); 3] = [
    (0, 0x8_0000),
    (0xfee0_0000, 0x1000),
    (0x1_0000_0000, 0x4000),
];

/// The page of the invalidation queue.
pub const QUEUE: u64 = 0x1000;
/// Where waits write.
pub const STATUS: u64 = 0x2ff8;
/// Legacy root table.
pub const LEGACY_ROOT: u64 = 0x3000;
/// Scalable root table.
pub const SCALABLE_ROOT: u64 = 0x4000;
/// Interrupt remapping table.
pub const INTERRUPT_TABLE: u64 = 0x1_0000;
/// The page-request queue.
pub const PAGE_QUEUE: u64 = 0x1_4000;
/// Where page tables begin: all other structures are below.
pub const POOL: u64 = 0x1_5000;
/// Requesters with two views each.
pub const SOURCES: [u16; 3] = [0x0008, 0x00f9, 0x0310];

const EVENT_DATA: u32 = 0x41;
const PAGE_EVENT_DATA: u32 = 0x42;

#[derive(Debug, Default)]
struct Sink {
    sent: AtomicU64,
    page_requests: AtomicU64,
    strange: Mutex<Vec<InterruptMessage>>,
}

impl EventSink for Sink {
    fn deliver(&self, message: InterruptMessage) {
        if message.data == EVENT_DATA && message.address == 0xfee0_1000 {
            self.sent.fetch_add(1, Ordering::Relaxed);
        } else if message.data == PAGE_EVENT_DATA && message.address == 0xfee0_2000 {
            self.page_requests.fetch_add(1, Ordering::Relaxed);
        } else if let Ok(mut strange) = self.strange.lock() {
            strange.push(message);
        }
    }
}

/// How often something happened.
pub type Tally = BTreeMap<String, u64>;

fn pasid(value: Option<u64>) -> Option<Pasid> {
    value.map(|value| {
        u32::try_from(value)
            .ok()
            .and_then(Pasid::new)
            .expect("20 bits")
    })
}

/// Begins a transaction of requests with a PASID, perhaps as supervisor, or without one.
fn begin(
    view: &mut DmaView<Memory>,
    number: Option<u64>,
    privileged: bool,
) -> DmaTransaction<'_, Memory> {
    match pasid(number) {
        Some(pasid) if privileged => view.begin_supervisor(pasid),
        pasid => view.begin_pasid(pasid),
    }
}

/// The machine.
pub struct Machine {
    /// What the unit can do.
    pub facts: Facts,
    /// The driver.
    pub driver: Driver,
    /// What memory has to contain.
    pub image: Image,
    /// What happened.
    pub tally: Tally,
    unit: Arc<Unit<Memory>>,
    memory: Memory,
    views: Vec<(u16, DmaView<Memory>)>,
    flushes: Flushes,
    interrupt_flushes: InterruptFlushes,
    /// What SRTP latched.
    pub root: Root,
    /// TES.
    pub translating: bool,
    /// What SIRTP and its companions latched.
    pub remapping: Remapping,
    log: FaultLog,
    tlbs: Vec<Arc<ats::Tlb>>,
    pages: pages::Pages,
    sink: Arc<Sink>,
    snapshot: Vec<u8>,
    _background: Option<Background>,
}

/// What went wrong, in words.
pub type Check = Result<(), String>;

impl Machine {
    /// A machine out of reset with its queue running and its fault event programmed. Some have a background, so that what
    /// the driver asks for is complete when registers and statuses say so, and not before.
    ///
    /// # Errors
    /// When reset values are not what section 11.4 says.
    ///
    /// # Panics
    /// When there is no such unit, or no memory for the guest.
    pub fn new(config: &UnitConfig, rng: &mut Rng) -> Result<Self, String> {
        let ranges = REGIONS.map(|(start, length)| (GuestAddress(start), crate::index(length)));
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let sink = Arc::new(Sink::default());
        let unit = Unit::new(memory.clone(), config, sink.clone()).expect("a valid configuration");
        let background = Background::random(&unit, rng);
        let mut driver = Driver::new(unit.clone(), memory.clone(), QUEUE, STATUS);
        driver.check_reset()?;
        let facts = Facts::decode(
            driver.registers.read64(0x08),
            driver.registers.read64(0x10),
            config.host_address_width,
        );
        driver.registers.write32(0x3c, EVENT_DATA);
        driver.registers.write32(0x40, 0xfee0_1000);
        driver.start_queue(facts.scalable);
        let views = SOURCES
            .iter()
            .chain(&SOURCES)
            .map(|source| {
                let port = unit.port(SourceId(*source));
                (*source, port.view())
            })
            .collect();
        let tlbs = if facts.device_tlb {
            ats::attach(&unit)
        } else {
            Vec::new()
        };
        if facts.page_requests {
            driver.registers.write32(0xe4, PAGE_EVENT_DATA);
            driver.registers.write32(0xe8, 0xfee0_2000);
            driver.registers.write64(0xd0, PAGE_QUEUE);
        }
        let log = FaultLog::new(driver.record_count());
        Ok(Self {
            facts,
            driver,
            image: Image::new(&REGIONS),
            tally: Tally::new(),
            unit,
            memory,
            views,
            flushes: Flushes::default(),
            interrupt_flushes: InterruptFlushes::default(),
            root: Root { table: 0, mode: 0 },
            translating: false,
            remapping: Remapping::default(),
            log,
            tlbs,
            pages: pages::Pages::default(),
            sink,
            snapshot: Vec::new(),
            _background: background,
        })
    }

    fn count(&mut self, what: &str) {
        *self.tally.entry(what.into()).or_default() += 1;
    }

    /// Takes over what the driver stored.
    pub fn sync(&mut self) {
        for (address, bytes) in self.driver.ram.take_journal() {
            self.image.edit(address, &bytes);
        }
    }

    /// Where memory differs from the image: address, expected word, actual word.
    fn differences(&mut self) -> Vec<(u64, u64, u64)> {
        let mut differences = Vec::new();
        for (start, bytes) in self.image.regions() {
            self.snapshot.resize(bytes.len(), 0);
            self.memory
                .read_slice(&mut self.snapshot, GuestAddress(*start))
                .expect("guest memory");
            let pages = bytes.chunks(4096).zip(self.snapshot.chunks(4096));
            for (page, (expected, actual)) in pages.enumerate() {
                if expected == actual {
                    continue;
                }
                let words = expected.chunks(8).zip(actual.chunks(8));
                for (word, (expected, actual)) in words.enumerate() {
                    if expected != actual {
                        let value =
                            |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                        differences.push((
                            start + page as u64 * 4096 + word as u64 * 8,
                            value(expected),
                            value(actual),
                        ));
                    }
                }
            }
        }
        differences
    }

    /// Nothing but the driver has changed memory, and the fault log is as it was.
    ///
    /// # Errors
    /// Says what differs.
    pub fn check_quiet(&mut self) -> Check {
        self.sync();
        let differences = self.differences();
        if !differences.is_empty() {
            return Err(format!("memory changed: {differences:x?}"));
        }
        let observed = self.log.observe(&self.driver)?;
        if !self.log.explains(&observed, None) {
            return Err(format!("a fault from nowhere: {observed:x?}"));
        }
        let strange = self.sink.strange.lock().map_err(|_| "sink")?;
        if !strange.is_empty() {
            return Err(format!("strange events: {strange:x?}"));
        }
        Ok(())
    }

    /// Whether the mode that is in force lets the queue run.
    pub fn queue_runs(&self) -> bool {
        self.root.mode == 0 || self.root.mode == 1 && self.facts.scalable
    }

    /// Submits invalidations and a wait, and notes what they cover.
    pub fn invalidate(&mut self, commands: &[(Flush, [u64; 4])]) {
        let descriptors: Vec<_> = commands.iter().map(|(_, words)| *words).collect();
        self.driver.invalidate(&descriptors);
        self.sync();
        self.wait_wrote();
        for (flush, _) in commands {
            self.image.clock += 1;
            self.flushes.completed(self.image.clock, *flush);
        }
    }

    /// The status of a wait is the one word that a queue writes.
    fn wait_wrote(&mut self) {
        let status = self.driver.ram.load(STATUS);
        self.image.edit(STATUS, &status.to_le_bytes());
    }

    /// Invalidates all translations, through the queue or, where that works, through registers.
    pub fn invalidate_all(&mut self, by_registers: bool) {
        if by_registers && self.root.mode == 0 {
            self.driver.stop_queue();
            let registers = &self.driver.registers;
            registers.write64(0x28, 1 << 63 | 1 << 61);
            let context = registers.completed(0x28);
            assert_eq!(context >> 59 & 3, 1, "CAIG of a global request");
            let at = (registers.read64(0x10) >> 8 & 0x3ff) * 16 + 8;
            registers.write64(at, 1 << 63 | 1 << 60);
            let iotlb = registers.completed(at);
            assert_eq!(iotlb >> 57 & 3, 1, "IAIG of a global request");
            self.driver.start_queue(self.facts.scalable);
        } else {
            let mut commands = vec![queue::context_global()];
            if self.root.mode == 1 {
                commands.push(queue::pasid_cache_global());
            }
            commands.push(queue::iotlb_global());
            self.driver.invalidate(&commands);
            self.sync();
            self.wait_wrote();
        }
        self.sync();
        self.forget_translations();
    }

    fn forget_translations(&mut self) {
        // Interrupt entries have their own cache, so the past of memory is kept, and only
        // translations forget it.
        for flush in [
            Flush::ContextGlobal,
            Flush::PasidCacheGlobal,
            Flush::IotlbGlobal,
        ] {
            self.image.clock += 1;
            self.flushes.completed(self.image.clock, flush);
        }
    }

    /// Invalidates interrupt entries: all, or 2^`order` from `index` on.
    pub fn invalidate_interrupts(&mut self, entries: Option<(u64, u64)>) {
        let descriptor = match entries {
            None => queue::interrupt_global(),
            Some((index, order)) => queue::interrupt_entries(index, order),
        };
        self.driver.invalidate(&[descriptor]);
        self.sync();
        self.wait_wrote();
        self.image.clock += 1;
        let (first, count) = match entries {
            None => (0, 0x1_0000),
            Some((index, order)) => (index >> order << order, 1 << order),
        };
        self.interrupt_flushes
            .completed(self.image.clock, first, count);
    }

    /// Invalidates everything, and forgets what memory was before.
    pub fn invalidate_world(&mut self, by_registers: bool) {
        if !self.queue_runs() {
            return;
        }
        self.invalidate_all(by_registers);
        if self.facts.interrupts {
            self.invalidate_interrupts(None);
        }
        self.flushes.forget();
        self.interrupt_flushes.forget();
        self.image.forget();
    }

    /// Latches another root table. The unit announces that it invalidates all translations by
    /// itself (ESRTPS).
    pub fn set_root(&mut self, table: u64, mode: u64) {
        self.driver.set_root(table, mode);
        self.root = Root { table, mode };
        self.forget_translations();
    }

    /// Switches DMA remapping on or off.
    pub fn translate(&mut self, on: bool) {
        self.driver.set_command(command::TE, on);
        self.translating = on;
        if !on && self.facts.scalable {
            self.forget_translations();
        }
        self.maybe_reset_log();
    }

    /// Switches interrupt remapping on or off (section 11.4.4: CAP.ESIRTPS, as it is announced with
    /// IR).
    pub fn remap_interrupts(&mut self, on: bool) {
        self.driver.set_command(command::IRE, on);
        self.remapping.enabled = on;
        if !on {
            self.interrupts_flushed();
        }
        self.maybe_reset_log();
    }

    fn interrupts_flushed(&mut self) {
        self.image.clock += 1;
        self.interrupt_flushes
            .completed(self.image.clock, 0, 0x1_0000);
    }

    /// Latches an interrupt remapping table of 2^(`size` + 1) entries.
    pub fn set_interrupt_table(&mut self, table: u64, size: u64, extended: bool) {
        self.driver.set_interrupt_table(table, size, extended);
        self.remapping.table = table;
        self.remapping.size = size;
        self.remapping.extended = extended;
        self.interrupts_flushed();
    }

    /// Allows or forbids compatibility format.
    pub fn allow_compatibility(&mut self, on: bool) {
        self.driver.set_command(command::CFI, on);
        self.remapping.compatibility = on;
    }

    fn maybe_reset_log(&mut self) {
        if !self.translating && !self.remapping.enabled {
            self.log.remapping_off();
        }
    }

    fn sent(&self) -> u64 {
        self.sink.sent.load(Ordering::Relaxed)
    }

    /// Clears the fault log.
    ///
    /// # Errors
    /// When the log does not behave.
    pub fn drain_log(&mut self) -> Check {
        let sink = self.sink.clone();
        self.log
            .drain(&self.driver, || sink.sent.load(Ordering::Relaxed))
    }

    /// Clears one record of the log.
    ///
    /// # Errors
    /// When the log does not behave.
    pub fn clear_record(&mut self, index: u64) -> Check {
        let sink = self.sink.clone();
        let index = crate::index(index) % self.log.capacity();
        self.log
            .clear(&self.driver, index, || sink.sent.load(Ordering::Relaxed))
    }

    /// Masks or unmasks the fault event.
    ///
    /// # Errors
    /// When the log does not behave.
    pub fn mask_event(&mut self, masked: bool) -> Check {
        let sink = self.sink.clone();
        self.log
            .mask(&self.driver, masked, || sink.sent.load(Ordering::Relaxed))
    }

    /// An interrupt request, and whether the unit does what the oracle permits.
    ///
    /// # Errors
    /// Says what the unit did, and what was permitted.
    pub fn interrupt(&mut self, source: u16, address: u64, data: u32) -> Check {
        let permitted = interrupt::permitted(
            &self.facts,
            &self.image,
            &self.interrupt_flushes,
            &self.remapping,
            u64::from(source),
            address,
            u64::from(data),
        );
        let actual = self
            .unit
            .remap(SourceId(source), address, data)
            .map(|message| (message.address, u64::from(message.data)))
            .map_err(|blocked| blocked.reason.code());
        let observed = self.log.observe(&self.driver)?;
        let right = permitted.iter().any(|outcome| match (outcome, &actual) {
            (Ok(expected), Ok(message)) => {
                expected == message && self.log.explains(&observed, None)
            }
            (Err(expected), Err(code)) => {
                let fault = Expected {
                    codes: vec![expected.code],
                    source: u64::from(source),
                    information: expected.index.map(|index| index << 48),
                    high: 0,
                    open: Expected::NO_DMA,
                    optional: false,
                };
                expected.code == *code
                    && self
                        .log
                        .explains(&observed, (!expected.silent).then_some(&fault))
            }
            _ => false,
        });
        if !right {
            return Err(format!(
                "interrupt {address:#x} = {data:#x} of {source:#x}: {actual:x?}, {observed:x?}; permitted {permitted:x?}; {:x?}",
                self.remapping
            ));
        }
        match actual {
            Ok(_) => self.count("interrupt delivered"),
            Err(code) => self.count(&format!("interrupt code {code:02x}")),
        }
        let sent = self.sent();
        self.log.accept(&observed, &self.driver, sent)?;
        let differences = self.differences();
        if differences.is_empty() {
            Ok(())
        } else {
            Err(format!("an interrupt changed memory: {differences:x?}"))
        }
    }
}
