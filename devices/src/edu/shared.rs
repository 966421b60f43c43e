//! The state of an edu device that vCPU threads and its worker share, and the interrupts and resets
//! that follow from it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use pci::{Bdf, ConfigSpace, IntxSink, MsiMessage, MsiSink};

use super::atc::Carried;
use super::copier::{Link, PageCounts};
use super::extension::EduFeatures;
use super::pri::Capabilities;
use super::registers::{self, BUFFER_SIZE, Registers};
use super::window::{self, Asked, Fixed, Load, Mode, Window};
use crate::limit::LogLimit;

/// What vCPU threads and the worker share.
pub(super) struct Shared {
    pub(super) bdf: Bdf,
    pub(super) fixed: Fixed,
    pub(super) link: Link,
    pub(super) capabilities: Capabilities,
    pub(super) msi: Arc<dyn MsiSink>,
    pub(super) intx: Arc<dyn IntxSink>,
    /// The INTx pin is driven while this is held, so that levels arrive in order; messages are sent
    /// after it is released.
    pub(super) inner: Mutex<Inner>,
    /// Signalled when there is work, when the worker becomes idle, and at the end.
    pub(super) changed: Condvar,
}

/// What the lock guards.
pub(super) struct Inner {
    pub(super) config: ConfigSpace,
    pub(super) registers: Registers,
    /// What the worker is to do next. Bounded by the registers: one factorial and one DMA.
    pub(super) factorial: Option<u32>,
    pub(super) dma: Option<registers::Copy>,
    /// The device's own memory, as it was before the command that the worker has at hand.
    pub(super) buffer: Box<[u8; BUFFER_SIZE]>,
    /// The copy that the worker has at hand.
    pub(super) running: Option<registers::Copy>,
    /// Where the copy that is next goes on, if it was begun before the device was restored.
    pub(super) carried: Option<Carried>,
    /// The worker is outside the lock with a command.
    pub(super) working: bool,
    /// Counts resets: the result of a command from before one is dropped.
    pub(super) epoch: u64,
    /// How many resets are waiting for the worker: until there is none, nothing new is started.
    /// (Otherwise a guest that keeps starting commands could hold the second of two resets for
    /// ever.)
    pub(super) resets: usize,
    /// The worker is to begin nothing.
    pub(super) parking: bool,
    /// BAR 2, if there is one.
    pub(super) window: Option<Window>,
    /// The device goes away.
    pub(super) ending: bool,
    pub(super) limit: LogLimit,
}

impl Shared {
    pub(super) fn send(&self, messages: impl IntoIterator<Item = MsiMessage>) {
        for message in messages {
            self.msi.signal(self.bdf, message.address, message.data);
        }
    }

    /// Drives the INTx pin as configuration space and interrupt status now ask for.
    pub(super) fn drive(&self, inner: &mut Inner) {
        let pending = inner.registers.interrupt_pending();
        inner.config.set_interrupt_status(pending);
        self.intx.set_level(inner.config.intx_level());
    }

    /// Sets interrupt status bits. The message that this causes is sent by the caller, after the
    /// lock is released.
    pub(super) fn raise(&self, inner: &mut Inner, bits: u32) -> Option<MsiMessage> {
        inner.registers.raise(bits);
        self.drive(inner);
        if !inner.registers.interrupt_pending() {
            return None;
        }
        // The number of vectors is a power of two.
        let vector = bits.trailing_zeros() & inner.config.msi_vectors().saturating_sub(1);
        inner.config.msi_notify(u8::try_from(vector).unwrap_or(0))
    }

    pub(super) fn count_pages(&self, inner: &mut Inner, counts: PageCounts) {
        let extension = &mut inner.registers.extension;
        extension.page_requests = extension.page_requests.wrapping_add(counts.requests);
        extension.page_responses = extension.page_responses.wrapping_add(counts.responses);
        if counts.failed {
            self.capabilities.set_response_failure(&mut inner.config);
        }
        self.update_capabilities(inner);
    }

    /// Makes the capabilities' status, and the device-TLB, follow what the guest enabled.
    pub(super) fn update_capabilities(&self, inner: &mut Inner) {
        let atc = &self.link.atc;
        atc.set_enabled(self.capabilities.enabled(&inner.config));
        self.capabilities
            .update(&mut inner.config, atc.is_waiting(), atc.take_unexpected());
    }

    /// Has the worker begin nothing, and not go on with an answer to a page request; or has it go on.
    pub(super) fn set_parking(&self, parking: bool) {
        self.inner.lock().parking = parking;
        self.link.atc.hold(parking);
        self.changed.notify_all();
    }

    /// Whether the worker has nothing at hand, or waits for an answer to a page request, which it
    /// leaves alone.
    pub(super) fn is_parked(&self) -> bool {
        !self.inner.lock().working || self.link.atc.is_held()
    }

    /// Stops the work and returns the registers to their reset values.
    pub(super) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.epoch = inner.epoch.wrapping_add(1);
        inner.resets += 1;
        inner.factorial = None;
        inner.dma = None;
        inner.carried = None;
        self.link.atc.abort();
        while inner.working {
            // A DMA command is at most 4 KiB, so this is short; and it no longer waits for pages.
            self.changed.wait(&mut inner);
        }
        inner.resets -= 1;
        inner.buffer.fill(0);
        self.link.atc.drop_carried();
        let features = inner.registers.extension.features;
        inner.registers = Registers::new(features);
        inner.config.reset();
        if let Some(window) = &mut inner.window {
            *window = Window::default();
        }
        self.link.atc.take_unexpected();
        self.update_capabilities(&mut inner);
        self.drive(&mut inner);
    }

    /// Reads the window, of which all is ones if there is none.
    pub(super) fn read_window(&self, offset: u64, size: usize) -> u64 {
        let inner = self.inner.lock();
        let Some(window) = &inner.window else {
            return u64::MAX;
        };
        window.read(offset, size, inner.working, || {
            window::encode(self.fixed, &inner.registers, &inner.buffer)
        })
    }

    pub(super) fn write_window(&self, offset: u64, data: &[u8]) {
        let mut inner = self.inner.lock();
        let Some(window) = &mut inner.window else {
            return;
        };
        match window.write(offset, data) {
            Asked::Nothing => {}
            Asked::Mode => drop(self.changed.notify_all()),
            Asked::Load => self.load(&mut inner),
        }
    }

    /// Has the device become what was written to the window.
    fn load(&self, inner: &mut Inner) {
        let is_still = !inner.working && inner.resets == 0;
        let registers = inner.registers;
        let Some(window) = &mut inner.window else {
            return;
        };
        if window.mode != Mode::StandsStill || !is_still {
            window.load = Load::NotNow;
            return;
        }
        let Some(image) = window::decode(&window.staged, self.fixed, &registers) else {
            window.load = Load::Refused;
            return;
        };
        window.load = Load::Done;
        inner.registers = image.registers;
        *inner.buffer = image.buffer;
        inner.factorial = image.factorial;
        inner.dma = image.copy;
        self.drive(inner);
    }
}

impl Inner {
    /// A device out of reset, with nothing to do.
    pub(super) fn new(config: ConfigSpace, features: EduFeatures, window: Option<Window>) -> Self {
        Self {
            config,
            registers: Registers::new(features),
            factorial: None,
            dma: None,
            buffer: Box::new([0; BUFFER_SIZE]),
            running: None,
            carried: None,
            working: false,
            epoch: 0,
            resets: 0,
            parking: false,
            window,
            ending: false,
            limit: LogLimit::default(),
        }
    }

    /// Whether the worker is to begin nothing, for the machine or for the window.
    pub(super) fn is_held(&self) -> bool {
        self.parking || self.mode() != Mode::Runs
    }

    /// What the window has asked for.
    pub(super) fn mode(&self) -> Mode {
        let window = self.window.as_ref();
        window.map_or(Mode::Runs, |window| window.mode)
    }

    pub(super) fn complain(&mut self, what: &str) {
        if let Some(held_back) = self.limit.pass() {
            log::warn!("edu: {what} ({held_back} messages held back)");
        }
    }
}
