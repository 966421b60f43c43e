//! A unit with one device, whose every step is accounted for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use iommu::{
    DmaPort, DmaView, EventSink, InterruptEntryObserver, InterruptMessage, SourceId, Statistics,
    Unit, UnitConfig,
};

use crate::guest::Guest;

/// The features of a unit, as bits.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Index of the host address width.
    pub(crate) width: u8,
    pub(crate) features: u16,
}

impl Shape {
    /// A configuration that a unit takes: what lacks its foundation is left out.
    fn config(self, host_address_width: u8) -> UnitConfig {
        let on = |bit: u32| self.features >> bit & 1 == 0;
        let scalable = on(0);
        let aw_bits = match self.features >> 8 & 3 {
            0 | 1 => 48,
            2 => 57,
            _ => 39,
        };
        let first_stage = scalable && aw_bits != 39 && on(1);
        let second_stage = !first_stage || on(2);
        let interrupt_remapping = on(4);
        UnitConfig {
            host_address_width,
            aw_bits,
            scalable,
            first_stage,
            second_stage,
            nested: first_stage && second_stage && on(3),
            interrupt_remapping,
            x2apic: interrupt_remapping && on(5),
            caching_mode: on(6),
            snoop_control: on(7),
            pasid_bits: 0,
            device_tlb: false,
            page_requests: false,
        }
    }
}

/// Counts events, and ranges of interrupt entries that became invalid.
#[derive(Default)]
struct Listener {
    events: AtomicU64,
    ranges: AtomicU64,
}

impl EventSink for Listener {
    fn deliver(&self, _: InterruptMessage) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }
}

impl InterruptEntryObserver for Listener {
    fn interrupt_entries_invalidated(&self, first: u16, count: u32) {
        assert!(
            u32::from(first) + count <= 0x1_0000,
            "{first:#x} and {count:#x} entries"
        );
        self.ranges.fetch_add(1, Ordering::Relaxed);
    }
}

/// What happened since some moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    pub(crate) lookups: u64,
    pub(crate) events: u64,
    /// Calls of observers.
    pub(crate) ranges: u64,
    /// Descriptors taken from the queue.
    pub(crate) executed: u64,
    pub(crate) waits: u64,
    pub(crate) lost_statuses: u64,
    pub(crate) queue_errors: u64,
    /// Faults, recorded or not.
    pub(crate) faults: u64,
    /// Interrupts, blocked or not.
    pub(crate) interrupts: u64,
    pub(crate) blocked: u64,
}

impl Account {
    fn of(stats: &Statistics) -> Self {
        Self {
            executed: stats.context_invalidations
                + stats.iotlb_invalidations
                + stats.pasid_cache_invalidations
                + stats.pasid_iotlb_invalidations
                + stats.interrupt_invalidations
                + stats.waits,
            waits: stats.waits,
            lost_statuses: stats.lost_statuses,
            queue_errors: stats.queue_errors,
            faults: stats.faults_recorded + stats.faults_lost + stats.faults_suppressed,
            interrupts: stats.interrupts_remapped
                + stats.interrupts_passed
                + stats.interrupts_blocked,
            blocked: stats.interrupts_blocked,
            ..Self::default()
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            lookups: self.lookups - before.lookups,
            events: self.events - before.events,
            ranges: self.ranges - before.ranges,
            executed: self.executed - before.executed,
            waits: self.waits - before.waits,
            lost_statuses: self.lost_statuses - before.lost_statuses,
            queue_errors: self.queue_errors - before.queue_errors,
            faults: self.faults - before.faults,
            interrupts: self.interrupts - before.interrupts,
            blocked: self.blocked - before.blocked,
        }
    }
}

pub(crate) struct Machine {
    pub(crate) guest: Arc<Guest>,
    pub(crate) unit: Arc<Unit<Arc<Guest>>>,
    listener: Arc<Listener>,
    /// The registers out of reset.
    fresh: Vec<u64>,
}

impl Machine {
    pub(crate) fn new(shape: Shape) -> Self {
        let guest = Guest::take(shape.width);
        let listener = Arc::new(Listener::default());
        let unit = Unit::new(
            Arc::clone(&guest),
            &shape.config(guest.width()),
            Arc::clone(&listener) as _,
        )
        .expect("a shape makes a unit");
        unit.observe_interrupt_entries(Arc::clone(&listener) as _);
        let mut machine = Self {
            guest,
            unit,
            listener,
            fresh: Vec::new(),
        };
        machine.fresh = machine.registers();
        machine
    }

    pub(crate) fn view(&self, source: u16) -> DmaView<Arc<Guest>> {
        DmaPort::translated(Arc::clone(&self.unit), SourceId(source)).view()
    }

    /// All registers: those up to 0x100, and the fault records.
    fn registers(&self) -> Vec<u64> {
        let places = (0..0x100).chain(0x220..0x2A0);
        places.step_by(8).map(|at| self.read64(at)).collect()
    }

    pub(crate) fn read32(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.unit.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn read64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.unit.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn write32(&self, at: u64, value: u32) -> Account {
        self.write(at, &value.to_le_bytes())
    }

    pub(crate) fn write64(&self, at: u64, value: u64) -> Account {
        self.write(at, &value.to_le_bytes())
    }

    /// Sets `bits` of GCMD, and keeps what is on.
    pub(crate) fn command(&self, bits: u32) -> Account {
        self.write32(0x18, self.read32(0x1C) & 0x8780_0000 | bits)
    }

    /// Writes to the register window, and checks what such a write may lead to.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Account {
        let account = self.step(|| self.unit.write(at, bytes));
        let words = bytes.len() as u64 / 4;
        // A fetch for each descriptor and a status for each wait; a fetch that fails stops the queue.
        let most = account.executed + account.waits + words;
        assert!(account.lookups <= most, "{account:?} by {words} words");
        // 128 pages of the narrow descriptors.
        assert!(account.executed <= words * 0x8000, "{account:?}");
        assert!(account.events <= account.waits + 2 * words, "{account:?}");
        // Remapping can change in three ways at once.
        assert!(
            account.ranges <= account.executed + 3 * words,
            "{account:?}"
        );
        assert!(account.queue_errors <= words, "{account:?}");
        assert_eq!((account.faults, account.interrupts), (0, 0));
        account
    }

    /// Resets, which leaves no trace but in counters.
    pub(crate) fn reset(&self) {
        let account = self.step(|| self.unit.reset());
        assert!(account.lookups == 0 && account.events == 0, "{account:?}");
        assert_eq!(self.registers(), self.fresh, "registers after reset");
    }

    /// Runs one operation, and checks what holds whatever it was.
    pub(crate) fn step(&self, run: impl FnOnce()) -> Account {
        let before = self.account();
        run();
        let account = self.account().since(before);
        assert_eq!(self.read64(0x80) & !0x7_FFF0, 0, "IQH");
        assert_eq!(self.read32(0x1C) & !0xC780_0000, 0, "GSTS");
        // FRI names one of eight records.
        assert_eq!(self.read32(0x34) & 0x0000_F800, 0, "FSTS");
        assert!(account.lost_statuses <= account.waits, "{account:?}");
        assert!(account.blocked <= account.interrupts, "{account:?}");
        account
    }

    fn account(&self) -> Account {
        Account {
            lookups: self.guest.lookups(),
            events: self.listener.events.load(Ordering::Relaxed),
            ranges: self.listener.ranges.load(Ordering::Relaxed),
            ..Account::of(&self.unit.stats())
        }
    }
}
