//! Who has a disk: the advisory lock of its file, which is exclusive for a writer and shared by readers.
//!
//! A lock belongs to the open file (flock(2)), so another opening of the same file, in this process or
//! not, does not have it. It ends with the open file, or when it is given up: so it can go from one
//! process to another while both have the disk open, and there is one holder at any time.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use rustix::fs::{Advice, fadvise};

use super::BlockError;
use super::target::Target;

/// How a disk is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nobody else has it: the guest may write.
    Alone,
    /// With others, all of which read only.
    Shared,
    /// Not at all: its file system has no locks, or the disk is gone.
    None,
}

/// What takes and gives up the lock of a disk. It does not keep the disk: that may be unplugged.
#[derive(Clone, Debug)]
pub struct Claim {
    target: Weak<Target>,
    path: PathBuf,
    readonly: bool,
}

impl Claim {
    pub(super) fn new(target: &Arc<Target>) -> Self {
        Self {
            target: Arc::downgrade(target),
            path: target.path.clone(),
            readonly: target.readonly,
        }
    }

    /// The file, by the name that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file itself, if the disk is there: whoever has it has the lock as well, and keeps it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn file(&self) -> io::Result<Option<File>> {
        let target = self.target.upgrade();
        target.map(|target| target.file.try_clone()).transpose()
    }

    /// What tells the file from others of the host: device and inode, if the disk is there. A block device
    /// is told by its number.
    #[must_use]
    pub fn identity(&self) -> Option<(u64, u64)> {
        let metadata = self.target.upgrade()?.file.metadata().ok()?;
        Some(match metadata.file_type().is_block_device() {
            true => (metadata.rdev(), 0),
            false => (metadata.dev(), metadata.ino()),
        })
    }

    /// Whether the disk is there no more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.target.strong_count() == 0
    }

    /// Takes the lock, without waiting for another holder. Who has it already still has it then.
    ///
    /// # Errors
    /// [`BlockError::InUse`] while somebody else has it, [`BlockError::Lock`] if the host does not say.
    pub fn take(&self) -> Result<Hold, BlockError> {
        let Some(target) = self.target.upgrade() else {
            return Ok(Hold::None);
        };
        let (result, hold) = if target.readonly {
            (target.file.try_lock_shared(), Hold::Shared)
        } else {
            (target.file.try_lock(), Hold::Alone)
        };
        match result {
            Ok(()) => Ok(hold),
            Err(TryLockError::WouldBlock) => Err(BlockError::InUse(self.path.clone())),
            Err(TryLockError::Error(error)) => match without_locks(&error) {
                true => Ok(Hold::None),
                false => Err(BlockError::Lock(self.path.clone(), error)),
            },
        }
    }

    /// Whether this process could not have the disk, as another one has its lock; `None` if it is for readers, which
    /// may share it, or gone. Whoever takes it in this moment may find it in use.
    ///
    /// # Errors
    /// [`BlockError::Lock`] if the host does not say.
    pub fn is_in_use(&self) -> Result<Option<bool>, BlockError> {
        if self.readonly || self.is_gone() {
            return Ok(None);
        }
        match self.take() {
            Ok(_) => {
                // Also where there are no locks.
                let _ = self.give_up();
                Ok(Some(false))
            }
            Err(BlockError::InUse(_)) => Ok(Some(true)),
            Err(error) => Err(error),
        }
    }

    /// Gives the lock up, for somebody else to take it. The disk works as before: whoever calls this
    /// sees to it that the guest does not.
    ///
    /// # Errors
    /// The system's reason. Also where there are no locks: what is not held need not be given up.
    pub fn give_up(&self) -> io::Result<()> {
        self.target
            .upgrade()
            .map_or(Ok(()), |target| target.file.unlock())
    }

    /// Has the host forget what it has read of a block device: another host may have written to that
    /// since. A file's server tells of that itself when the lock is taken.
    pub fn refresh(&self) {
        let Some(target) = self.target.upgrade() else {
            return;
        };
        let kind = target.file.metadata().map(|data| data.file_type());
        if kind.is_ok_and(|kind| kind.is_block_device()) {
            // It is an advice: there is no more to be done where it is not taken.
            let _ = fadvise(&target.file, 0, None, Advice::DontNeed);
        }
    }

    /// Has the host write to its storage what the guest wrote to the disk, if it may write. May take
    /// long, and does not keep the disk meanwhile. Of a disk that is gone, it is what is now at its path.
    ///
    /// # Errors
    /// The system's reason: some of it may be lost.
    pub fn sync(&self) -> io::Result<()> {
        if self.readonly {
            return Ok(());
        }
        self.opened_again()?.sync_data()
    }

    /// The same file, opened once more. A host's failure to write is told once to each that has a file
    /// open: asked by the disk's own one, a flush of the guest would no more hear of it.
    fn opened_again(&self) -> io::Result<File> {
        let Some(target) = self.target.upgrade() else {
            return File::open(&self.path);
        };
        // Whatever has become of its name.
        File::open(format!("/proc/self/fd/{}", target.file.as_raw_fd()))
            .or_else(|_| target.file.try_clone())
    }
}

/// Whether that says that the file system has no locks, which is accepted: flock(2), and `nolock` or no lock manager
/// of NFS.
fn without_locks(error: &io::Error) -> bool {
    [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL, libc::ENOLCK]
        .map(Some)
        .contains(&error.raw_os_error())
}

#[cfg(test)]
mod claim_test;
