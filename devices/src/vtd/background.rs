//! The thread that carries out what the guest's register writes leave: long invalidation queues, and
//! what the host's IOMMU takes long for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

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
    /// Whether there is something to do. It stays until the thread has seen it.
    pending: Mutex<bool>,
    raised: Condvar,
    stop: Arc<AtomicBool>,
}

impl Signal {
    fn raise(&self) {
        *self.pending.lock() = true;
        self.raised.notify_one();
    }

    fn wait(&self) {
        let mut pending = self.pending.lock();
        while !std::mem::take(&mut *pending) {
            self.raised.wait(&mut pending);
        }
    }
}

impl Background {
    /// Starts the thread, and has `unit` leave work to it.
    pub(super) fn start(unit: &Arc<Unit<Memory>>) -> io::Result<Self> {
        let signal = Arc::new(Signal::default());
        let (serving, served) = (Arc::clone(&signal), Arc::clone(unit));
        let body = move || {
            while !serving.stop.load(Ordering::SeqCst) {
                serving.wait();
                served.run_backlog(&serving.stop);
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
}

impl Drop for Background {
    fn drop(&mut self) {
        self.signal.stop.store(true, Ordering::SeqCst);
        self.signal.raise();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the remapping unit has panicked");
        }
    }
}
