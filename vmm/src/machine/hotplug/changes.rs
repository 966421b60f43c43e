//! What comes and goes, as a pause has to know it: one does not begin while the other lasts.

use parking_lot::Mutex;

use super::{HotPlugError, PATIENCE};

/// See the module.
#[derive(Default)]
pub(super) struct Changes {
    /// A leaf lock.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Nothing may come or go.
    frozen: bool,
    /// The same while the guest is being migrated.
    held: bool,
    /// By the names of ports and devices, in the order in which they began.
    under_way: Vec<String>,
}

/// A change, until this is dropped.
pub(super) struct UnderWay<'a> {
    changes: &'a Changes,
    what: String,
}

impl Changes {
    /// Begins a change at `what`, a port or a device.
    pub(super) fn begin(&self, what: &str) -> Result<UnderWay<'_>, HotPlugError> {
        let mut state = self.state.lock();
        if state.frozen {
            return Err(HotPlugError::Paused);
        }
        if state.held {
            return Err(HotPlugError::Leaving);
        }
        state.under_way.push(what.to_owned());
        Ok(UnderWay {
            changes: self,
            what: what.to_owned(),
        })
    }

    /// None begins until [`thaw`](Self::thaw).
    ///
    /// # Errors
    /// One is under way.
    pub(super) fn freeze(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        if let Some(what) = state.under_way.first() {
            return Err(format!(
                "`{what}` is being plugged or removed, for which a guest has {} seconds; wait for that to end, or write `device-del {what},force=on`",
                PATIENCE.as_secs()
            ));
        }
        state.frozen = true;
        Ok(())
    }

    /// Whether none begins while the guest is being migrated. It is paused.
    pub(super) fn set_held(&self, held: bool) {
        self.state.lock().held = held;
    }

    /// They may begin again.
    pub(super) fn thaw(&self) {
        self.state.lock().frozen = false;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.changes.state.lock();
        let mut others = state.under_way.iter();
        if let Some(at) = others.position(|other| *other == self.what) {
            state.under_way.remove(at);
        }
    }
}
