//! Snapshots: a machine in a directory, and the machine from it again.
//!
//! The machine is described by the options that make such a one, its parts say what they are like
//! ([`state`]), and its memory is a sparse file. A client of the control socket asks for a snapshot
//! ([`save()`]); `--restore` [opens](open) one.

mod child;
mod directory;
mod progress;
mod save;

use std::fs::File;
use std::sync::Arc;

use anyhow::Context as _;
use state::Sections;

use crate::cli::Restore;
use crate::config::Config;
pub(crate) use progress::Snapshots;
pub(crate) use save::{Still, Subject, save};

/// What a machine that is made from a snapshot is given.
pub(crate) struct Snapshot {
    /// What its parts are like.
    pub(crate) sections: Sections,
    /// Its memory, which is never written to.
    pub(crate) memory: Arc<File>,
    /// Whether the guest waits for a client of the control socket.
    pub(crate) paused: bool,
}

/// Opens a snapshot: the machine that it is of, with what is changed, and what that is given.
///
/// # Errors
/// What is wrong, with the path and the remedy.
pub(crate) fn open(restore: &Restore) -> anyhow::Result<(Config, Snapshot)> {
    let place = || format!("--restore {}", restore.path.display());
    let (state, memory) = directory::open(&restore.path).with_context(place)?;
    let config = restore.config(&state.options)?;
    anyhow::ensure!(
        config.all_memory() == state.memory.bytes,
        "{}: it is damaged: the machine has {} bytes of memory, and the snapshot {}",
        place(),
        config.all_memory(),
        state.memory.bytes
    );
    let snapshot = Snapshot {
        sections: state.sections,
        memory: Arc::new(memory),
        paused: restore.paused,
    };
    Ok((config, snapshot))
}
