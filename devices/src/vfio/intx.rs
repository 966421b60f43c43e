//! The interrupt pin of an assigned device. The host masks it at each interrupt, so that it comes
//! again only after the guest's processor has ended this one and the host was told.

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pci::IntxSink;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{Armed, HostDevice, IrqKind};
use crate::ioapic::EndOfInterrupt;

#[derive(Default)]
struct State {
    /// The host signals `event`.
    armed: bool,
    /// The guest's Interrupt Disable is set.
    quiet: bool,
    /// The line is high, and the host has masked the pin.
    asserted: bool,
}

/// The pin, between the host's event and the guest's line.
pub(super) struct Intx {
    host: Arc<dyn HostDevice>,
    event: EventFd,
    line: OnceLock<Arc<dyn IntxSink>>,
    /// Held while the line is driven, so that levels arrive in order, and during the host's calls.
    /// The I/O APIC calls [`interrupt_ended`](EndOfInterrupt::interrupt_ended) with none of its
    /// locks.
    state: Mutex<State>,
}

impl Intx {
    pub(super) fn new(host: Arc<dyn HostDevice>) -> io::Result<Self> {
        Ok(Self {
            host,
            event: EventFd::new(EFD_NONBLOCK)?,
            line: OnceLock::new(),
            state: Mutex::default(),
        })
    }

    /// Names the guest's line; once.
    pub(super) fn connect(&self, line: Arc<dyn IntxSink>) -> bool {
        self.line.set(line).is_ok()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.line.get().is_some()
    }

    /// What the host signals.
    pub(super) const fn event(&self) -> &EventFd {
        &self.event
    }

    /// Turns the host's interrupt on.
    pub(super) fn enable(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.armed {
            return Ok(());
        }
        match self.host.arm(IrqKind::Intx, 0, &[Some(&self.event)])? {
            Armed::All => state.armed = true,
            Armed::Only(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(())
    }

    /// Turns it off, and lowers the line.
    pub(super) fn disable(&self) {
        let mut state = self.state.lock();
        if !state.armed {
            return;
        }
        if let Err(error) = self.host.disarm(IrqKind::Intx) {
            log::debug!("{}: INTx is not turned off: {error}", self.host.name());
        }
        state.armed = false;
        self.drain();
        self.lower(&mut state);
    }

    /// Follows the guest's Interrupt Disable, which the host's device does, too: once it is
    /// cleared, the host asks for an interrupt that is still wanted.
    pub(super) fn set_quiet(&self, quiet: bool) {
        let mut state = self.state.lock();
        state.quiet = quiet;
        if quiet {
            self.lower(&mut state);
        }
    }

    /// The host has signalled [`event`](Self::event).
    pub(super) fn raised(&self) {
        let mut state = self.state.lock();
        self.drain();
        if state.armed && !state.quiet && !state.asserted {
            state.asserted = true;
            self.drive(true);
        }
    }

    /// Whether the line is high.
    pub(super) fn is_asserted(&self) -> bool {
        self.state.lock().asserted
    }

    /// Has the line be high, of an interrupt that is to be ended. The host may have more of them, which
    /// are taken for the same one.
    pub(super) fn restore_asserted(&self) {
        let mut state = self.state.lock();
        if state.armed && !state.quiet && !state.asserted {
            state.asserted = true;
            self.drive(true);
        }
    }

    fn lower(&self, state: &mut State) {
        if state.asserted {
            state.asserted = false;
            self.drive(false);
        }
    }

    fn drive(&self, level: bool) {
        if let Some(line) = self.line.get() {
            line.set_level(level);
        }
    }

    fn drain(&self) {
        // Nothing to read is no error here.
        let _ = self.event.read();
    }
}

impl EndOfInterrupt for Intx {
    fn interrupt_ended(&self) {
        let mut state = self.state.lock();
        if !state.asserted {
            return;
        }
        self.lower(&mut state);
        if let Err(error) = self.host.unmask_intx() {
            log::debug!("{}: INTx is not unmasked: {error}", self.host.name());
        }
    }
}

#[cfg(test)]
mod intx_test;
