//! A unit with one device, whose every step is accounted for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arbitrary::Arbitrary;
use intel_vtd::{
    AddressWidth, DmaView, EventSink, InlineBudget, InterruptEntryObserver, InterruptMessage,
    Interrupts, Pasid, Patience, Scalable, SourceId, Stages, Statistics, Unfinished, Unit,
    UnitConfig, WalkFeatures,
};

use crate::device::{Deeds, Devices};
use crate::guest::Guest;

/// The features of a unit, as bits.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Index of the host address width. With bit 7, register writes leave what takes long, and it is done right
    /// after them.
    pub(crate) width: u8,
    pub(crate) features: u16,
}

impl Shape {
    /// A configuration that a unit takes: what lacks its foundation is left out.
    fn config(self, host_address_width: u8) -> UnitConfig {
        let on = |bit: u32| self.features >> bit & 1 == 0;
        let scalable = on(0);
        let address_width = match self.features >> 8 & 3 {
            0 | 1 => AddressWidth::Bits48,
            2 => AddressWidth::Bits57,
            _ => AddressWidth::Bits39,
        };
        let stages = match [1, 2, 3].map(on) {
            _ if address_width == AddressWidth::Bits39 => Stages::Second,
            [false, ..] => Stages::Second,
            [true, false, _] => Stages::First,
            [true, true, false] => Stages::Both,
            [true, true, true] => Stages::Nested,
        };
        let device_tlb = on(11);
        let pasid_bits = if on(10) {
            [20, 1, 8, 16][usize::from(self.features >> 13 & 3)]
        } else {
            0
        };
        let scalable = scalable.then(|| {
            Scalable::new(stages)
                .with_pasid_bits(pasid_bits)
                .with_page_requests(device_tlb && on(12))
                .with_walks(WalkFeatures::ALL.with_pages_of_1g(on(15)))
        });
        let interrupts = if on(4) {
            Interrupts::Remapped { x2apic: on(5) }
        } else {
            Interrupts::Off
        };
        UnitConfig::legacy(host_address_width)
            .with_address_width(address_width)
            .with_scalable(scalable)
            .with_interrupts(interrupts)
            .with_device_tlb(device_tlb)
            .with_caching_mode(on(6))
            .with_snoop_control(on(7))
            // One of the two values that both mean 48 bits.
            .with_keep_translations(self.features >> 8 & 3 == 1)
    }
}

impl Shape {
    /// What register writes carry out themselves, if they leave anything.
    fn inline(self) -> Option<InlineBudget> {
        (self.width & 0x80 != 0).then_some(InlineBudget {
            settles: u32::from(self.width >> 5 & 3),
            time: Duration::MAX,
        })
    }
}

/// A unit of a guest.
type Behind = Unit<Arc<Guest>>;

/// Lookups of a page request: root, context, directory and PASID entry, and the slot of the queue;
/// with retries.
const LOOKUPS_PER_REQUEST: u64 = 16;
/// Lookups that one page can take: 16 walks of 35 entries with as many updates, and 5 entries
/// before them.
pub(crate) const LOOKUPS_PER_PAGE: u64 = 16 * 2 * 35 + 5;

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

impl Listener {
    fn make_unit(
        self: &Arc<Self>,
        guest: &Arc<Guest>,
        config: &UnitConfig,
        inline: Option<InlineBudget>,
    ) -> Arc<Behind> {
        let unit = Unit::new(Arc::clone(guest), config, Arc::clone(self) as _)
            .expect("a shape makes a unit");
        unit.observe_interrupt_entries(Arc::clone(self) as _);
        if let Some(inline) = inline {
            unit.run_in_background(inline, Arc::new(|| {}));
        }
        unit
    }
}

impl InterruptEntryObserver for Listener {
    fn interrupt_entries_invalidated(
        &self,
        first: u16,
        count: u32,
        _: &Patience,
    ) -> Result<(), Unfinished> {
        assert!(
            u32::from(first) + count <= 0x1_0000,
            "{first:#x} and {count:#x} entries"
        );
        self.ranges.fetch_add(1, Ordering::Relaxed);
        Ok(())
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
    /// Invalidations of device-TLBs, there or not.
    pub(crate) device_invalidations: u64,
    pub(crate) timeouts: u64,
    pub(crate) responses: u64,
    pub(crate) page_requests: u64,
    pub(crate) page_requests_refused: u64,
    pub(crate) translations: u64,
    /// The same, as devices count it.
    pub(crate) deeds: Deeds,
}

impl Account {
    fn of(stats: &Statistics) -> Self {
        Self {
            executed: stats.context_invalidations
                + stats.iotlb_invalidations
                + stats.pasid_cache_invalidations
                + stats.pasid_iotlb_invalidations
                + stats.interrupt_invalidations
                + stats.device_tlb_invalidations
                + stats.page_responses
                + stats.waits,
            waits: stats.waits,
            lost_statuses: stats.lost_statuses,
            queue_errors: stats.queue_errors,
            faults: stats.faults_recorded + stats.faults_lost + stats.faults_suppressed,
            interrupts: stats.interrupts_remapped
                + stats.interrupts_passed
                + stats.interrupts_blocked,
            blocked: stats.interrupts_blocked,
            device_invalidations: stats.device_tlb_invalidations,
            timeouts: stats.device_tlb_timeouts,
            responses: stats.page_responses,
            page_requests: stats.page_requests,
            page_requests_refused: stats.page_requests_refused,
            translations: stats.translation_requests,
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
            device_invalidations: self.device_invalidations - before.device_invalidations,
            timeouts: self.timeouts - before.timeouts,
            responses: self.responses - before.responses,
            page_requests: self.page_requests - before.page_requests,
            page_requests_refused: self.page_requests_refused - before.page_requests_refused,
            translations: self.translations - before.translations,
            deeds: self.deeds.since(before.deeds),
        }
    }

    /// Page requests that were made.
    pub(crate) fn asked(&self) -> u64 {
        self.deeds.accepted + self.deeds.refused
    }
}

pub(crate) struct Machine {
    pub(crate) guest: Arc<Guest>,
    pub(crate) unit: Arc<Unit<Arc<Guest>>>,
    pub(crate) devices: Arc<Devices>,
    config: UnitConfig,
    inline: Option<InlineBudget>,
    listener: Arc<Listener>,
    /// The registers out of reset.
    fresh: Vec<u64>,
}

impl Machine {
    pub(crate) fn new(shape: Shape) -> Self {
        let guest = Guest::take(shape.width);
        let listener = Arc::new(Listener::default());
        let config = shape.config(guest.width());
        let inline = shape.inline();
        let unit = listener.make_unit(&guest, &config, inline);
        let devices = Devices::new(Arc::clone(&guest));
        devices.move_to(&unit);
        let mut machine = Self {
            guest,
            unit,
            devices,
            config,
            inline,
            listener,
            fresh: Vec::new(),
        };
        machine.fresh = machine.registers();
        machine
    }

    pub(crate) fn view(&self, source: u16) -> DmaView<Arc<Guest>> {
        self.unit.port(SourceId(source)).view()
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
        let account = self.step(|| {
            self.unit.write(at, bytes);
            self.unit.run_backlog(&Arc::default());
        });
        let words = bytes.len() as u64 / 4;
        // A fetch for each descriptor and a status for each wait; a fetch that fails stops the
        // queue.
        let most = account.executed + account.waits + words;
        let devices =
            account.asked() * LOOKUPS_PER_REQUEST + account.deeds.translations * LOOKUPS_PER_PAGE;
        assert!(
            account.lookups <= most + devices,
            "{account:?} by {words} words"
        );
        // 128 pages of the narrow descriptors.
        assert!(account.executed <= words * 0x8000, "{account:?}");
        let (asked, translations) = (account.asked(), account.deeds.translations);
        // A page request has an event of its own, besides that of a fault.
        let most = account.waits + 2 * words + 2 * asked + translations;
        assert!(account.events <= most, "{account:?}");
        // Remapping can change in three ways at once.
        assert!(
            account.ranges <= account.executed + 3 * words,
            "{account:?}"
        );
        assert!(account.queue_errors <= words, "{account:?}");
        assert!(account.faults <= asked + translations, "{account:?}");
        assert_eq!(account.interrupts, 0);
        assert!(account.timeouts <= words, "{account:?}");
        if account.timeouts != 0 {
            assert_ne!(self.read32(0x34) & 0x40, 0, "ITE");
        } else {
            let (all, heard) = (account.device_invalidations, account.deeds.invalidations);
            assert_eq!(all, heard, "without a time-out");
        }
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
        self.devices.begin_step();
        let before = self.account();
        run();
        let account = self.account().since(before);
        self.devices.end_step(account.deeds.accepted);
        let deeds = account.deeds;
        assert_eq!(account.page_requests, deeds.accepted, "{account:?}");
        assert_eq!(account.page_requests_refused, deeds.refused, "{account:?}");
        assert_eq!(account.translations, deeds.translations, "{account:?}");
        assert!(
            deeds.invalidations <= account.device_invalidations,
            "{account:?}"
        );
        assert!(deeds.responses <= account.responses, "{account:?}");
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
            deeds: self.devices.deeds(),
            ..Account::of(&self.unit.stats())
        }
    }

    /// Has a unit continue the work of this one: a new one, or this one after a reset.
    pub(crate) fn restore(&mut self, anew: bool, source: SourceId, address: u64) {
        let state = self.unit.save().expect("nothing is pinned");
        let memory = self.guest.contents();
        let registers = self.registers();
        let looks = |unit: &Behind| {
            [None, Pasid::new(1)].map(|pasid| unit.explain(source, pasid, address).to_string())
        };
        let before = looks(&self.unit);
        let (lookups, events) = (
            self.guest.lookups(),
            self.listener.events.load(Ordering::Relaxed),
        );
        if anew {
            let listener = &self.listener;
            self.unit = listener.make_unit(&self.guest, &self.config, self.inline);
            self.devices.move_to(&self.unit);
        } else {
            self.unit.reset();
        }
        self.unit.restore(&state).expect("the state of such a unit");
        assert_eq!(self.guest.lookups(), lookups, "a restore looks nothing up");
        assert_eq!(self.listener.events.load(Ordering::Relaxed), events);
        assert_eq!(self.unit.save().expect("nothing is pinned"), state);
        assert_eq!(self.registers(), registers);
        assert_eq!(looks(&self.unit), before);
        assert!(self.guest.contents() == memory, "a restore writes");
    }

    /// Looks at everything, which changes nothing.
    pub(crate) fn inspect(&self, source: SourceId, pasid: Option<Pasid>, address: u64) {
        let (state, stats) = (
            self.unit.save().expect("nothing is pinned"),
            self.unit.stats(),
        );
        let memory = self.guest.contents();
        assert!(!self.unit.describe().to_string().is_empty());
        let account = self.step(|| {
            let text = self.unit.explain(source, pasid, address).to_string();
            assert!(!text.is_empty());
            self.unit.binding_of(source, pasid);
        });
        assert!(account.lookups <= 2 * LOOKUPS_PER_PAGE, "{account:?}");
        assert_eq!((account.events, account.ranges), (0, 0));
        assert!(self.guest.contents() == memory, "who looks writes");
        assert_eq!(
            (
                self.unit.save().expect("nothing is pinned"),
                self.unit.stats()
            ),
            (state, stats)
        );
    }
}
