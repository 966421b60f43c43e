//! Worker threads for requests that may take longer than a client's turn; they tell the server when
//! they are done.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::event::Event;

/// Most threads of each kind at a time. A client waits for its answer, but those that went away
/// leave theirs behind.
const MOST: usize = 8;
/// How long a client waits for most work.
const WORK: Duration = Duration::from_secs(120);

/// What a thread is for. What one kind waits for keeps no other from being begun: above all, not
/// what ends the waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To ask a device or the unit.
    Look,
    /// To add a device, or have the guest let go of one.
    Change,
    /// To take a device away without asking.
    Force,
    /// To pause the guest, or have it go on.
    Pause,
    /// To save the guest.
    Snapshot,
    /// To have another process go on with the guest.
    Migration,
    /// To have another nido take the place of this one.
    Upgrade,
}

impl Kind {
    const COUNT: usize = 7;
}

/// What work comes to, when it is done.
pub(super) struct Pending {
    pub(super) outcome: Receiver<Result<String, String>>,
    /// How long a client waits for it.
    pub(super) patience: Duration,
    /// What happens to the machine once the client was told of success.
    pub(super) event: Option<Event>,
    /// Tells the work that somebody waits.
    _client: Arc<()>,
}

impl Pending {
    /// The same for a client that waits so long.
    pub(super) fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same with an event that follows from success.
    pub(super) fn with_event(self, event: Event) -> Self {
        let event = Some(event);
        Self { event, ..self }
    }
}

/// The threads.
pub(crate) struct Workers {
    /// Signalled at the end of each.
    done: EventFd,
    /// By kind.
    running: [Arc<AtomicUsize>; Kind::COUNT],
}

impl Workers {
    /// No threads yet.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            done: EventFd::new(EFD_NONBLOCK)?,
            running: Default::default(),
        })
    }

    /// Readable when work has been done since it was read.
    pub(super) fn done(&self) -> &EventFd {
        &self.done
    }

    /// Begins work of that kind.
    pub(super) fn begin(
        &self,
        kind: Kind,
        work: impl FnOnce() -> Result<String, String> + Send + 'static,
    ) -> Result<Pending, String> {
        self.begin_for(kind, |_| work())
    }

    /// Begins work of that kind, which is told whether somebody waits for it: then there is what it is
    /// given.
    pub(super) fn begin_for(
        &self,
        kind: Kind,
        work: impl FnOnce(Weak<()>) -> Result<String, String> + Send + 'static,
    ) -> Result<Pending, String> {
        let fail =
            |error: io::Error| format!("the host has no thread for this ({error}); try again");
        let [
            looks,
            changes,
            forced,
            pauses,
            snapshots,
            migrations,
            upgrades,
        ] = &self.running;
        let running = match kind {
            Kind::Look => looks,
            Kind::Change => changes,
            Kind::Force => forced,
            Kind::Pause => pauses,
            Kind::Snapshot => snapshots,
            Kind::Migration => migrations,
            Kind::Upgrade => upgrades,
        };
        if running.load(Ordering::Relaxed) >= MOST {
            return Err(format!(
                "busy: {MOST} such requests are being carried out, which is the limit; wait for one"
            ));
        }
        let done = self.done.try_clone().map_err(fail)?;
        let (give, outcome) = channel();
        let client = Arc::new(());
        let here = Arc::downgrade(&client);
        let guard = Running::new(running);
        thread::Builder::new()
            .name("control-work".to_owned())
            .spawn(move || {
                let outcome = work(here);
                drop(guard);
                // Nobody waits for it if the client is gone.
                let _ = give.send(outcome);
                // It fails only if the counter is at its end, which tells as much.
                let _ = done.write(1);
            })
            .map_err(fail)?;
        Ok(Pending {
            outcome,
            patience: WORK,
            event: None,
            _client: client,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_can_tell_whether_its_client_is_there() {
        let workers = Workers::new().expect("a descriptor");
        for stays in [true, false] {
            let (release, released) = channel::<()>();
            let (tell, told) = channel();
            let work = move |client: Weak<()>| {
                let _ = released.recv();
                let _ = tell.send(client.strong_count() != 0);
                Ok(String::new())
            };
            let pending = workers.begin_for(Kind::Look, work).expect("a thread");
            let pending = stays.then_some(pending);
            release.send(()).expect("it waits");
            assert_eq!(told.recv(), Ok(stays));
            drop(pending);
        }
    }
}
