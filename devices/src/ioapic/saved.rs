//! The state of an I/O APIC: its registers, without the levels of lines, which devices drive.

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};

use super::entry::Entry;
use super::{ID_MASK, IoApic, PINS, Pin};

const KIND: &str = "ioapic";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IoApicState {
    select: u8,
    id: u32,
    /// By pin, as software reads them.
    entries: Vec<u64>,
    /// By pin: what [`IoApic::set_level`] gave.
    driven: u32,
}

impl IoApic {
    /// What it is like at the moment. Lines are not in it: who has one says so again.
    ///
    /// # Errors
    /// None that is known.
    pub fn save(&self) -> Result<Section, SaveError> {
        let state = self.state.lock();
        let bits = (0..).zip(&state.pins).filter(|(_, pin)| pin.driven);
        let saved = IoApicState {
            select: state.select,
            id: state.id,
            entries: state.pins.iter().map(|pin| pin.entry.bits()).collect(),
            driven: bits.map(|(index, _)| 1 << index).sum(),
        };
        drop(state);
        Section::new(KIND, VERSION, &saved)
    }

    /// Makes one that was just created like the one that was [saved](Self::save). It sends nothing
    /// for that; the listener hears of all routes, as at a [reset](Self::reset). Lines are driven
    /// before: one that rises later is an edge for a pin that waits for such.
    ///
    /// # Errors
    /// `section` is not of an I/O APIC, and nothing has changed.
    pub fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let saved: IoApicState = section.read(KIND, VERSION)?;
        let entries = saved.entries()?;
        if saved.id & !ID_MASK != 0 {
            let why = format_args!("{:#010x} has reserved bits", saved.id);
            return Err(RestoreError::damaged("the I/O APIC's id", why));
        }
        if saved.driven >> PINS != 0 {
            let why = format_args!("{:#010x} has more pins than {PINS}", saved.driven);
            return Err(RestoreError::damaged("what is driven", why));
        }
        let order = self.order.lock();
        let mut state = self.state.lock();
        state.select = saved.select;
        state.id = saved.id;
        for (index, (pin, entry)) in (0..).zip(state.pins.iter_mut().zip(&entries)) {
            *pin = Pin {
                entry: *entry,
                driven: saved.driven >> index & 1 != 0,
                eoi_vector: None,
                lines: pin.lines,
            };
        }
        drop(state);
        if let Some(listener) = self.listener.get() {
            for (pin, entry) in (0..).zip(entries) {
                listener.route_changed(pin, entry.route());
            }
        }
        drop(order);
        Ok(())
    }

    /// The vectors, as processors know them, of level-triggered pins that wait for the end of their
    /// interrupt. If a processor has ended one of them without having told anybody yet, it has to be
    /// [told](Self::eoi).
    #[must_use]
    pub fn in_service(&self) -> Vec<u8> {
        let state = self.state.lock();
        let waiting = state.pins.iter().filter(|pin| pin.entry.remote_irr());
        let mut vectors: Vec<_> = waiting.filter_map(Pin::processors_vector).collect();
        vectors.sort_unstable();
        vectors.dedup();
        vectors
    }
}

impl IoApicState {
    fn entries(&self) -> Result<Vec<Entry>, RestoreError> {
        let count = self.entries.len();
        if count != usize::from(PINS) {
            let why = format_args!("{count} instead of {PINS}");
            return Err(RestoreError::damaged("the I/O APIC's entries", why));
        }
        let entry = |(pin, bits): (usize, &u64)| {
            Entry::saved(*bits).ok_or_else(|| {
                let why = format_args!("{bits:#018x} has bits that it never has");
                RestoreError::damaged(format_args!("the entry of pin {pin}"), why)
            })
        };
        self.entries.iter().enumerate().map(entry).collect()
    }
}

#[cfg(test)]
mod saved_test;
