//! The directory of a snapshot: a file `state`, and the file of the guest's memory that it names.
//!
//! A new snapshot replaces the old one by the renaming of `state`. Whoever ends before that, by whatever
//! cause, leaves the old one whole; what is left over of the attempt goes when the next one begins.
//!
//! A state says which files of the host a machine uses. Who can write it can have a guest read them: so it
//! is believed only where nobody but its owner can write.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::geteuid;
use state::MachineState;

const STATE: &str = "state";
/// What is to become the state.
const NEXT: &str = "state.next";
/// What files of memory are called, before their numbers.
const MEMORY: &str = "memory.";
/// Write permission of group and others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A directory that a snapshot is written to. Nobody else writes one there meanwhile.
pub(crate) struct Writing {
    path: PathBuf,
    directory: File,
}

/// A file of guest memory that is part of no snapshot yet. Dropped before it is, it is removed.
pub(crate) struct NewMemory {
    pub(crate) file: File,
    name: String,
    path: PathBuf,
    kept: bool,
}

impl Writing {
    /// For a snapshot in `path`, a directory that is made if there is none.
    ///
    /// # Errors
    /// The path, what is wrong, and the remedy.
    pub(crate) fn begin(path: &Path) -> anyhow::Result<Self> {
        let made = DirBuilder::new().mode(0o700).create(path);
        if let Err(error) = made
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("`{}` cannot be made", path.display()));
        }
        let directory = open_directory(path)?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "`{}`: another snapshot is being written there; wait for its end",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error)
                    .with_context(|| format!("`{}` cannot be locked", path.display()));
            }
        }
        let writing = Self {
            path: path.to_owned(),
            directory,
        };
        writing.check_contents()?;
        // It would take the room of the new one.
        writing.sweep();
        Ok(writing)
    }

    /// Refuses a directory that is used for something else.
    fn check_contents(&self) -> anyhow::Result<()> {
        let foreign = || {
            format!(
                "`{}` holds something else than a snapshot; give an empty directory, or one that is to be made",
                self.path.display()
            )
        };
        let is_ours = |name: &OsStr| {
            name == STATE
                || name == NEXT
                || name.to_str().is_some_and(|name| number(name).is_some())
        };
        for entry in fs::read_dir(&self.path)? {
            ensure!(is_ours(&entry?.file_name()), foreign());
        }
        match File::open(self.path.join(STATE)) {
            Ok(file) => ensure!(state::is_state(file)?, foreign()),
            // What is left of a first attempt.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(foreign),
        }
        Ok(())
    }

    /// Removes what no state names. What cannot be removed takes room, and does no harm.
    fn sweep(&self) {
        let _ = fs::remove_file(self.path.join(NEXT));
        let named = read_state(&self.path).map(|state| state.memory.file);
        for number in self.numbers().unwrap_or_default() {
            let name = format!("{MEMORY}{number}");
            if named.as_ref().ok() != Some(&name) {
                let _ = fs::remove_file(self.path.join(name));
            }
        }
    }

    /// A new file for memory, with a name that no snapshot there has had lately.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn memory(&self) -> anyhow::Result<NewMemory> {
        let last = self.numbers()?.into_iter().max().unwrap_or(0);
        let name = format!("{MEMORY}{}", last + 1);
        let path = self.path.join(&name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("`{}` cannot be made", path.display()))?;
        Ok(NewMemory {
            file,
            name,
            path,
            kept: false,
        })
    }

    /// Puts the snapshot of `state`, encoded, and `memory`, which `state` names, in the place of the one
    /// that was there, unless `go_on` has changed its mind when all is on the disk.
    ///
    /// # Errors
    /// The old one is there still.
    pub(crate) fn finish(
        &self,
        state: &[u8],
        mut memory: NewMemory,
        go_on: impl FnOnce() -> Result<(), String>,
    ) -> anyhow::Result<()> {
        let place = || format!("`{}` cannot be written", self.path.display());
        memory.file.sync_all().with_context(place)?;
        let next = self.prepare(state).with_context(place)?;
        if let Err(why) = go_on() {
            let _ = fs::remove_file(next);
            bail!(why);
        }
        fs::rename(next, self.path.join(STATE)).with_context(place)?;
        memory.kept = true;
        if let Err(error) = self.directory.sync_all() {
            log::warn!(
                "`{}` has the new snapshot; the host does not say that it is on the disk: {error}",
                self.path.display()
            );
        }
        self.sweep();
        Ok(())
    }

    /// Writes what is to become the state.
    fn prepare(&self, state: &[u8]) -> io::Result<PathBuf> {
        let next = self.path.join(NEXT);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&next)?;
        file.write_all(state)?;
        file.sync_all()?;
        Ok(next)
    }

    /// The numbers of all files of memory.
    fn numbers(&self) -> anyhow::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            numbers.extend(entry?.file_name().to_str().and_then(number));
        }
        Ok(numbers)
    }
}

/// The number of a file of memory, by its name.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix(MEMORY)?.parse().ok()
}

impl NewMemory {
    /// The name in its directory.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for NewMemory {
    fn drop(&mut self) {
        if !self.kept {
            // Left over, it goes with the next snapshot.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The snapshot in the directory `path`: what `state` says, and the file of memory, which is as long as
/// that says.
///
/// # Errors
/// What is wrong, with the path and the remedy.
pub(crate) fn open(path: &Path) -> anyhow::Result<(MachineState, File)> {
    open_directory(path)?;
    let state = read_state(path)?;
    let error = match open_memory(path, &state) {
        Ok(memory) => return Ok((state, memory)),
        Err(error) => error,
    };
    // A new snapshot may have replaced the one that was read just now.
    let now = read_state(path)?;
    if now == state {
        return Err(error);
    }
    let memory = open_memory(path, &now)?;
    Ok((now, memory))
}

fn read_state(path: &Path) -> anyhow::Result<MachineState> {
    let place = path.join(STATE);
    let file = open_file(&place)?;
    state::read(file).with_context(|| format!("`{}`", place.display()))
}

fn open_memory(path: &Path, state: &MachineState) -> anyhow::Result<File> {
    let name = &state.memory.file;
    let plain = Path::new(name).file_name() == Some(OsStr::new(name));
    ensure!(
        plain && name.starts_with(MEMORY),
        "`{}` is damaged: `{}` is no name of a file of memory",
        path.join(STATE).display(),
        name.escape_debug()
    );
    let place = path.join(name);
    let file = open_file(&place)?;
    let length = file.metadata()?.len();
    ensure!(
        length == state.memory.bytes,
        "`{}` is damaged: it has {length} bytes, and the state announces {}",
        place.display(),
        state.memory.bytes
    );
    Ok(file)
}

fn open_directory(path: &Path) -> anyhow::Result<File> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .with_context(|| {
            format!(
                "`{}` cannot be opened; give a directory that `snapshot` on the control socket has written",
                path.display()
            )
        })?;
    check_owner(path, &directory.metadata()?)?;
    Ok(directory)
}

/// Opens a regular file that only its owner writes.
fn open_file(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        // Not to wait for the other end of a pipe.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("`{}` cannot be opened", path.display()))?;
    let metadata = file.metadata()?;
    ensure!(
        metadata.is_file(),
        "`{}` is no regular file",
        path.display()
    );
    check_owner(path, &metadata)?;
    Ok(file)
}

fn check_owner(path: &Path, metadata: &Metadata) -> anyhow::Result<()> {
    let (owner, me) = (metadata.uid(), geteuid().as_raw());
    ensure!(
        owner == me || owner == 0,
        "`{}` belongs to user {owner}, who could choose what files the guest gets: chown it to {me}",
        path.display()
    );
    ensure!(
        metadata.mode() & WRITABLE_BY_OTHERS == 0,
        "`{}` can be written by others (mode {:03o}), who could choose what files the guest gets: chmod go-w it",
        path.display(),
        metadata.mode() & 0o777
    );
    Ok(())
}

#[cfg(test)]
mod directory_test;
