//! The memory of an assigned device's BARs that the guest reaches without the VMM.

use std::any::Any;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use pci::BarWindow;
use vm_memory::MmapRegion;

use super::platform::GuestMappings;

/// A part of a BAR that is mapped into this process.
pub(super) struct Part {
    pub(super) bar: usize,
    /// Where it starts in the BAR.
    pub(super) offset: u64,
    pub(super) memory: Arc<MmapRegion>,
}

struct Window {
    window: BarWindow,
    /// What keeps its parts in the guest.
    _mapped: Vec<Box<dyn Any + Send + Sync>>,
}

struct State {
    /// The device answers: it is in D0 and not being reset. Touching the mapping of one that does
    /// not is a bus error.
    answers: bool,
    windows: Vec<Window>,
}

/// Puts the parts where the guest decodes their BARs.
pub(super) struct Direct {
    parts: Vec<Part>,
    mappings: Arc<dyn GuestMappings>,
    /// Taken under the root complex's decode lock, and under the function's own; held during the
    /// hypervisor's calls.
    state: Mutex<State>,
}

impl Direct {
    pub(super) fn new(parts: Vec<Part>, mappings: Arc<dyn GuestMappings>) -> Self {
        let state = State {
            answers: true,
            windows: Vec::new(),
        };
        Self {
            parts,
            mappings,
            state: Mutex::new(state),
        }
    }

    /// Follows the windows that the guest decodes. What cannot be mapped is told to `complain`, and
    /// is trapped.
    pub(super) fn follow(&self, windows: &[BarWindow], complain: impl Fn(&io::Error)) {
        let mut state = self.state.lock();
        state
            .windows
            .retain(|known| windows.contains(&known.window));
        if !state.answers {
            return;
        }
        for window in windows {
            if state.windows.iter().any(|known| known.window == *window) {
                continue;
            }
            let parts = self.parts.iter().filter(|part| part.bar == window.bar);
            let mapped = parts
                .filter_map(|part| {
                    let address = window.base.checked_add(part.offset)?;
                    let length = u64::try_from(part.memory.size()).ok()?;
                    self.mappings
                        .map(address, &part.memory, 0, length)
                        .inspect_err(&complain)
                        .ok()
                })
                .collect();
            state.windows.push(Window {
                window: *window,
                _mapped: mapped,
            });
        }
    }

    /// Takes everything out of the guest, until the device answers again and windows are told anew.
    pub(super) fn suspend(&self) {
        let mut state = self.state.lock();
        state.answers = false;
        state.windows.clear();
    }

    /// The device answers again.
    pub(super) fn resume(&self) {
        self.state.lock().answers = true;
    }
}
