//! A thread that carries out what register writes leave.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use intel_vtd::{InlineBudget, Unit};
use vm_memory::GuestMemoryBackend;

use crate::rng::Rng;

/// Each of `cases` without a background, with one as a machine has it, and with one that does everything.
pub fn with_backgrounds<T: Copy, const N: usize>(
    cases: [T; N],
) -> impl Iterator<Item = (T, Option<InlineBudget>)> {
    let backgrounds = [
        None,
        Some(InlineBudget::default()),
        Some(InlineBudget::NOTHING),
    ];
    cases
        .into_iter()
        .flat_map(move |case| backgrounds.map(|background| (case, background)))
}

/// The thread, until it is dropped.
pub struct Background {
    stop: Arc<AtomicBool>,
    wake: Arc<Mutex<Option<Sender<()>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Has a thread carry out what goes beyond `inline` in one register write.
    pub fn start<M>(unit: &Arc<Unit<M>>, inline: InlineBudget) -> Self
    where
        M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
    {
        let (sender, woken) = channel();
        let wake = Arc::new(Mutex::new(Some(sender)));
        let stop = Arc::new(AtomicBool::new(false));
        let (served, stopped) = (unit.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while woken.recv().is_ok() {
                served.run_backlog(&stopped);
            }
        });
        let waking = wake.clone();
        let send = move || {
            if let Some(sender) = &*waking.lock().expect("no panic") {
                // The thread ends only after the sender.
                let _ = sender.send(());
            }
        };
        unit.run_in_background(inline, Arc::new(send));
        Self {
            stop,
            wake,
            thread: Some(thread),
        }
    }

    /// None, one that does everything, one that does all but a settle, or one as in a machine.
    pub fn random<M>(unit: &Arc<Unit<M>>, rng: &mut Rng) -> Option<Self>
    where
        M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
    {
        let one = InlineBudget {
            settles: 1,
            ..InlineBudget::default()
        };
        let inline = match rng.below(16) {
            0 => InlineBudget::NOTHING,
            1 => one,
            2 => InlineBudget::default(),
            _ => return None,
        };
        Some(Self::start(unit, inline))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Ok(mut wake) = self.wake.lock() {
            *wake = None;
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the background");
        }
    }
}
