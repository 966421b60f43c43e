//! What an upgrade needs besides the machine, and what comes of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::successor::Successor;
use crate::entrance::Entrance;
use crate::event_loop::Handle;
use crate::host_files::Role;
use crate::socket::{Place, Socket};

/// Of a process, and its machine.
#[derive(Default)]
pub(crate) struct Upgrades {
    /// What comes in from outside.
    pub(crate) entrance: Arc<Entrance>,
    event_loop: OnceLock<Handle>,
    /// The control socket.
    control: OnceLock<(Place, OwnedFd)>,
    /// Leads to the process that was started first, if that is another one.
    keeper: OnceLock<File>,
    /// Who has the guest now.
    successor: Mutex<Option<Successor>>,
}

impl Upgrades {
    /// The event loop that what comes in is read by.
    pub(crate) fn set_event_loop(&self, event_loop: &Handle) {
        // It is set once.
        let _ = self.event_loop.set(event_loop.clone());
    }

    /// The control socket that there is.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(crate) fn set_control(&self, socket: &Socket) -> std::io::Result<()> {
        let listener = socket.listener().try_clone()?;
        let _ = self.control.set((socket.place().clone(), listener.into()));
        Ok(())
    }

    /// The process that was started first is another one, which tells of signals by this.
    pub(super) fn set_keeper(&self, keeper: File) {
        let _ = self.keeper.set(keeper);
    }

    /// Where the process that was started first tells of signals, if it is another one.
    pub(crate) fn keeper(&self) -> Option<&File> {
        self.keeper.get()
    }

    pub(super) fn control(&self) -> Option<&(Place, OwnedFd)> {
        self.control.get()
    }

    /// Files that go along, besides those of the machine.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(super) fn files(&self) -> std::io::Result<Vec<(Role, File)>> {
        let mut files = Vec::new();
        if let Some((_, listener)) = self.control.get() {
            files.push((Role::Control, File::from(listener.try_clone()?)));
        }
        if let Some(keeper) = self.keeper.get() {
            files.push((Role::Keeper, keeper.try_clone()?));
        }
        Ok(files)
    }

    /// Takes nothing from outside any more.
    pub(super) fn close(&self) {
        self.entrance.close();
        if let Some(event_loop) = self.event_loop.get() {
            event_loop.settle();
        }
    }

    /// The guest is `successor`'s.
    pub(super) fn succeed(&self, successor: Successor) {
        if let Some((place, _)) = self.control.get() {
            place.set_ours(false);
        }
        *self.successor.lock() = Some(successor);
    }

    /// Whose the guest is, if it is no more this process's.
    pub(crate) fn take_successor(&self) -> Option<Successor> {
        self.successor.lock().take()
    }
}
