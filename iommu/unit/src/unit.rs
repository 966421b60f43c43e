//! The device: a remapping unit behind its register window (section 11).
//!
//! # Locks
//! In this order, and each only if needed:
//! 1. that of the `Execution`: whoever carries out commands and the invalidation queue has it, for as long as
//!    transactions of devices, observers and the host's IOMMU take. A register access never waits for it if the unit has a
//!    [background](Unit::run_in_background): what it asks for is noted, and seen by who has the lock;
//! 2. the drains: DMA transactions (in [`DmaState`]), interrupt requests in flight and page requests in flight. The executor
//!    waits for them, for one kind at a time and while it holds none; they never wait for the executor;
//! 3. that of the `Registers`: every register but those of the fault log and of the page-request queue. It is held for one
//!    access, never while anything is waited for or anyone is called;
//! 4. leaf locks: the fault log, the page-request queue, the lists of observers and of device-TLBs, the limit on log
//!    messages.
//!
//! Reads of VER, CAP, ECAP and GSTS take none. Events, observers and device-TLBs are called under neither the registers' lock
//! nor a leaf lock; observers of translations under no drain either, as they walk tables themselves.

mod budget;
mod command;
mod device_tlb;
mod event_registers;
mod events;
mod execution;
mod fault_log;
mod fault_reporter;
mod interrupt_remapping;
mod layout;
mod observers;
mod page_queue;
mod page_requests;
mod patience;
mod queue;
mod register_file;
mod registers;
mod resolve_dma;
mod snapshot;
mod statistics;
#[cfg(feature = "vm-memory-iommu")]
mod vm_memory_iommu;

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard, RwLock};
use vm_memory::GuestMemoryBackend;

pub use budget::InlineBudget;
pub use device_tlb::DeviceTlb;
pub use events::{EventSink, InterruptMessage};
pub use execution::Interruption;
pub use interrupt_remapping::{InterruptBlocked, InterruptEntryObserver};
pub use observers::TranslationObserver;
pub use page_requests::PageRequestRefusal;
pub use patience::{Patience, Unfinished};
pub use register_file::REGISTER_WINDOW_SIZE;
pub use resolve_dma::{DmaBlocked, PhysicalRange};
pub use snapshot::{RegisterWord, StateError, UnitState};
pub use statistics::{Durations, Limiter, Statistics};
#[cfg(feature = "vm-memory-iommu")]
pub use vm_memory_iommu::UnitIommu;

use crate::config::{ConfigError, UnitConfig};
use crate::dma::{DmaPort, DmaState, DrainScope};
use crate::memory::Nearby;
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::{Caps, offset};
use crate::translate::{Gates, Latched};
use budget::{Budget, Clock, Later};
use device_tlb::DeviceTlbs;
use execution::{Background, Execution};
use fault_reporter::FaultReporter;
use interrupt_remapping::Remapping;
use layout::{constant, is_constant, is_fault_register, is_page_register};
use page_queue::PageQueue;
use registers::Registers;
use statistics::Shared;

/// A remapping unit.
///
/// `M` is a handle on guest memory, such as `Arc<GuestMemoryMmap>`.
pub struct Unit<M> {
    caps: Caps,
    /// Leads all others in the lock order.
    execution: Mutex<Execution>,
    /// How many want `execution` before anything further is executed.
    claims: Arc<AtomicUsize>,
    background: OnceLock<Background>,
    /// Held for one access.
    registers: Mutex<Registers>,
    /// GSTS, for guests that poll it while a command runs.
    status: AtomicU32,
    dma: Arc<DmaState<M>>,
    /// Read by interrupt requests in flight; to change it, or just to wait for them, a command takes the write side.
    remapping: RwLock<Remapping>,
    /// Leaf lock; copied before anyone is called.
    observers: Mutex<Vec<Arc<dyn InterruptEntryObserver>>>,
    faults: Arc<FaultReporter>,
    /// Leaf lock: the page-request queue and its registers.
    page_queue: Mutex<PageQueue>,
    /// Held by page requests in flight; to wait for them, a command takes the write side.
    page_requests_in_flight: RwLock<()>,
    device_tlbs: DeviceTlbs,
    shared: Arc<Shared>,
}

impl<M> Unit<M> {
    /// The capability words that the guest reads.
    pub fn capabilities(&self) -> Caps {
        self.caps
    }

    /// What devices behind this unit reach memory through.
    pub fn dma_state(&self) -> &Arc<DmaState<M>> {
        &self.dma
    }

    /// The port of a device behind this unit that presents itself as `source`.
    pub fn port(&self, source: SourceId) -> DmaPort<M> {
        DmaPort::behind(Arc::clone(&self.dma), source)
    }

    /// What the unit has done so far.
    pub fn stats(&self) -> Statistics {
        self.shared.counters.snapshot(self.dma.counts())
    }

    /// How long the guest's register accesses took, from when they met something that may take time. Those that met nothing
    /// count as the shortest.
    pub fn register_accesses(&self) -> Durations {
        self.shared.register_accesses.snapshot()
    }

    /// Adds an observer of changes to translation, for as long as the unit lives: it hears of every command that begins after
    /// this returns. It must not be called by an observer of translations.
    pub fn observe_translations(&self, observer: Arc<dyn TranslationObserver>)
    where
        M: Deref<Target: GuestMemoryBackend>,
    {
        self.as_executor(|execution| execution.observers.add(observer));
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock()
    }

    /// The same, for an access whose time is taken.
    fn registers_for(&self, clock: &mut Clock) -> MutexGuard<'_, Registers> {
        self.registers.try_lock().unwrap_or_else(|| {
            clock.start();
            self.registers.lock()
        })
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Makes a unit out of reset. Its own events go to `events`.
    ///
    /// # Errors
    /// When the configuration asks for what cannot be had.
    pub fn new(
        memory: M,
        config: &UnitConfig,
        events: Arc<dyn EventSink>,
    ) -> Result<Arc<Self>, ConfigError> {
        let caps = config.capabilities()?;
        let shared = Arc::new(Shared::default());
        let faults = Arc::new(FaultReporter::new(caps, events, Arc::clone(&shared)));
        let gates = Gates::new(caps, config.host_address_width);
        let sink = Arc::clone(&faults);
        let mut dma = DmaState::new(memory, gates, sink);
        if config.keep_translations {
            dma = dma.keeping_translations();
        }
        Ok(Arc::new(Self {
            caps,
            execution: Mutex::default(),
            claims: Arc::default(),
            background: OnceLock::new(),
            registers: Mutex::new(Registers::new(&caps)),
            status: AtomicU32::new(0),
            dma: Arc::new(dma),
            remapping: RwLock::default(),
            observers: Mutex::default(),
            faults,
            page_queue: Mutex::new(PageQueue::new(&caps)),
            page_requests_in_flight: RwLock::default(),
            device_tlbs: DeviceTlbs::default(),
            shared,
        }))
    }

    /// Reads from the register window. What is no register, and accesses that registers do not take, read as 0.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        let clock = self.load(at, data);
        self.shared.register_accesses.record(clock.elapsed());
    }

    /// As [`read`](Self::read), but by the host.
    pub(crate) fn load(&self, at: u64, data: &mut [u8]) -> Clock {
        data.fill(0);
        let mut clock = Clock::default();
        let words = register_file::words(at, data.len());
        let mut pieces = data.chunks_exact_mut(4);
        let mut put = |value: u32| {
            if let Some(piece) = pieces.next() {
                piece.copy_from_slice(&value.to_le_bytes());
            }
        };
        if words.clone().any(is_fault_register) {
            // Its neighbours that such an access may touch are reserved.
            self.faults.load(words, put);
        } else if words.clone().any(is_page_register) {
            // An access of 8 bytes takes in none of their neighbours.
            let queue = self.page_queue();
            words.for_each(|at| put(queue.load(at)));
        } else if words.clone().all(is_constant) {
            words.for_each(|at| put(constant(&self.caps, at)));
        } else if words.clone().eq([offset::GSTS]) {
            put(self.shown_status());
        } else {
            let registers = self.registers_for(&mut clock);
            words.for_each(|at| put(registers.file.load(at)));
        }
        clock
    }

    /// Writes to the register window, and carries out what that asks for before it returns: all of it, unless there
    /// is a [background](Self::run_in_background).
    ///
    /// Accesses that registers do not take are dropped.
    pub fn write(&self, at: u64, data: &[u8]) {
        let mut clock = Clock::default();
        let words = register_file::words(at, data.len());
        let values = data.chunks_exact(4).map(|piece| {
            let bytes = piece.iter().rev();
            bytes.fold(0, |value, byte| value << 8 | u32::from(*byte))
        });
        let has_work = if words.clone().any(is_fault_register) {
            self.write_fault_registers(words.zip(values))
        } else if words.clone().any(is_page_register) {
            for (at, value) in words.zip(values) {
                let message = self.page_queue().store(at, value);
                self.faults.deliver(message);
            }
            false
        } else {
            self.write_command_registers(words.zip(values), &mut clock)
        };
        if has_work {
            clock = self.work(clock);
        }
        self.shared.register_accesses.record(clock.elapsed());
    }

    fn write_fault_registers(&self, words: impl Iterator<Item = (u16, u32)>) -> bool {
        let mut goes_on = false;
        for (at, value) in words {
            // Its neighbours that such an access may touch are reserved.
            if is_fault_register(at) && self.faults.store(at, value) {
                // The error is gone that had stopped the queue: it goes on where it stands.
                let mut registers = self.registers();
                registers.file.set_quad(offset::IQERCD, 0);
                registers.ask_queue();
                goes_on = true;
            }
        }
        goes_on
    }

    fn write_command_registers(
        &self,
        words: impl Iterator<Item = (u16, u32)>,
        clock: &mut Clock,
    ) -> bool {
        let mut message = None;
        let mut asks = false;
        let has_work = {
            let mut registers = self.registers_for(clock);
            for (at, value) in words {
                asks |= Registers::is_command(at);
                // An access takes in only one register that raises an event.
                message = registers.store(at, value).or(message);
                if at == offset::GCMD {
                    self.publish_status(registers.status().into_bits());
                }
            }
            asks && registers.has_work()
        };
        self.faults.deliver(message);
        has_work
    }

    /// Back to the state after power-on. Nothing that was translated before is in use any more when this returns.
    ///
    /// Counters stay, and so do observers and device-TLBs; what the latter keep is for their devices to forget. What is
    /// left of the invalidation queue is dropped: this waits for what is under way, and no longer. A device that has pages
    /// [pinned](crate::DmaTransaction::pin) then is waited for, too, but for half a second at most: to be sure, stop it
    /// before.
    pub fn reset(&self) {
        self.as_executor(|execution| {
            execution.reset();
            self.registers().reset();
            self.dma.forget(&Invalidation::All);
            self.latch_all(execution, Latched::default(), Remapping::default());
            self.faults.reset();
            self.page_queue().reset();
            self.publish_status(0);
        });
    }

    fn memory(&self) -> Nearby<'_, M::Target> {
        self.dma.guest_memory()
    }

    fn shown_status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    fn publish_status(&self, status: u32) {
        self.status.store(status, Ordering::Release);
    }

    /// Makes `latched` the state of translation; no request uses an older one or older tables when this returns.
    fn latch_translation(
        &self,
        execution: &mut Execution,
        latched: Latched,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        execution.halfway.translation = true;
        self.dma.set_latched(latched);
        self.drain_translations(&DrainScope::ALL, budget)?;
        execution.root = latched.root;
        budget.clock.start();
        execution
            .observers
            .translation_changed(&budget.of_observers())?;
        execution.halfway.translation = false;
        Ok(())
    }

    /// Makes this the state of the unit, however long that takes.
    fn latch_all(&self, execution: &mut Execution, latched: Latched, remapping: Remapping) {
        let mut budget = Budget::to_reset();
        // This budget leaves nothing for later.
        let _ = self.latch_translation(execution, latched, &mut budget);
        let _ = self.change_remapping(execution, &mut budget, |current| *current = remapping);
    }

    /// No request that `scope` takes in uses a translation from before this call when it returns.
    fn invalidate_translations(
        &self,
        scope: &DrainScope,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        self.dma.invalidate_all();
        self.drain_translations(scope, budget)
    }

    /// Waits for the requests in flight that tables translate, as far as `scope` takes them in.
    fn drain_translations(&self, scope: &DrainScope, budget: &mut Budget<'_>) -> Result<(), Later> {
        if !self
            .dma
            .drain_transactions(scope, &mut || budget.patience().is_ok())
        {
            return Err(Later);
        }
        let mut began = None;
        let mut goes_on = || budget.patience_for_pins(&mut began).is_ok();
        if !self.dma.drain_pins(scope, &mut goes_on) {
            budget.comes_back()?;
        }
        self.drain_page_requests(budget)
    }
}

#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
#[allow(missing_docs, reason = "fixtures of tests")]
pub mod testing;

#[cfg(test)]
mod background_test;
#[cfg(test)]
mod concurrency_test;
#[cfg(test)]
mod pins_test;
