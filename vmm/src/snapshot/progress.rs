//! How far a snapshot has got, for those who look at it, and the wish to give it up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

/// What is said of a snapshot that nobody wants any more.
pub(super) const GIVEN_UP: &str = "the snapshot was given up";

/// The snapshot that is being written, if there is one.
#[derive(Default)]
pub(crate) struct Snapshots(Mutex<Option<Arc<Progress>>>);

/// How far a snapshot has got.
pub(crate) struct Progress {
    path: PathBuf,
    /// Of guest memory.
    bytes: u64,
    done: AtomicU64,
    stage: Mutex<Stage>,
    /// The child that writes. While it is here, it has not been waited for.
    child: Mutex<Option<Pid>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Writing,
    /// Nobody wants it any more.
    GivenUp,
    /// It takes its place.
    Done,
}

/// The only snapshot at the time, until this is dropped.
pub(super) struct Turn<'a> {
    snapshots: &'a Snapshots,
    pub(super) progress: Arc<Progress>,
}

impl Snapshots {
    /// Begins a snapshot of `bytes` of memory to `path`.
    ///
    /// # Errors
    /// Another one is being written.
    pub(super) fn begin(&self, path: &Path, bytes: u64) -> Result<Turn<'_>, String> {
        let mut current = self.0.lock();
        if let Some(other) = &*current {
            return Err(format!(
                "a snapshot is being written: {}; wait for its end, or say `snapshot-cancel`",
                other.describe()
            ));
        }
        let progress = Arc::new(Progress {
            path: path.to_owned(),
            bytes,
            done: AtomicU64::new(0),
            stage: Mutex::default(),
            child: Mutex::default(),
        });
        *current = Some(Arc::clone(&progress));
        Ok(Turn {
            snapshots: self,
            progress,
        })
    }

    /// What is being written, in words.
    pub(crate) fn describe(&self) -> Option<String> {
        self.0.lock().as_ref().map(|current| current.describe())
    }

    /// Gives the snapshot up that is being written.
    ///
    /// # Errors
    /// There is none, or it is complete.
    pub(crate) fn cancel(&self) -> Result<String, String> {
        let current = self.0.lock().clone();
        let current = current.ok_or("no snapshot is being written")?;
        current.leave(Stage::GivenUp, "it takes its place already")?;
        if let Some(child) = *current.child.lock() {
            // It may be at its end already.
            let _ = kill(child, Signal::SIGKILL);
        }
        Ok(format!(
            "the snapshot to {} is given up\n",
            current.path.display()
        ))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.snapshots.0.lock() = None;
    }
}

impl Progress {
    /// So many bytes of memory have been seen to.
    ///
    /// # Errors
    /// Nobody wants the rest.
    pub(super) fn advance(&self, done: u64) -> std::io::Result<()> {
        self.done.store(done, Ordering::Relaxed);
        if self.is_given_up() {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }

    /// Whether nobody wants it any more.
    pub(super) fn is_given_up(&self) -> bool {
        *self.stage.lock() == Stage::GivenUp
    }

    /// It is too late to give it up from now on.
    ///
    /// # Errors
    /// It was given up.
    pub(super) fn complete(&self) -> Result<(), String> {
        self.leave(Stage::Done, GIVEN_UP)
    }

    fn leave(&self, next: Stage, otherwise: &str) -> Result<(), String> {
        let mut stage = self.stage.lock();
        if *stage != Stage::Writing && *stage != next {
            return Err(otherwise.to_owned());
        }
        *stage = next;
        Ok(())
    }

    /// The child that writes, or that there is none any more, which is said before it is waited for.
    pub(super) fn set_child(&self, child: Option<Pid>) {
        *self.child.lock() = child;
        if let Some(child) = child
            && self.is_given_up()
        {
            let _ = kill(child, Signal::SIGKILL);
        }
    }

    fn describe(&self) -> String {
        let done = self.done.load(Ordering::Relaxed);
        let percent = done
            .saturating_mul(100)
            .checked_div(self.bytes)
            .unwrap_or(0);
        format!(
            "{percent} % of {} MiB of memory seen to, for {}",
            self.bytes >> 20,
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_snapshot_at_a_time_and_it_is_described() {
        let snapshots = Snapshots::default();
        assert_eq!(snapshots.describe(), None);
        assert!(snapshots.cancel().is_err());
        let turn = snapshots
            .begin(Path::new("/s"), 64 << 20)
            .expect("the first");
        turn.progress.advance(16 << 20).expect("wanted");
        let text = "25 % of 64 MiB of memory seen to, for /s";
        assert_eq!(snapshots.describe().as_deref(), Some(text));
        let second = snapshots
            .begin(Path::new("/t"), 0)
            .err()
            .expect("the second");
        assert!(second.contains(text), "{second}");
        drop(turn);
        assert!(snapshots.begin(Path::new("/t"), 0).is_ok());
    }

    #[test]
    fn one_that_is_complete_cannot_be_given_up_nor_the_other_way_round() {
        let snapshots = Snapshots::default();
        let turn = snapshots.begin(Path::new("/s"), 0).expect("the first");
        turn.progress.complete().expect("wanted");
        assert!(snapshots.cancel().is_err());
        drop(turn);
        let turn = snapshots.begin(Path::new("/s"), 0).expect("the next");
        snapshots.cancel().expect("not complete");
        assert_eq!(turn.progress.complete(), Err(GIVEN_UP.to_owned()));
    }

    #[test]
    fn one_that_is_given_up_does_not_advance() {
        let snapshots = Snapshots::default();
        let turn = snapshots
            .begin(Path::new("/s"), 64 << 20)
            .expect("the first");
        assert!(snapshots.cancel().is_ok());
        let error = turn.progress.advance(1).expect_err("given up");
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted);
    }
}
