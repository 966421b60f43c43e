//! The commands that take snapshots.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::monitor::Monitor;
use super::parser::{Answer, Value};
use super::turns::Long;
use super::workers::Kind;
use crate::cli::{SnapshotAsked, parse_snapshot};
use crate::event::Event;
use crate::machine::Work;
use crate::snapshot::{self, Still, Subject};
use crate::suspension::{Suspension, Wish};

/// How long a client waits for a snapshot, which is as long as a slow disk takes for a large memory.
const PATIENCE: Duration = Duration::from_secs(3600);

/// `snapshot`: when it is written.
pub(super) fn take(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Snapshot(argument)] = values else {
        return Err("snapshot: the argument is missing".to_owned());
    };
    let wish = match parse_snapshot(argument).map_err(|error| error.to_string())? {
        SnapshotAsked::Help(text) => return Ok(text.into()),
        SnapshotAsked::Snapshot(wish) => wish,
    };
    let turn = monitor.begin(Long::Snapshot)?;
    let (suspension, events) = (Arc::clone(&monitor.suspension), monitor.events.clone());
    let (memory, private) = (monitor.all_memory, monitor.private_memory);
    let snapshots = Arc::clone(&monitor.snapshots);
    let work = move |client| {
        let _turn = turn;
        let guest = Guest {
            memory,
            private,
            suspension: &suspension,
            events: &events,
            client,
        };
        snapshot::save(&wish, &guest, &snapshots)
    };
    let pending = monitor.workers.begin_for(Kind::Snapshot, work)?;
    Ok(pending.within(PATIENCE).into())
}

/// The guest, by the main thread.
struct Guest<'a> {
    memory: u64,
    private: bool,
    suspension: &'a Suspension,
    events: &'a Sender<Event>,
    /// Who wants the snapshot.
    client: Weak<()>,
}

impl Guest<'_> {
    fn ask(&self, wish: Wish) -> Result<String, String> {
        let client = Weak::clone(&self.client);
        self.suspension.ask(wish, client, self.events)
    }
}

impl Subject for Guest<'_> {
    fn memory(&self) -> u64 {
        self.memory
    }

    fn has_private_memory(&self) -> bool {
        self.private
    }

    fn work(&self, work: Work) -> Result<String, String> {
        self.ask(Wish::Work(work))
    }

    fn pause(&self) -> Result<Box<dyn Still + '_>, String> {
        let ours = !self.suspension.is_paused();
        if ours {
            self.ask(Wish::Pause)?;
        }
        Ok(Box::new(Pause {
            guest: self,
            ours,
            resumed: self.suspension.resumed(),
        }))
    }
}

/// A pause, until this is dropped.
struct Pause<'a> {
    guest: &'a Guest<'a>,
    /// Whether the guest ran before.
    ours: bool,
    /// How often the guest had gone on when this began.
    resumed: u64,
}

impl Still for Pause<'_> {
    fn is_unbroken(&self) -> bool {
        let suspension = self.guest.suspension;
        suspension.is_paused() && suspension.resumed() == self.resumed
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if self.ours && self.is_unbroken() {
            // For nobody but the guest: who wanted the snapshot may be gone.
            let here = Arc::new(());
            let Guest {
                suspension, events, ..
            } = self.guest;
            if let Err(why) = suspension.ask(Wish::Resume, Arc::downgrade(&here), events) {
                log::warn!("the guest stays paused after its snapshot: {why}");
            }
        }
    }
}

/// `snapshot-cancel`: at once.
pub(super) fn cancel(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    Ok(monitor.snapshots.cancel()?.into())
}
