//! The migration of a device by its driver in the host (VFIO migration, version 2, `linux/vfio.h`).
//!
//! ```text
//! RUNNING ── RUNNING_P2P ── STOP ── STOP_COPY    what the device is like is read
//!                             └──── RESUMING     it is given that
//! ```
//!
//! The kernel takes all steps between two of these by itself, so states that are not named here are left
//! to it. A device without `VFIO_MIGRATION_P2P` goes from RUNNING to STOP at once. Those that can tell
//! some of it while they run (`VFIO_MIGRATION_PRE_COPY`) tell all when they stand still.
//!
//! A step that fails leaves the device as it was, or in ERROR, which a reset alone ends.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::host::{HostDevice, MigrationFeatures, MigrationState};

/// Most bytes of what a device is like. They are part of the state of a machine, which has an end.
pub(super) const DATA_MOST: usize = 8 << 20;
/// Bytes that are read, and written, at a time.
const PIECE: usize = 64 << 10;

/// A device was not brought into a state, or does not say what it is like.
#[derive(Debug, Error)]
pub(super) enum MigrationError {
    /// The kernel refuses a step, or the device has failed in it; it is as it was.
    #[error("it does not go into the state {0}: {1}")]
    Step(MigrationState, io::Error),
    /// The device is in ERROR, and was reset: what it was like is lost.
    #[error(
        "it has failed on its way to the state {0} ({1}) and was reset, which the guest has to find out: see the host's log"
    )]
    Lost(MigrationState, io::Error),
    /// The device is in ERROR, and stays there.
    #[error(
        "it has failed on its way to the state {0} ({1}) and cannot be reset ({2}): it does nothing any more; see the host's log"
    )]
    Dead(MigrationState, io::Error, io::Error),
    /// What it is like cannot be read.
    #[error("it does not say what it is like: {0}")]
    Read(io::Error),
    /// It is too much.
    #[error(
        "it is more than {DATA_MOST} bytes what it is like, which are the most; remove it before (`unplug=ID`)"
    )]
    TooLarge,
    /// The device does not take what it is to be like.
    #[error("it does not become like the one that was saved: {0}")]
    Write(io::Error),
}

/// A device that can be migrated. Its locks are the caller's: one thing is done with it at a time.
pub(super) struct Migration {
    host: Arc<dyn HostDevice>,
    features: MigrationFeatures,
}

impl Migration {
    /// Of a device that runs; `None` if it cannot be migrated.
    pub(super) fn of(host: &Arc<dyn HostDevice>) -> io::Result<Option<Self>> {
        let features = host.migration()?;
        // All that follows needs it, and the kernel promises it with any of the others.
        let features = features.filter(|features| features.stop_copy);
        Ok(features.map(|features| Self {
            host: Arc::clone(host),
            features,
        }))
    }

    /// Has a device that runs access no memory of other devices any more. All devices of a machine are
    /// brought here before one of them is stopped.
    pub(super) fn quiet(&self) -> Result<(), MigrationError> {
        match self.features.p2p {
            true => self.go(MigrationState::RunningP2p),
            false => Ok(()),
        }
    }

    /// Has it do nothing by itself: no DMA, no interrupt.
    pub(super) fn stop(&self) -> Result<(), MigrationError> {
        self.go(MigrationState::Stop)
    }

    /// Has it run, whatever state it is in. If it does not, it is reset, and runs as one that was.
    pub(super) fn run(&self) -> Result<(), MigrationError> {
        let Err(error) = self.host.set_migration_state(MigrationState::Running) else {
            return Ok(());
        };
        Err(self.reset_after(MigrationState::Running, error))
    }

    /// What a device that is stopped is like. It is stopped again then.
    pub(super) fn save(&self) -> Result<Vec<u8>, MigrationError> {
        self.go(MigrationState::StopCopy)?;
        let data = self.read();
        let stopped = self.go(MigrationState::Stop);
        let data = data?;
        stopped.map(|()| data)
    }

    fn read(&self) -> Result<Vec<u8>, MigrationError> {
        let mut data = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            let read = match self.host.read_migration(&mut piece) {
                Ok(0) => return Ok(data),
                Ok(read) => piece.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(MigrationError::Read(error)),
            };
            if read.len() > DATA_MOST - data.len() {
                return Err(MigrationError::TooLarge);
            }
            data.extend_from_slice(read);
        }
    }

    /// Has a device that runs and has just been reset become like the one that has said `data`, which its
    /// driver in the host checks. It is stopped then.
    pub(super) fn load(&self, data: &[u8]) -> Result<(), MigrationError> {
        self.go(MigrationState::Resuming)?;
        for piece in data.chunks(PIECE) {
            let written = self.host.write_migration(piece);
            written.map_err(MigrationError::Write)?;
        }
        match self.host.set_migration_state(MigrationState::Stop) {
            Ok(()) => Ok(()),
            Err(error) => Err(MigrationError::Write(error)),
        }
    }

    fn go(&self, state: MigrationState) -> Result<(), MigrationError> {
        let Err(error) = self.host.set_migration_state(state) else {
            return Ok(());
        };
        // Whoever does not tell is taken for one that has failed as well.
        match self.host.migration_state() {
            Ok(MigrationState::Error) | Err(_) => Err(self.reset_after(state, error)),
            Ok(_) => Err(MigrationError::Step(state, error)),
        }
    }

    /// A reset, which has it run.
    fn reset_after(&self, state: MigrationState, error: io::Error) -> MigrationError {
        match self.host.reset() {
            Ok(()) => MigrationError::Lost(state, error),
            Err(reset) => MigrationError::Dead(state, error, reset),
        }
    }
}

#[cfg(test)]
mod migration_test;
