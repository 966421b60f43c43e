//! What a machine begins with: the guest's start, what a snapshot has, or what another process sends, from
//! elsewhere or as the one whose place this takes.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::Context as _;

use crate::event::Event;
use crate::host_files::Given;
use crate::machine::Machine;
use crate::migration::Arrival;
use crate::snapshot::Snapshot;
use crate::terminal;
use crate::upgrade::{Heir, Upgrades};

/// What a machine begins with.
pub(crate) enum Beginning {
    /// The guest's start.
    Boot,
    /// What a snapshot has.
    Snapshot(Snapshot),
    /// What another process sends.
    Arrival(Arrival),
    /// What the process has whose place this one takes.
    Heir(Box<Heir>),
}

impl Beginning {
    /// The file that guest memory comes from, if it does.
    pub(super) fn memory(&self) -> Option<&Arc<File>> {
        match self {
            Self::Snapshot(snapshot) => Some(&snapshot.memory),
            Self::Boot | Self::Arrival(_) | Self::Heir(_) => None,
        }
    }

    /// What the machine is to have in place of what it would open.
    pub(super) fn given(&mut self) -> Given {
        match self {
            Self::Boot | Self::Snapshot(_) | Self::Arrival(_) => Given::default(),
            Self::Heir(heir) => heir.take_given(),
        }
    }

    /// When the machine was started.
    pub(super) fn started(&self) -> Instant {
        match self {
            Self::Boot | Self::Snapshot(_) | Self::Arrival(_) => Instant::now(),
            Self::Heir(heir) => heir.started(),
        }
    }

    /// Takes nothing from outside until the guest is this process's, if another one does.
    pub(super) fn prepare(&self, upgrades: &Upgrades) {
        if let Self::Heir(heir) = self {
            heir.prepare(upgrades);
        }
    }

    /// Puts the terminal into raw mode, if it is not.
    pub(super) fn make_raw(&self) -> anyhow::Result<()> {
        match self {
            Self::Boot | Self::Snapshot(_) | Self::Arrival(_) => {
                terminal::make_raw().context("the terminal cannot be put into raw mode")
            }
            Self::Heir(_) => Ok(()),
        }
    }

    /// Whether the guest is another process's until it is [taken over](Self::take_over).
    pub(super) fn is_anothers(&self) -> bool {
        matches!(self, Self::Arrival(_) | Self::Heir(_))
    }

    /// Has `machine` be as this says, to run when its vCPUs do.
    pub(super) fn begin(
        &mut self,
        machine: &mut Machine,
        upgrades: &Upgrades,
    ) -> anyhow::Result<()> {
        match self {
            Self::Boot => machine.boot(),
            Self::Snapshot(snapshot) => {
                let sections = std::mem::take(&mut snapshot.sections);
                machine.restore(sections).context("--restore")
            }
            Self::Arrival(arrival) => {
                can_go_on(machine).context("--incoming")?;
                let sections = arrival
                    .receive(machine.memory(), machine.claims())
                    .context("--incoming")?;
                machine.restore(sections).context("--incoming")
            }
            Self::Heir(heir) => {
                let sections = heir.receive(machine.memory(), upgrades)?;
                machine.restore(sections)
            }
        }
    }

    /// Has the guest be this process's, if it was not. Whether it is to stay paused, if it is.
    pub(super) fn take_over(
        &mut self,
        machine: &Machine,
        events: &Receiver<Event>,
        upgrades: &Upgrades,
    ) -> anyhow::Result<Option<bool>> {
        Ok(match self {
            Self::Boot => None,
            Self::Snapshot(snapshot) => Some(snapshot.paused),
            Self::Arrival(arrival) => {
                let taken = arrival.take_over(machine.claims(), || end(events));
                taken.context("--incoming")?;
                Some(arrival.paused)
            }
            Self::Heir(heir) => {
                let taken = heir.take_over(machine.claims(), upgrades);
                Some(self.told(taken)?)
            }
        })
    }

    /// The same outcome, of which another process is told if it concerns that.
    pub(super) fn told<T>(&mut self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        match self {
            Self::Boot | Self::Snapshot(_) => outcome,
            Self::Arrival(arrival) => arrival.told(outcome),
            Self::Heir(heir) => heir.told(outcome),
        }
    }
}

/// Whether all devices of `machine` can become like others: those of the host depend on their drivers there.
fn can_go_on(machine: &Machine) -> anyhow::Result<()> {
    machine.root().parkable().map_err(|(bdf, why)| {
        let name = machine.hotplug().describe(bdf);
        anyhow::anyhow!("{bdf}{name}: {why}; give the machine another one, or have the source unplug it (`unplug=ID`)")
    })
}

/// What has happened that ends the process, or its guest. Requests of clients are not lost: they are
/// looked at whatever event comes.
fn end(events: &Receiver<Event>) -> Option<Event> {
    let mut events = events.try_iter();
    events.find(|event| !matches!(event, Event::Attend | Event::Kick))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn whoever_quits_before_the_guest_is_there_is_heard_and_whoever_wants_a_pause_waits() {
        let (sender, events) = channel();
        sender.send(Event::Attend).expect("receiver");
        assert_eq!(end(&events), None);
        sender.send(Event::Attend).expect("receiver");
        sender.send(Event::Quit).expect("receiver");
        assert_eq!(end(&events), Some(Event::Quit));
    }
}
