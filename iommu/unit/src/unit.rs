//! The device: a remapping unit behind its register window (section 11).
//!
//! # Locks
//! In this order, and each only if needed:
//! 1. the command mutex: every register but those of the fault log and of the page-request queue, and the execution of
//!    commands and of the invalidation queue. Observers of translations are called under it, and take their own locks and as
//!    long as the host's IOMMU needs;
//! 2. the drains: DMA transactions (in [`DmaState`]), interrupt requests in flight and page requests in flight. A command
//!    waits for them, for one kind at a time and while it holds none; they never wait for a command;
//! 3. leaf locks: the fault log, the page-request queue, the lists of observers and of device-TLBs, the limit on log
//!    messages.
//!
//! Events, observers and device-TLBs are called under no leaf lock; observers of translations under no drain either, as they walk
//! tables themselves.

mod command;
mod device_tlb;
mod event_registers;
mod events;
mod fault_log;
mod fault_reporter;
mod interrupt_remapping;
mod layout;
mod observers;
mod page_queue;
mod page_requests;
mod queue;
mod register_file;
mod resolve_dma;
mod snapshot;
mod statistics;
#[cfg(feature = "vm-memory-iommu")]
mod vm_memory_iommu;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use vm_memory::GuestMemoryBackend;

pub use device_tlb::DeviceTlb;
pub use events::{EventSink, InterruptMessage};
pub use interrupt_remapping::{InterruptBlocked, InterruptEntryObserver};
pub use observers::TranslationObserver;
pub use page_requests::PageRequestRefusal;
pub use register_file::REGISTER_WINDOW_SIZE;
pub use resolve_dma::{DmaBlocked, PhysicalRange};
pub use snapshot::{RegisterWord, StateError, UnitState};
pub use statistics::{Limiter, Statistics};
#[cfg(feature = "vm-memory-iommu")]
pub use vm_memory_iommu::UnitIommu;

use crate::config::{ConfigError, UnitConfig};
use crate::dma::{DmaPort, DmaState, DrainScope};
use crate::memory::Nearby;
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::{Caps, offset};
use crate::translate::{Gates, Latched};
use command::Command;
use device_tlb::DeviceTlbs;
use fault_reporter::FaultReporter;
use interrupt_remapping::Remapping;
use layout::{is_fault_register, is_page_register};
use page_queue::PageQueue;
use statistics::Shared;

/// A remapping unit.
///
/// `M` is a handle on guest memory, such as `Arc<GuestMemoryMmap>`.
pub struct Unit<M> {
    caps: Caps,
    /// Leads all others in the lock order.
    command: Mutex<Command>,
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

    /// Adds an observer of changes to translation, for as long as the unit lives: it hears of every command that begins after
    /// this returns. It must not be called by an observer of translations.
    pub fn observe_translations(&self, observer: Arc<dyn TranslationObserver>) {
        self.lock().observers.add(observer);
    }

    fn lock(&self) -> MutexGuard<'_, Command> {
        self.command.lock()
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
            command: Mutex::new(Command::new(&caps)),
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
        data.fill(0);
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
        } else if words.clone().eq([offset::GSTS]) {
            put(self.status.load(Ordering::Acquire));
        } else {
            let command = self.lock();
            words.for_each(|at| put(command.file.load(at)));
        }
    }

    /// Writes to the register window, and carries out what that commands before it returns.
    ///
    /// Accesses that registers do not take are dropped.
    pub fn write(&self, at: u64, data: &[u8]) {
        let mut command = self.lock();
        for (at, piece) in register_file::words(at, data.len()).zip(data.chunks_exact(4)) {
            let value = piece
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u32::from(*byte));
            if is_page_register(at) {
                let message = self.page_queue().store(at, value);
                self.faults.deliver(message);
            } else if !is_fault_register(at) {
                self.write_command_word(&mut command, at, value);
            } else if self.faults.store(at, value) {
                self.restart_queue(&mut command);
            }
        }
    }

    /// Back to the state after power-on. Nothing that was translated before is in use any more when this returns.
    ///
    /// Counters stay, and so do observers and device-TLBs; what the latter keep is for their devices to forget.
    pub fn reset(&self) {
        let mut command = self.lock();
        command.reset();
        self.dma.forget(&Invalidation::All);
        self.latch_translation(&command, Latched::default());
        self.change_remapping(|remapping| *remapping = Remapping::default());
        self.faults.reset();
        self.page_queue().reset();
        self.publish_status(0);
    }

    fn memory(&self) -> Nearby<'_, M::Target> {
        self.dma.guest_memory()
    }

    fn publish_status(&self, status: u32) {
        self.status.store(status, Ordering::Release);
    }

    /// Makes `latched` the state of translation; no request uses an older one or older tables when this returns.
    fn latch_translation(&self, command: &Command, latched: Latched) {
        self.dma.set_latched(latched);
        self.drain_translations(&DrainScope::ALL);
        command.observers.translation_changed();
    }

    /// No request that `scope` takes in uses a translation from before this call when it returns.
    fn invalidate_translations(&self, scope: &DrainScope) {
        self.dma.invalidate_all();
        self.drain_translations(scope);
    }

    /// Waits for the requests in flight that tables translate, as far as `scope` takes them in.
    fn drain_translations(&self, scope: &DrainScope) {
        self.dma.drain_for(scope);
        self.drain_page_requests();
    }
}

#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
#[allow(missing_docs, reason = "fixtures of tests")]
pub mod testing;

#[cfg(test)]
mod concurrency_test;
