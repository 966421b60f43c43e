//! Taking a snapshot: a moment in which the guest stands still, and the writing of its memory, in that
//! moment or after it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use devices::virtio::blk::Claim;

use super::child::Child;
use super::directory::{NewMemory, Writing};
use super::progress::{GIVEN_UP, Progress, Snapshots};
use crate::config::SnapshotConfig;
use crate::described::describe;
use crate::machine::claims;
use crate::machine::{Machine, Work};
use crate::memory::Memory;
use crate::memory::saved::Touched;

/// What a snapshot needs of the guest that it is of.
pub(crate) trait Subject {
    /// Bytes of its memory.
    fn memory(&self) -> u64;
    /// Whether nobody but this process maps its memory.
    fn has_private_memory(&self) -> bool;
    /// Has work be done while the guest stands still, which goes on then, unless it is paused.
    fn work(&self, work: Work) -> Result<String, String>;
    /// Has the guest stand still, if it does not. What is returned has it go on when it is dropped, and
    /// tells whether it has stood still all the time.
    fn pause(&self) -> Result<Box<dyn Still + '_>, String>;
}

/// A guest that stands still.
pub(crate) trait Still {
    /// Whether it has all the time.
    fn is_unbroken(&self) -> bool;
}

/// What was taken while the guest stood still.
struct Taken {
    state: Vec<u8>,
    /// Disks, which hold what the guest wrote.
    disks: Vec<Claim>,
    memory: Taking,
}

/// Guest memory that is to be in the file.
enum Taking {
    /// A child writes it, as it was.
    Child(Child),
    /// It is written before the guest goes on: this, which came from a file.
    Now(Memory, Option<Arc<File>>),
}

/// Takes a snapshot. Returns how large it is and how long the guest stood still.
///
/// # Errors
/// Why there is none. One that was there before is there still.
pub(crate) fn save(
    wish: &SnapshotConfig,
    subject: &impl Subject,
    snapshots: &Snapshots,
) -> Result<String, String> {
    let can_live = subject.has_private_memory();
    if wish.live == Some(true) && !can_live {
        return Err(
            "live=on needs memory that nobody else maps: start nido without hugepages, shared, vhost-user and --object iommufd, or write live=off, which has the guest stand still meanwhile"
                .to_owned(),
        );
    }
    let turn = snapshots.begin(&wish.path, subject.memory())?;
    let explain = |error: anyhow::Error| format!("{error:#}");
    let writing = Writing::begin(&wish.path).map_err(explain)?;
    let memory = writing.memory().map_err(explain)?;
    let saving = Saving {
        path: &wish.path,
        progress: &turn.progress,
    };
    let began = Instant::now();
    let (state, disks, stood) = if wish.live.unwrap_or(can_live) {
        let taken = saving.take(subject, &memory, true)?;
        let stood = began.elapsed();
        saving.write(taken.memory, &memory)?;
        (taken.state, taken.disks, stood)
    } else {
        let still = subject.pause()?;
        let taken = saving.take(subject, &memory, false)?;
        saving.write(taken.memory, &memory)?;
        if !still.is_unbroken() {
            return Err("the guest went on before all was written: do not `resume` it meanwhile, or write live=on".to_owned());
        }
        drop(still);
        (taken.state, taken.disks, began.elapsed())
    };
    let size = memory
        .file
        .metadata()
        .map_err(|error| saving.refusal(&error))?;
    // The snapshot's memory knows of what was written to them.
    claims::sync(&disks).map_err(explain)?;
    let complete = || turn.progress.complete();
    writing.finish(&state, memory, complete).map_err(explain)?;
    Ok(format!(
        "the snapshot is in {}: {} KiB of memory and {} KiB of state; the guest stood still for {} ms at the most\n",
        wish.path.display(),
        size.blocks() / 2,
        state.len().div_ceil(1024),
        stood.as_millis()
    ))
}

/// A snapshot on its way.
struct Saving<'a> {
    path: &'a Path,
    progress: &'a Arc<Progress>,
}

impl Saving<'_> {
    /// Takes what has to be of one moment, and begins with memory if the guest goes on meanwhile.
    fn take(
        &self,
        subject: &impl Subject,
        memory: &NewMemory,
        live: bool,
    ) -> Result<Taken, String> {
        let place = memory.name().to_owned();
        let file = memory.file.try_clone();
        let mut file = file.map_err(|error| self.refusal(&error))?;
        let (give, taken) = channel();
        let progress = Arc::clone(self.progress);
        let work = move |machine: &mut Machine| {
            let state = describe(machine, &place)?;
            let state = state::encode(&state).map_err(|error| error.to_string())?;
            let disks = machine.claims().disks();
            let memory = if live {
                let child = start(machine, &mut file)?;
                progress.set_child(Some(child.pid()));
                Taking::Child(child)
            } else {
                let source = machine.source().cloned();
                Taking::Now(Arc::clone(machine.memory()), source)
            };
            // Nobody waits for it any more only when the process ends.
            let _ = give.send(Taken {
                state,
                disks,
                memory,
            });
            Ok(String::new())
        };
        subject.work(Box::new(work))?;
        taken
            .recv()
            .map_err(|_| "the virtual machine ends".to_owned())
    }

    /// Has memory be in its file.
    fn write(&self, taking: Taking, memory: &NewMemory) -> Result<(), String> {
        let progress = self.progress;
        let written = match taking {
            Taking::Child(mut child) => {
                let followed = child.follow(|done| {
                    // A child that is given up was told so.
                    let _ = progress.advance(done);
                });
                progress.set_child(None);
                followed.and_then(|()| child.end())
            }
            Taking::Now(ram, source) => {
                let touched = Touched::new(&ram, source.as_deref());
                let file = memory.file.try_clone();
                file.and_then(|mut file| touched.write(&mut file, |done| progress.advance(done)))
            }
        };
        written.map_err(|error| self.refusal(&error))
    }

    /// Why memory is not written.
    fn refusal(&self, error: &io::Error) -> String {
        if self.progress.is_given_up() {
            return GIVEN_UP.to_owned();
        }
        format!(
            "guest memory cannot be written to {}: {error}; see whether there is room",
            self.path.display()
        )
    }
}

/// Has a child write the machine's memory to `file`. This is the main thread, which lives as long as the
/// process.
fn start(machine: &Machine, file: &mut File) -> Result<Child, String> {
    let touched = Touched::new(machine.memory(), machine.source().map(AsRef::as_ref));
    Child::start(&touched, file).map_err(|error| {
        format!("the host gives no process that writes memory ({error}); write live=off, which has the guest stand still meanwhile")
    })
}
