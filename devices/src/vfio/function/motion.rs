//! Whether an assigned device runs, and having it stop and go on with the guest.

use parking_lot::Mutex;

use super::VfioPci;
use crate::vfio::migration::MigrationError;

/// How far a device is on its way to stand still.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Runs,
    /// It reaches no other device.
    Quiet,
    Stopped,
    /// It does not: why.
    Failed(String),
}

/// See the module.
#[derive(Default)]
pub(super) struct Motion {
    /// Held while the host has the device go from one state to another. No other lock is taken under it.
    stage: Mutex<Stage>,
}

impl Motion {
    pub(super) fn is_stopped(&self) -> bool {
        *self.stage.lock() == Stage::Stopped
    }

    /// The device was stopped by something else.
    pub(super) fn is_moved(&self) {
        *self.stage.lock() = Stage::Stopped;
    }

    /// What state it is in is not known.
    pub(super) fn has_failed(&self, why: &impl ToString) {
        *self.stage.lock() = Stage::Failed(why.to_string());
    }
}

impl VfioPci {
    /// Why it cannot be stopped.
    pub(super) fn can_stop(&self) -> Result<(), String> {
        if self.migration.is_none() {
            return Err(super::CANNOT_MOVE.to_owned());
        }
        match self.control.lock().config.power_state() {
            0 => Ok(()),
            state => Err(format!(
                "the guest has put it to sleep (D{state}), where the host cannot stop it; try again when the guest uses it"
            )),
        }
    }

    /// Begins to stop it. All devices come so far before one goes further.
    pub(super) fn quiet_down(&self) {
        let mut stage = self.motion.stage.lock();
        if let (Some(migration), Stage::Runs) = (&self.migration, &*stage) {
            *stage = match migration.quiet() {
                Ok(()) => Stage::Quiet,
                Err(error) => self.failed(&error),
            };
        }
    }

    /// Stops it.
    pub(super) fn stand_still(&self) -> Result<(), String> {
        let mut stage = self.motion.stage.lock();
        if let (Some(migration), Stage::Quiet) = (&self.migration, &*stage) {
            *stage = match migration.stop() {
                Ok(()) => Stage::Stopped,
                Err(error) => self.failed(&error),
            };
        }
        match &*stage {
            Stage::Failed(why) => Err(why.clone()),
            Stage::Runs | Stage::Quiet | Stage::Stopped => Ok(()),
        }
    }

    /// What is wrong may concern the guest even if nobody waits for it to stop any more.
    fn failed(&self, error: &MigrationError) -> Stage {
        log::error!("{}: {error}", self.name);
        Stage::Failed(error.to_string())
    }

    /// Has it run again. One that does not is reset.
    pub(super) fn go_on(&self) {
        let mut stage = self.motion.stage.lock();
        if let (Some(migration), false) = (&self.migration, *stage == Stage::Runs)
            && let Err(error) = migration.run()
        {
            log::error!("{}: {error}", self.name);
        }
        *stage = Stage::Runs;
    }
}
