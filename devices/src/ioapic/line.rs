//! Lines: the sources that share a pin.

use std::sync::Arc;

use parking_lot::Mutex;
use pci::IntxSink;

use super::IoApic;

/// One of several sources on a pin. Dropping it takes its level away.
pub struct IntxLine {
    ioapic: Arc<IoApic>,
    pin: u8,
    /// Taken before the I/O APIC's lock, so that the pin counts each line once.
    asserted: Mutex<bool>,
}

impl IntxLine {
    pub(super) fn new(ioapic: Arc<IoApic>, pin: u8) -> Arc<Self> {
        Arc::new(Self {
            ioapic,
            pin,
            asserted: Mutex::new(false),
        })
    }
}

impl IntxSink for IntxLine {
    fn set_level(&self, asserted: bool) {
        let mut current = self.asserted.lock();
        if *current == asserted {
            return;
        }
        *current = asserted;
        self.ioapic.change_level(self.pin, |pin| {
            pin.lines = if asserted {
                pin.lines.saturating_add(1)
            } else {
                pin.lines.saturating_sub(1)
            };
        });
    }
}

impl Drop for IntxLine {
    fn drop(&mut self) {
        self.set_level(false);
    }
}
