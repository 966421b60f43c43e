//! The migration of a made-up device, by the kernel's state machine (`vfio_mig_get_next_state`).

use std::io;

use super::host::{MigrationFeatures, MigrationState};

/// A step that fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fails {
    pub(super) step: (MigrationState, MigrationState),
    pub(super) errno: i32,
    /// The device is in ERROR then.
    pub(super) lost: bool,
}

pub(super) struct FakeMigration {
    /// `None`: the driver has none of it (`ENOTTY`).
    pub(super) features: Option<MigrationFeatures>,
    pub(super) state: MigrationState,
    /// All steps that were taken.
    pub(super) steps: Vec<MigrationState>,
    pub(super) fails: Option<Fails>,
    /// What the device is like, and how much of it was read.
    pub(super) data: Vec<u8>,
    pub(super) read: usize,
    /// At most so much is read at a time.
    pub(super) at_a_time: usize,
    /// Reading fails once so much was read.
    pub(super) breaks_at: Option<usize>,
    /// What was written since it is RESUMING.
    pub(super) written: Vec<u8>,
    /// What it takes begins with this.
    pub(super) takes: &'static [u8],
}

impl Default for FakeMigration {
    fn default() -> Self {
        Self {
            features: None,
            state: MigrationState::Running,
            steps: Vec::new(),
            fails: None,
            data: b"edu as it was".to_vec(),
            read: 0,
            at_a_time: usize::MAX,
            breaks_at: None,
            written: Vec::new(),
            takes: b"edu",
        }
    }
}

impl FakeMigration {
    /// Of a driver that can do all that is used.
    pub(super) fn whole() -> Self {
        Self {
            features: Some(MigrationFeatures {
                stop_copy: true,
                p2p: true,
            }),
            ..Self::default()
        }
    }

    pub(super) fn take_steps(&mut self) -> Vec<MigrationState> {
        std::mem::take(&mut self.steps)
    }

    fn features(&self) -> io::Result<MigrationFeatures> {
        self.features.ok_or_else(|| errno(libc::ENOTTY))
    }

    pub(super) fn state(&self) -> io::Result<MigrationState> {
        self.features().map(|_| self.state)
    }

    pub(super) fn reset(&mut self) {
        self.state = MigrationState::Running;
    }

    pub(super) fn set(&mut self, wanted: MigrationState) -> io::Result<()> {
        let p2p = self.features()?.p2p;
        while self.state != wanted {
            let next = next(self.state, wanted, p2p)?;
            if let Some(fails) = self.fails.filter(|fails| fails.step == (self.state, next)) {
                if fails.lost {
                    self.state = MigrationState::Error;
                }
                return Err(errno(fails.errno));
            }
            self.take(next)?;
            self.steps.push(next);
            self.state = next;
        }
        Ok(())
    }

    fn take(&mut self, next: MigrationState) -> io::Result<()> {
        match (self.state, next) {
            (MigrationState::Resuming, MigrationState::Stop) => {
                if !self.written.starts_with(self.takes) {
                    return Err(errno(libc::EINVAL));
                }
                self.data = std::mem::take(&mut self.written);
            }
            (_, MigrationState::Resuming) => self.written.clear(),
            (_, MigrationState::StopCopy) => self.read = 0,
            _ => {}
        }
        Ok(())
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.state != MigrationState::StopCopy {
            return Err(errno(libc::ENODEV));
        }
        if self.breaks_at.is_some_and(|at| self.read >= at) {
            return Err(errno(libc::EIO));
        }
        let left = &self.data[self.read..];
        let length = left.len().min(into.len()).min(self.at_a_time);
        into[..length].copy_from_slice(&left[..length]);
        self.read += length;
        Ok(length)
    }

    pub(super) fn write(&mut self, from: &[u8]) -> io::Result<()> {
        if self.state != MigrationState::Resuming {
            return Err(errno(libc::ENODEV));
        }
        self.written.extend_from_slice(from);
        Ok(())
    }
}

fn next(from: MigrationState, to: MigrationState, p2p: bool) -> io::Result<MigrationState> {
    use MigrationState::{
        Error, PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy,
    };
    // Without the feature there is no such state.
    if matches!(to, Error | PreCopy | PreCopyP2p) || to == RunningP2p && !p2p {
        return Err(errno(libc::EINVAL));
    }
    Ok(match (from, to) {
        (Running, _) if p2p => RunningP2p,
        (Running, _) => Stop,
        (RunningP2p, Running) => Running,
        (RunningP2p, _) => Stop,
        (Stop, Running | RunningP2p) if p2p => RunningP2p,
        (Stop, to) => to,
        (StopCopy | Resuming, _) => Stop,
        _ => return Err(errno(libc::EIO)),
    })
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
