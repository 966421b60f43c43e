//! The thread that carries out what the guest's register writes leave: long invalidation queues, and
//! what the host's IOMMU takes long for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use intel_vtd::{InlineBudget, Unit};
use parking_lot::{Condvar, Mutex};

use crate::Memory;

/// The thread, for as long as this lives. It ends between two waits of the queue, so what the guest
/// has put there may be left.
pub(super) struct Background {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Signal {
    /// A leaf lock.
    state: Mutex<State>,
    changed: Condvar,
    /// The thread is to leave what it is at.
    leave: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    /// Whether there is something to do. It stays until the thread has seen it.
    pending: bool,
    /// The thread is to begin nothing.
    held: bool,
    /// It is at work.
    working: bool,
    ending: bool,
}

impl Signal {
    fn raise(&self) {
        self.change(|state| state.pending = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }

    /// Waits for work; `false` at the end.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        state.working = false;
        self.changed.notify_all();
        while !state.ending && (state.held || !state.pending) {
            self.changed.wait(&mut state);
        }
        if state.ending {
            return false;
        }
        state.pending = false;
        state.working = true;
        true
    }
}

impl Background {
    /// Starts the thread, and has `unit` leave work to it.
    pub(super) fn start(unit: &Arc<Unit<Memory>>) -> io::Result<Self> {
        let signal = Arc::new(Signal::default());
        let (serving, served) = (Arc::clone(&signal), Arc::clone(unit));
        let body = move || {
            while serving.wait() {
                served.run_backlog(&serving.leave);
            }
        };
        let thread = std::thread::Builder::new()
            .name("vtd".to_owned())
            .spawn(body)?;
        let waking = Arc::clone(&signal);
        unit.run_in_background(InlineBudget::default(), Arc::new(move || waking.raise()));
        Ok(Self {
            signal,
            thread: Some(thread),
        })
    }

    /// Has the thread leave what it is at between two steps, and begin nothing until
    /// [`release`](Self::release). Whether it has left by `until`.
    pub(super) fn hold(&self, until: Instant) -> bool {
        let signal = &self.signal;
        let mut state = signal.state.lock();
        state.held = true;
        signal.leave.store(true, Ordering::SeqCst);
        while state.working {
            if signal.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        !state.working
    }

    /// Has the thread go on.
    pub(super) fn release(&self) {
        self.signal.change(|state| {
            state.held = false;
            // What it has left.
            state.pending = true;
            self.signal.leave.store(false, Ordering::SeqCst);
        });
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.signal.leave.store(true, Ordering::SeqCst);
        self.signal.change(|state| state.ending = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the remapping unit has panicked");
        }
    }
}
