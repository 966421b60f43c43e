//! Block device (section 5.2) on a file or a host block device.
//!
//! Each queue has a thread, which hands the requests' system calls to io_uring: so none of them holds
//! up another one. Where that is not to be had, it makes them itself, a batch at a time. Queues share
//! the file and nothing else: I/O is positional, and a flush makes all stable that any of them has
//! written to it, so what completed before the flush began is.

mod asynchronous;
#[cfg(test)]
mod asynchronous_test;
mod batch;
#[cfg(test)]
mod blk_test;
mod call;
mod claim;
mod engine;
mod outcome;
mod pages;
mod poll;
#[cfg(test)]
mod queues_test;
mod request;
#[cfg(test)]
mod saved_test;
#[cfg(test)]
mod speed_test;
/// The same tests, of calls that block.
#[cfg(test)]
#[path = "blk/blk_test.rs"]
#[allow(clippy::duplicate_mod)]
mod synchronous_test;
mod target;
mod uring;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::mem::offset_of;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_setfl};
use state::{RestoreError, SaveError, Section};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};

use super::device::{DeviceKind, VirtioDevice};
use super::error::QueueError;
use super::feature::{has, mask};
use super::session::{Progress, Session};
pub use claim::{Claim, Hold};
use engine::Engine;
use request::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS};
use target::{ID_LENGTH, SECTOR, Target};

/// What the state of a part is called, which has none of its own.
const KIND: &str = "blk";
const VERSION: u32 = 1;
/// Queue size.
const QUEUE_SIZE: u16 = 256;
/// The most queues that a disk can have.
pub const MAX_QUEUES: u16 = 16;
/// Of as many queues as a disk has.
static QUEUE_SIZES: [u16; MAX_QUEUES as usize] = [QUEUE_SIZE; MAX_QUEUES as usize];
/// Data segments per request: the queue's size without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Image file or block device.
    pub path: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
    /// What the guest sees as serial number; at most 20 bytes.
    pub serial: Option<String>,
    /// Queues, each with a thread of its own: 1 to [`MAX_QUEUES`].
    pub queues: u16,
}

/// Why a block device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file cannot be opened.
    #[error("cannot open disk {path:?} {mode}: {error}; check the path and its permissions{hint}")]
    Open {
        /// The file.
        path: PathBuf,
        /// How it was to be opened.
        mode: &'static str,
        /// What else might help.
        hint: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// A directory, a pipe, or the like.
    #[error("disk {0:?} is neither a file nor a block device; give the path of a raw image")]
    Kind(PathBuf),
    /// Somebody else uses the file.
    #[error(
        "disk {0:?} is in use by another process; stop that one, or give both readonly=on (a writer must be alone, or the image is corrupted)"
    )]
    InUse(PathBuf),
    /// Whether somebody else uses the file is not known.
    #[error(
        "whether disk {0:?} is in use by another process cannot be told ({1}); see whether the server of its file answers"
    )]
    Lock(PathBuf, io::Error),
    /// There is nothing in it.
    #[error("disk {0:?} is empty; give it a size, for example: truncate -s 1G {0:?}")]
    Empty(PathBuf),
    /// The size is not usable.
    #[error(
        "disk {path:?} is {size} bytes long, which is not a multiple of 512; round it up: truncate -s %512 {path:?}"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
    /// The serial number does not fit.
    #[error(
        "serial {0:?} is longer than 20 bytes, which is all that virtio-blk can carry; shorten it"
    )]
    Serial(String),
}

/// A block device, or the part of one that serves a queue.
pub struct Block {
    target: Arc<Target>,
    features: u64,
    /// How many the device has.
    queues: u16,
    /// Which one of them this serves.
    queue: u16,
    /// No io_uring.
    pub(in crate::virtio) synchronous: bool,
    /// Once it has been activated.
    engine: Option<Engine>,
}

impl Block {
    /// Opens the file and takes an advisory lock on it.
    ///
    /// # Errors
    /// When the file cannot be used as asked; the message says what to do.
    pub fn open(options: &BlockOptions) -> Result<Self, BlockError> {
        let block = Self::open_unlocked(options)?;
        block.claim().take()?;
        Ok(block)
    }

    /// Opens the file, which somebody else may use. Before a guest does, its lock is to be
    /// [taken](Claim::take).
    ///
    /// # Errors
    /// Those of [`open`](Self::open), but for the lock.
    pub fn open_unlocked(options: &BlockOptions) -> Result<Self, BlockError> {
        Self::of(open(&options.path, options.readonly)?, options)
    }

    /// Of a `file` that is open, with the lock that it may have: as [`Claim::file`] gives it.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), but for the lock.
    pub fn of(mut file: File, options: &BlockOptions) -> Result<Self, BlockError> {
        let path = options.path.as_path();
        let id = identification(options.serial.as_deref())?;
        let kind = file
            .metadata()
            .map_err(|error| open_error(path, options.readonly, error))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::Kind(path.to_owned()));
        }
        // That was for opening it only: io_uring would take it for a wish never to wait.
        fcntl_setfl(&file, OFlags::empty())
            .map_err(|error| open_error(path, options.readonly, error.into()))?;
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(|error| open_error(path, options.readonly, error))?;
        if size == 0 {
            return Err(BlockError::Empty(path.to_owned()));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(BlockError::Size {
                path: path.to_owned(),
                size,
            });
        }
        let features = mask(&[
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
        ]) | if options.readonly {
            mask(&[VIRTIO_BLK_F_RO])
        } else {
            mask(&[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES])
        };
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let several = if queues > 1 {
            mask(&[VIRTIO_BLK_F_MQ])
        } else {
            0
        };
        let target = Target {
            file,
            path: path.to_owned(),
            sectors: size / SECTOR,
            readonly: options.readonly,
            id,
        };
        let synchronous = target.is_in_memory();
        Ok(Self {
            target: Arc::new(target),
            features: features | several,
            queues,
            queue: 0,
            synchronous,
            engine: None,
        })
    }

    /// What takes and gives up the lock of the file.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim::new(&self.target)
    }

    /// A disk of 64 sectors whose content comes out of a pipe, and goes there, by io_uring: so reads
    /// wait until something is written.
    #[cfg(test)]
    pub(in crate::virtio) fn of_a_pipe(pipe: &vmm_sys_util::tempfile::TempFile) -> Self {
        let path = pipe.as_path();
        std::fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        Self {
            target: Arc::new(Target {
                file,
                path: path.to_owned(),
                sectors: 64,
                readonly: false,
                id: identification(None).unwrap(),
            }),
            features: mask(&[VIRTIO_BLK_F_FLUSH]),
            queues: 1,
            queue: 0,
            synchronous: false,
            engine: None,
        }
    }

    /// The part of the same device that serves `queue`.
    fn part(&self, queue: u16) -> Self {
        Self {
            target: Arc::clone(&self.target),
            features: self.features,
            queues: self.queues,
            queue,
            synchronous: self.synchronous,
            engine: None,
        }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
            .get(..usize::from(self.queues))
            .unwrap_or_default()
    }

    fn queues(&self, _features: u64) -> Vec<usize> {
        vec![usize::from(self.queue)]
    }

    fn take_parts(&mut self) -> Vec<Box<dyn VirtioDevice>> {
        let parts = (1..self.queues).map(|queue| Box::new(self.part(queue)) as _);
        parts.collect()
    }

    /// `struct virtio_blk_config` (section 5.2.4). Fields without their feature are zero.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; offset_of!(virtio_blk_config, max_secure_erase_sectors)];
        let mut put = |offset: usize, bytes: &[u8]| {
            if let Some(field) = config.get_mut(offset..offset + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(
            offset_of!(virtio_blk_config, capacity),
            &self.target.sectors.to_le_bytes(),
        );
        put(
            offset_of!(virtio_blk_config, seg_max),
            &SEG_MAX.to_le_bytes(),
        );
        put(
            offset_of!(virtio_blk_config, blk_size),
            &512_u32.to_le_bytes(),
        );
        if has(self.features, VIRTIO_BLK_F_MQ) {
            put(
                offset_of!(virtio_blk_config, num_queues),
                &self.queues.to_le_bytes(),
            );
        }
        if has(self.features, VIRTIO_BLK_F_DISCARD) {
            put(
                offset_of!(virtio_blk_config, max_discard_sectors),
                &MAX_DISCARD_SECTORS.to_le_bytes(),
            );
            put(
                offset_of!(virtio_blk_config, max_discard_seg),
                &1_u32.to_le_bytes(),
            );
            // 4 KiB in sectors.
            put(
                offset_of!(virtio_blk_config, discard_sector_alignment),
                &8_u32.to_le_bytes(),
            );
        }
        if has(self.features, VIRTIO_BLK_F_WRITE_ZEROES) {
            put(
                offset_of!(virtio_blk_config, max_write_zeroes_sectors),
                &MAX_WRITE_ZEROES_SECTORS.to_le_bytes(),
            );
            put(
                offset_of!(virtio_blk_config, max_write_zeroes_seg),
                &1_u32.to_le_bytes(),
            );
            put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
        }
        config
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    /// All that the guest wrote is in the file. Having the host write it to the disk is left to whoever
    /// saves the machine: it may take long, and the guest need not stand still for it.
    fn save(&mut self) -> Result<Section, SaveError> {
        Section::new(KIND, VERSION, &())
    }

    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        state.read(KIND, VERSION)
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        let Self {
            target,
            synchronous,
            engine,
            ..
        } = self;
        engine.get_or_insert_with(|| Engine::new(target, *synchronous));
        Ok(())
    }

    fn sources(&self) -> Vec<RawFd> {
        let source = self.engine.as_ref().and_then(Engine::source);
        source.into_iter().collect()
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        match &mut self.engine {
            Some(engine) => engine.serve(index, &self.target, session),
            None => Ok(Progress::Idle),
        }
    }

    fn source_ready(&mut self, _source: usize, session: &mut Session) -> Result<(), QueueError> {
        let queue = usize::from(self.queue);
        match &mut self.engine {
            Some(engine) => engine.serve_source(queue, session),
            None => Ok(()),
        }
    }

    fn in_flight(&self) -> bool {
        self.engine.as_ref().is_some_and(Engine::in_flight)
    }

    fn deactivate(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.clear();
        }
    }
}

/// The 20 bytes that `VIRTIO_BLK_T_GET_ID` answers with.
fn identification(serial: Option<&str>) -> Result<[u8; ID_LENGTH], BlockError> {
    let serial = serial.unwrap_or("nido");
    let mut id = [0; ID_LENGTH];
    match id.get_mut(..serial.len()) {
        Some(field) => field.copy_from_slice(serial.as_bytes()),
        None => return Err(BlockError::Serial(serial.to_owned())),
    }
    Ok(id)
}

fn open(path: &Path, readonly: bool) -> Result<File, BlockError> {
    OpenOptions::new()
        .read(true)
        .write(!readonly)
        // Opening a pipe that nobody has open would wait.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| open_error(path, readonly, error))
}

fn open_error(path: &Path, readonly: bool, error: io::Error) -> BlockError {
    let (mode, hint) = if readonly {
        ("for reading", "")
    } else {
        (
            "for reading and writing",
            ", or give readonly=on if the guest need not write",
        )
    };
    BlockError::Open {
        path: path.to_owned(),
        mode,
        hint,
        error,
    }
}
