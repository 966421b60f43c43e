//! Block devices: read all of one, write a transformed copy to another, compare.
//!
//! The agent fills the first disk with random bytes and names their hash on the command line
//! (`lab.disk=`). It checks the second disk's file itself when the guest has left, by
//! [`transform`].

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{Guest, disk_queues};
use crate::hash::hex;
use crate::sys::{self, ioctl};

/// Unit of I/O: long enough for a request of several segments.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Serial numbers of the disk that is read and of the one that is written.
pub(crate) const SOURCE: &str = "source";
pub(crate) const COPY: &str = "copy";
/// What that one has if QEMU's storage daemon serves it, which does not let itself be told.
const SERVED: &str = "vhost_user_blk";
/// Where Linux describes disks.
const SYSTEM: &str = "/sys/block";
/// Direct I/O wants aligned memory.
const ALIGNMENT: usize = 4096;

/// What the guest writes to the second disk for what it reads from the first, in place; `offset` is
/// where `data` stands.
pub(crate) fn transform(offset: u64, data: &mut [u8]) {
    let mut mask = offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        mask = mask
            .wrapping_mul(0x5851_F42D_4C95_7F2D)
            .wrapping_add(0x1405_7B7E_F767_814F);
        mask
    };
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_le_bytes(*word) ^ next()).to_le_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(next().to_le_bytes()) {
        *byte ^= mask;
    }
}

/// The part at the end of the second disk that the guest discards.
pub(crate) fn discarded_from(size: u64) -> u64 {
    size - (size / 8).next_multiple_of(CHUNK as u64).min(size)
}

/// A chunk in memory that direct I/O accepts.
pub(super) struct Chunk {
    memory: Vec<u8>,
    start: usize,
}

impl Chunk {
    pub(super) fn new() -> Self {
        let memory = vec![0; CHUNK + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start }
    }

    pub(super) fn slice(&mut self, length: usize) -> &mut [u8] {
        let end = self.start + length.min(CHUNK);
        &mut self.memory[self.start..end]
    }
}

/// A disk for direct I/O, and its size.
pub(super) fn open(path: impl AsRef<Path>, write: bool) -> Result<(File, u64)> {
    let path = path.as_ref();
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(libc::O_DIRECT);
    let file = options
        .open(path)
        .with_context(|| path.display().to_string())?;
    let name = path.file_name().context("no name")?;
    let sectors = fs::read_to_string(Path::new(SYSTEM).join(name).join("size")).context("size")?;
    Ok((file, sectors.trim().parse::<u64>()? * 512))
}

/// Calls `run` for each chunk of `size` bytes, in turn on each processor, as each has its own queue of
/// a disk. For a thread that ends with it.
fn each_chunk_by_turns(size: u64, mut run: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
    let mut processors = (0..thread::available_parallelism()?.get()).cycle();
    each_chunk(size, |offset, length| {
        sys::run_on_cpu(processors.next().unwrap_or(0)).context("choosing a processor")?;
        run(offset, length)
    })
}

pub(super) fn each_chunk(size: u64, mut run: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
    let mut offset = 0;
    while offset < size {
        let length = usize::try_from((size - offset).min(CHUNK as u64))?;
        run(offset, length)?;
        offset += length as u64;
    }
    Ok(())
}

/// The virtio disk with this serial number: where drivers are modules, the order of names is up to
/// chance.
pub(super) fn named(serial: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(SYSTEM).context(SYSTEM)? {
        let path = entry?.path();
        let found = fs::read_to_string(path.join("serial")).unwrap_or_default();
        let found = found.trim();
        if found == serial || (serial == COPY && found == SERVED) {
            return Ok(Path::new("/dev").join(path.file_name().context("no name")?));
        }
    }
    bail!("no disk has serial number '{serial}'")
}

/// The source has the announced hash; its transformed copy is written to the other disk, flushed and
/// read back. Both have as many queues as the argument says, if it says any, and all have been used.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let expected = guest
        .parameter("lab.disk")
        .context("lab.disk= is missing on the command line")?;
    let (source, copy) = (named(SOURCE)?, named(COPY)?);
    let copying = thread::scope(|scope| scope.spawn(|| transfer(expected, &source, &copy)).join());
    let done = match copying {
        Ok(done) => done?,
        Err(_) => bail!("the thread panicked"),
    };
    let wanted = match argument {
        "" => None,
        number => Some(number.parse().context("disk=QUEUES")?),
    };
    let queues = [&source, &copy].map(|path| disk_queues::interrupts(path, wanted));
    let [source, copy] = queues;
    Ok(format!(
        "{done}; interrupts by queue: {} and {}",
        source?, copy?
    ))
}

fn transfer(expected: &str, source: &Path, copy: &Path) -> Result<String> {
    let (source, size) = open(source, false)?;
    let (target, target_size) = open(copy, true)?;
    ensure!(
        size == target_size,
        "the disks have {size} and {target_size} bytes"
    );
    let mut chunk = Chunk::new();
    let mut hash = Sha256::new();
    each_chunk_by_turns(size, |offset, length| {
        let data = chunk.slice(length);
        source
            .read_exact_at(data, offset)
            .with_context(|| format!("read at {offset:#x}"))?;
        hash.update(&*data);
        transform(offset, data);
        target
            .write_all_at(data, offset)
            .with_context(|| format!("write at {offset:#x}"))
    })?;
    let found = hex(&hash.finalize());
    ensure!(
        found == expected,
        "the disk's hash is {found}, not {expected}"
    );
    target.sync_all().context("flush")?;

    let mut original = Chunk::new();
    let mut compare = |limit: u64| {
        each_chunk_by_turns(limit, |offset, length| {
            let wanted = original.slice(length);
            source.read_exact_at(wanted, offset)?;
            transform(offset, wanted);
            let data = chunk.slice(length);
            target
                .read_exact_at(data, offset)
                .with_context(|| format!("read back at {offset:#x}"))?;
            ensure!(
                data == wanted,
                "the block at {offset:#x} is not what was written"
            );
            Ok(())
        })
    };
    compare(size)?;
    let discard = discard(&target, copy, size)?;
    compare(discarded_from(size))?;
    Ok(format!("{} KiB read and written, {discard}", size / 1024))
}

fn discard(target: &File, path: &Path, size: u64) -> Result<String> {
    let name = path.file_name().context("no name")?;
    let limit = Path::new(SYSTEM).join(name).join("queue/discard_max_bytes");
    let limit = fs::read_to_string(limit).unwrap_or_default();
    if limit.trim() == "0" {
        bail!("the disk offers no discard");
    }
    let start = discarded_from(size);
    let mut range = [start, size - start];
    ioctl::ioctl(target, &ioctl::BLOCK_DISCARD, &mut range).context("discard")?;
    target.sync_all().context("flush")?;
    Ok(format!("{} KiB discarded", (size - start) / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforming_twice_gives_the_original_and_depends_on_the_place() {
        let mut data = vec![7; 4096];
        transform(4096, &mut data);
        let mut other = vec![7; 4096];
        transform(8192, &mut other);
        assert_ne!(data, other);
        transform(4096, &mut data);
        assert_eq!(data, vec![7; 4096]);
    }

    #[test]
    fn the_discarded_part_is_whole_chunks_at_the_end() {
        assert_eq!(discarded_from(16 << 20), 14 << 20);
        assert_eq!(discarded_from(1 << 20), 768 << 10);
    }
}
