//! The staging directory of a socket, which only its owner can enter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;

/// A directory for the time that it takes to make a socket. Dropping it removes it, with the name
/// that the socket has in it.
pub(super) struct Staging(PathBuf);

impl Staging {
    /// Bytes that [`socket`](Self::socket) adds to the path of the directory beside it, at most:
    /// process ids are below 2^22.
    pub(super) const LENGTH: usize = "/.nido-3fffff-f/s".len();

    /// Makes one in the directory of `path`, so that files can be moved and linked between it and
    /// there.
    ///
    /// # Errors
    /// When the host refuses.
    pub(super) fn beside(path: &Path) -> io::Result<Self> {
        let id = process::id();
        // One of a process that had this id, and was killed, may be left.
        for attempt in 0..16 {
            let directory = path.with_file_name(format!(".nido-{id:x}-{attempt:x}"));
            match DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => return Ok(Self(directory)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "all of .nido-{id:x}-0 to .nido-{id:x}-f are left of processes that were killed"
            ),
        ))
    }

    /// The name of the socket while it is made.
    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("s")
    }

    /// A name for what was in the socket's place.
    pub(super) fn aside(&self) -> PathBuf {
        self.0.join("o")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // There may be no socket yet, and there is nobody to tell.
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(&self.0);
    }
}
