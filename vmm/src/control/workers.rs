//! Worker threads for requests that may take longer than a client's turn; they tell the server when
//! they are done.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most threads at a time. A client waits for its answer, but those that went away leave theirs
/// behind.
const MOST: usize = 16;

/// What work comes to, when it is done.
pub(super) type Pending = Receiver<Result<String, String>>;

/// The threads.
pub(crate) struct Workers {
    /// Signalled at the end of each.
    done: EventFd,
    running: Arc<AtomicUsize>,
}

impl Workers {
    /// No threads yet.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            done: EventFd::new(EFD_NONBLOCK)?,
            running: Arc::default(),
        })
    }

    /// Readable when work has been done since it was read.
    pub(super) fn done(&self) -> &EventFd {
        &self.done
    }

    /// Begins work.
    pub(super) fn begin(
        &self,
        work: impl FnOnce() -> Result<String, String> + Send + 'static,
    ) -> Result<Pending, String> {
        let fail =
            |error: io::Error| format!("the host has no thread for this ({error}); try again");
        if self.running.load(Ordering::Relaxed) >= MOST {
            return Err(format!(
                "{MOST} requests are being carried out, which is the limit; wait for one"
            ));
        }
        let done = self.done.try_clone().map_err(fail)?;
        let (give, pending) = channel();
        let guard = Running::new(&self.running);
        thread::Builder::new()
            .name("control-work".to_owned())
            .spawn(move || {
                let outcome = work();
                drop(guard);
                // Nobody waits for it if the client is gone.
                let _ = give.send(outcome);
                // It fails only if the counter is at its end, which tells as much.
                let _ = done.write(1);
            })
            .map_err(fail)?;
        Ok(pending)
    }
}

/// Counts a thread.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(running: &Arc<AtomicUsize>) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(running))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
