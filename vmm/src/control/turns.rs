//! What takes long, of which there is one at a time: saving the guest, having it leave or be another nido's, or
//! following what it writes.

use std::sync::Arc;

use parking_lot::Mutex;

use super::monitor::Monitor;

/// What takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Long {
    /// A snapshot.
    Snapshot,
    /// A migration.
    Migration,
    /// Following what is written to memory.
    DirtyPages,
    /// An upgrade.
    Upgrade,
}

/// What is under way, from the command that asks for it to the end of the work. Only leaf locks are taken under this
/// one, for what is to be told of it.
#[derive(Default)]
pub(crate) struct Turns(Mutex<Option<Long>>);

/// The only one at the time, until this is dropped.
pub(super) struct Turn(Arc<Turns>);

impl Monitor {
    /// Begins what takes long.
    ///
    /// # Errors
    /// Something else that takes long is under way.
    pub(super) fn begin(&self, what: Long) -> Result<Turn, String> {
        let mut current = self.turns.0.lock();
        let (kind, progress, remedy) = match *current {
            None => {
                *current = Some(what);
                return Ok(Turn(Arc::clone(&self.turns)));
            }
            Some(Long::Snapshot) => (
                "a snapshot is being written",
                self.snapshots.describe(),
                ", or say `snapshot-cancel`",
            ),
            Some(Long::Migration) => (
                "a migration is under way",
                self.migrations.describe(),
                ", or say `migrate-cancel`",
            ),
            Some(Long::DirtyPages) => {
                return Err(
                    "`dirty-pages` follows what the guest writes; wait for its end".to_owned(),
                );
            }
            Some(Long::Upgrade) => ("an upgrade is under way", None, ""),
        };
        // Its thread may not have got there yet.
        let progress = progress.map_or_else(String::new, |text| format!(": {text}"));
        Err(format!("{kind}{progress}; wait for its end{remedy}"))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::control_test::bare;
    use super::*;

    #[test]
    fn what_takes_long_excludes_the_rest_before_its_thread_has_begun() {
        let (monitor, _events) = bare();
        for (first, why) in [
            (Long::Snapshot, "a snapshot is being written; wait"),
            (Long::Migration, "a migration is under way; wait"),
            (Long::DirtyPages, "`dirty-pages` follows"),
            (Long::Upgrade, "an upgrade is under way; wait"),
        ] {
            let turn = monitor.begin(first).expect("the only one");
            for second in [
                Long::Snapshot,
                Long::Migration,
                Long::DirtyPages,
                Long::Upgrade,
            ] {
                let error = monitor.begin(second).err().expect("the second");
                assert!(error.starts_with(why), "{error}");
            }
            drop(turn);
        }
        assert!(monitor.begin(Long::Snapshot).is_ok());
    }
}
