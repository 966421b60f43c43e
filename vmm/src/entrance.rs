//! What comes in from outside: keys and clients. While a guest goes from one process to another that has
//! the same terminal and the same control socket, neither of them takes any: what comes waits there for
//! whoever has the guest then.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Entrance {
    is_closed: AtomicBool,
    /// A leaf lock.
    typed: Mutex<Typed>,
}

/// What was read from the terminal and is not the guest's yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Typed {
    /// What the guest had no room for.
    pub(crate) waiting: Vec<u8>,
    /// Whether the last key was the one that makes the next one a command.
    pub(crate) escaped: bool,
}

impl Entrance {
    /// Whether nothing is taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Takes nothing from here on, once what the event loop is at is done.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Takes what comes, and what has waited.
    pub(crate) fn open(&self) {
        self.is_closed.store(false, Ordering::Release);
    }

    /// What was typed. Whoever takes it to give some of it to the guest puts the rest back.
    pub(crate) fn take_typed(&self) -> Typed {
        std::mem::take(&mut *self.typed.lock())
    }

    /// See [`take_typed`](Self::take_typed).
    pub(crate) fn put_typed(&self, typed: Typed) {
        *self.typed.lock() = typed;
    }

    /// The same without taking it.
    pub(crate) fn typed(&self) -> Typed {
        self.typed.lock().clone()
    }
}
