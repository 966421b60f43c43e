//! A Unix socket as a file: made without taking anyone's place, and removed at the end.

mod staging;

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use staging::Staging;

/// Bytes of the longest path that a socket can have: those of `sun_path`, but for the one that ends
/// it.
const LONGEST: usize = 107;
/// Bytes of the longest path of its directory, which has to leave room for the staging directory as
/// well.
const LONGEST_DIRECTORY: usize = LONGEST - Staging::LENGTH;
/// How long to wait for whoever may listen on a socket, and for whoever has locked its directory.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait before the next attempt to lock the directory.
const RETRY: Duration = Duration::from_millis(1);

/// Why there is no socket, for whoever names the path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Something else has that name.
    #[error("a file that is not a socket is there; remove it, or choose another path")]
    NotASocket,
    /// Someone listens there.
    #[error("another process listens there; end it, or choose another path")]
    InUse,
    /// No socket can have that path.
    #[error(
        "too long; choose a path of at most {LONGEST} bytes, in a directory whose path has at most {LONGEST_DIRECTORY}"
    )]
    TooLong,
    /// The host refuses.
    #[error("{0}; choose a path in a directory that exists and that you may write to")]
    Refused(io::Error),
}

/// A socket that listens. Dropping it removes the file, unless another has taken its place.
pub(crate) struct Socket {
    listener: UnixListener,
    place: Place,
}

/// Where a socket is, for who ends the process without dropping it.
#[derive(Clone)]
pub(crate) struct Place {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// Whether this process is the one that removes it.
    is_ours: Arc<AtomicBool>,
}

/// All sockets that are to be removed by who ends the process without dropping them.
pub(crate) type Places = Arc<Mutex<Vec<Place>>>;

/// The same file.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.identity) == (&other.path, other.identity)
    }
}

impl Place {
    /// Removes the file, unless another has taken its place.
    pub(crate) fn remove(&self) {
        if !self.is_ours.load(Ordering::Acquire) {
            return;
        }
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // It may be gone already, and there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Where it is in the file system: path, device and inode.
    pub(crate) fn identity(&self) -> (&Path, (u64, u64)) {
        (&self.path, self.identity)
    }

    /// Whether this process is the one that removes it from here on. Another one may have the same socket.
    pub(crate) fn set_ours(&self, is_ours: bool) {
        self.is_ours.store(is_ours, Ordering::Release);
    }
}

impl Socket {
    /// A socket that another process has made, and is to remove unless this one takes its
    /// [place](Place::set_ours).
    pub(crate) fn of_another(listener: UnixListener, path: PathBuf, identity: (u64, u64)) -> Self {
        let place = Place {
            path,
            identity,
            is_ours: Arc::default(),
        };
        Self { listener, place }
    }

    /// Makes a socket at `path`. One that a process has left behind is replaced.
    ///
    /// It gets its mode before its name, so nobody but the owner can connect to it at any time,
    /// whatever the umask is. It waits for others for three seconds at most.
    ///
    /// # Errors
    /// When anything else is there, the path is too long, or the host refuses.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        if length(path) > LONGEST || path.parent().map_or(0, length) > LONGEST_DIRECTORY {
            return Err(SocketError::TooLong);
        }
        let found = Found::at(path)?;
        let staging = Staging::beside(path).map_err(SocketError::Refused)?;
        let ready = staging.socket();
        let listener = UnixListener::bind(&ready).map_err(SocketError::Refused)?;
        fs::set_permissions(&ready, fs::Permissions::from_mode(0o600))
            .map_err(SocketError::Refused)?;
        listener
            .set_nonblocking(true)
            .map_err(SocketError::Refused)?;
        let identity = identity(&ready).map_err(SocketError::Refused)?;
        let _lock = lock(path);
        if found == Found::Dead {
            remove_dead(path, &staging)?;
        }
        // A link replaces nothing.
        fs::hard_link(&ready, path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => SocketError::InUse,
            _ => SocketError::Refused(error),
        })?;
        Ok(Self {
            listener,
            place: Place {
                path: path.to_owned(),
                identity,
                is_ours: Arc::new(AtomicBool::new(true)),
            },
        })
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Where clients arrive. It does not block.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.place.remove();
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn length(path: &Path) -> usize {
    path.as_os_str().as_bytes().len()
}

/// What a path leads to, if that does not stand in the way of a new socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket on which nobody listens: its owner was killed.
    Dead,
}

impl Found {
    fn at(path: &Path) -> Result<Self, SocketError> {
        match fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => Err(SocketError::NotASocket),
            Ok(_) => match is_live(path) {
                Ok(true) => Err(SocketError::InUse),
                Ok(false) => Ok(Self::Dead),
                // It has just gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Nothing),
                Err(error) => Err(SocketError::Refused(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Nothing),
            Err(error) => Err(SocketError::Refused(error)),
        }
    }
}

/// Whether someone listens on the socket at `path`.
fn is_live(path: &Path) -> io::Result<bool> {
    let (sender, receiver) = channel();
    let path = path.to_owned();
    // Connecting blocks for as long as a listener has its queue full and does not accept.
    thread::Builder::new()
        .name("socket-probe".to_owned())
        .spawn(move || {
            // Nobody waits for it any more if it took too long.
            let _ = sender.send(UnixStream::connect(path));
        })?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Ok(connected) => connected.map(|_| true),
        // There is a queue, so there is a listener.
        Err(_) => Ok(true),
    }
}

/// Keeps other nidos from taking or giving a name in the directory of `path`, until it is dropped.
///
/// Whoever can read the directory can hold its lock, and some file systems have none. Then it is
/// done without: what the lock adds is that nobody takes the name of a socket in the moment in
/// which [`remove_dead`] looks at it.
fn lock(path: &Path) -> Option<File> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let directory = File::open(directory).ok()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match directory.try_lock() {
            Ok(()) => return Some(directory),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(RETRY),
            Err(_) => return None,
        }
    }
}

/// Frees `path` of a socket that was found to be dead.
///
/// Another nido may have found the same, and have put its own socket there since. So what is at
/// `path` now is taken out of everyone's reach first, looked at there, and put back if it is not
/// dead.
fn remove_dead(path: &Path, staging: &Staging) -> Result<(), SocketError> {
    let aside = staging.aside();
    match fs::rename(path, &aside) {
        Ok(()) => {}
        // Someone else has removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::Refused(error)),
    }
    let found = Found::at(&aside);
    if found.is_err() {
        // If this fails, it stays where it is: it is not ours to remove.
        fs::hard_link(&aside, path).map_err(SocketError::Refused)?;
    }
    fs::remove_file(&aside).map_err(SocketError::Refused)?;
    match found {
        Ok(_) => Ok(()),
        Err(_) => Err(SocketError::InUse),
    }
}

#[cfg(test)]
pub(crate) mod scratch;
#[cfg(test)]
mod socket_test;
