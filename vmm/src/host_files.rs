//! Open files of the host that a machine has, by what they are for: another process that is to have
//! the machine is given them, and so has what belongs to an open file besides its name: the lock of a
//! disk, a queue of a tap with what waits in it, memory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::blk::Claim;
use devices::virtio::net::QueueFile;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What an open file is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Role {
    /// Guest memory.
    Memory,
    /// The kernel, for when the guest restarts.
    Kernel,
    /// The initramfs, for the same.
    Initramfs,
    /// A disk at this path, which is absolute.
    Disk(PathBuf),
    /// A queue of this tap. A device's first one has the number 0.
    Tap(String, u16),
    /// What clients of the control socket connect to.
    Control,
    /// Where the process that was started first tells of signals.
    Keeper,
}

/// Files that devices of a machine have, which may come and go.
#[derive(Default)]
pub(crate) struct DeviceFiles(Mutex<Vec<DeviceFile>>);

enum DeviceFile {
    Disk(Claim),
    Tap(String, Vec<QueueFile>),
}

impl DeviceFiles {
    /// A disk has come.
    pub(crate) fn add_disk(&self, claim: Claim) {
        self.add(DeviceFile::Disk(claim));
    }

    /// A device on the tap `name` has come.
    pub(crate) fn add_tap(&self, name: &str, queues: Vec<QueueFile>) {
        self.add(DeviceFile::Tap(name.to_owned(), queues));
    }

    fn add(&self, file: DeviceFile) {
        let mut files = self.0.lock();
        files.retain(|file| match file {
            DeviceFile::Disk(claim) => !claim.is_gone(),
            DeviceFile::Tap(_, queues) => !queues.iter().all(QueueFile::is_gone),
        });
        files.push(file);
    }

    /// Those that are there now.
    ///
    /// # Errors
    /// The host has no descriptor left: none of them may be missing, as what has its name by now may be another file.
    pub(crate) fn open(&self) -> io::Result<Vec<(Role, File)>> {
        let mut open = Vec::new();
        for file in &*self.0.lock() {
            match file {
                DeviceFile::Disk(claim) => {
                    let path = claim.path();
                    // It fails only without a current directory.
                    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                    open.extend(claim.file()?.map(|file| (Role::Disk(path), file)));
                }
                DeviceFile::Tap(name, queues) => {
                    for (queue, number) in queues.iter().zip(0..) {
                        let role = Role::Tap(name.clone(), number);
                        open.extend(queue.file()?.map(|file| (role, file)));
                    }
                }
            }
        }
        Ok(open)
    }
}

/// Files that were given to this process, each of which is taken once. None are, most of the time.
#[derive(Debug, Default)]
pub(crate) struct Given {
    files: Mutex<Vec<(Role, File)>>,
    /// Whether all that the machine has are among them.
    are_all: AtomicBool,
}

impl Given {
    /// All that a machine has.
    pub(crate) fn new(files: Vec<(Role, File)>) -> Self {
        Self {
            files: Mutex::new(files),
            are_all: AtomicBool::new(true),
        }
    }

    /// The machine is made: what it is to have further is to be opened.
    pub(crate) fn close(&self) {
        self.are_all.store(false, Ordering::Release);
        self.files.lock().clear();
    }

    /// Something that is not here is to be opened.
    ///
    /// # Errors
    /// It should be here: what has its name now may be something else.
    pub(crate) fn permit_opening(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.are_all.load(Ordering::Acquire),
            "it was not handed over"
        );
        Ok(())
    }

    /// The first one of this role.
    pub(crate) fn take(&self, role: &Role) -> Option<File> {
        let mut files = self.files.lock();
        let place = files.iter().position(|(of, _)| of == role)?;
        Some(files.remove(place).1)
    }

    /// A disk.
    pub(crate) fn disk(&self, path: &Path) -> Option<File> {
        self.take(&Role::Disk(path.to_owned()))
    }

    /// All queues of a device on the tap `name`, in their order.
    pub(crate) fn tap(&self, name: &str) -> Option<Vec<File>> {
        let queue = |number| self.take_next(name, number);
        let mut queues = vec![queue(0)?];
        queues.extend((1..).map_while(queue));
        Some(queues)
    }

    /// A queue of this number, unless the first one of another device comes before it.
    fn take_next(&self, name: &str, number: u16) -> Option<File> {
        let mut files = self.files.lock();
        let mut of_tap = files
            .iter()
            .enumerate()
            .filter_map(|(place, (role, _))| match role {
                Role::Tap(tap, number) if tap == name => Some((place, *number)),
                _ => None,
            });
        let (place, next) = of_tap.next()?;
        (next == number).then(|| files.remove(place).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        File::open("/dev/null").expect("there is one")
    }

    #[test]
    fn each_file_is_taken_once_by_what_it_is_for() {
        let given = Given::new(vec![
            (Role::Memory, file()),
            (Role::Disk("/a".into()), file()),
            (Role::Disk("/a".into()), file()),
        ]);
        assert!(given.take(&Role::Kernel).is_none());
        assert!(given.take(&Role::Memory).is_some());
        assert!(given.take(&Role::Memory).is_none());
        assert!(given.disk(Path::new("/b")).is_none());
        assert!(given.disk(Path::new("/a")).is_some());
        assert!(given.disk(Path::new("/a")).is_some());
        assert!(given.disk(Path::new("/a")).is_none());
        // What is missing is not looked for by its name, before the machine is made.
        assert!(given.permit_opening().is_err());
        given.close();
        assert!(given.permit_opening().is_ok());
        assert!(Given::default().permit_opening().is_ok());
    }

    #[test]
    fn each_device_on_a_tap_gets_its_own_queues() {
        let tap = |name: &str, number| (Role::Tap(name.to_owned(), number), file());
        let given = Given::new(vec![
            tap("t", 0),
            tap("t", 1),
            tap("u", 0),
            tap("t", 0),
            tap("t", 1),
            tap("t", 2),
        ]);
        let count = |name| given.tap(name).map(|queues| queues.len());
        assert_eq!(count("t"), Some(2));
        assert_eq!(count("t"), Some(3));
        assert_eq!(count("t"), None);
        assert_eq!(count("u"), Some(1));
    }
}
