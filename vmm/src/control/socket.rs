//! The socket as a file: made without taking anyone's place, and removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Something else has that name.
    #[error(
        "--control path={}: a file that is not a socket is there; remove it, or choose another path", .0.display()
    )]
    NotASocket(PathBuf),
    /// Someone listens there.
    #[error(
        "--control path={}: another process listens there; end it, or choose another path", .0.display()
    )]
    InUse(PathBuf),
    /// The host refuses.
    #[error(
        "--control path={}: {cause}; choose a path in a directory that exists and that you may write to", path.display()
    )]
    Refused {
        /// The path.
        path: PathBuf,
        /// What the host says.
        cause: io::Error,
    },
}

/// A socket that listens. Dropping it removes the file, unless another has taken its place.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Socket {
    /// Makes a socket at `path`. One that a process has left behind is replaced.
    ///
    /// # Errors
    /// When anything else is there, or the host refuses.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let refused = |cause| SocketError::Refused {
            path: path.to_owned(),
            cause,
        };
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => match UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse(path.to_owned())),
                // Nobody listens: its owner was killed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(refused)?;
                }
                Err(error) => return Err(refused(error)),
            },
            Ok(_) => return Err(SocketError::NotASocket(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(error)),
        }
        let listener = UnixListener::bind(path).map_err(refused)?;
        let prepare = || {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            identity(path)
        };
        let identity = match prepare() {
            Ok(identity) => identity,
            Err(error) => {
                // It is ours, and of no use.
                let _ = fs::remove_file(path);
                return Err(refused(error));
            }
        };
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity,
        })
    }

    /// Where clients arrive. It does not block.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // It may be gone already, and there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod socket_test;
