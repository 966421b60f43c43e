//! The check `disk-queues`: a disk with several queues, each of which interrupts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::disk::{self, CHUNK, COPY, Chunk};
use super::interrupts::{Interrupt, on_each_processor};

/// What each processor reads and writes.
const SHARE: u64 = 8 * CHUNK as u64;

/// A thread on each processor writes a part of the disk [`COPY`] and reads it back, all at the same
/// time; the disk has as many queues as the argument says, and each has interrupted by then. What the
/// disk had is lost.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let expected: usize = argument.parse().context("disk-queues=NUMBER")?;
    let path = disk::named(COPY)?;
    let path = path.as_path();
    let processors = thread::available_parallelism()?.get();
    on_each_processor(processors, |processor| share(path, processor))?;
    let counts = interrupts(path, Some(expected))?;
    Ok(format!("interrupts by queue: {counts}"))
}

/// How often each queue of a virtio disk has interrupted, which is never 0. It has `expected` queues, if
/// that is said.
pub(super) fn interrupts(disk: &Path, expected: Option<usize>) -> Result<String> {
    let block = Path::new("/sys/block").join(disk.file_name().context("no name")?);
    let queues = fs::read_dir(block.join("mq")).context("queues")?.count();
    ensure!(
        expected.is_none_or(|expected| queues == expected),
        "{} has {queues} queues",
        disk.display()
    );
    let device = fs::canonicalize(block.join("device")).context("the disk's device")?;
    let name = device.file_name().and_then(|name| name.to_str());
    let name = name.context("the disk's device has no name")?;
    let mut counts = Vec::new();
    for queue in 0..queues {
        let interrupt = Interrupt::find(&format!("{name}-req.{queue}"))?;
        let count: u64 = interrupt.counts.iter().sum();
        ensure!(
            count != 0,
            "queue {queue} of {} has never interrupted",
            disk.display()
        );
        counts.push(count.to_string());
    }
    Ok(counts.join(" "))
}

/// One processor's part of the disk.
fn share(path: &Path, processor: usize) -> Result<()> {
    let (file, size) = disk::open(path, true)?;
    let start = processor as u64 * SHARE;
    ensure!(start + SHARE <= size, "the disk is too small");
    let mut chunk = Chunk::new();
    let fill = |at: u64| u8::try_from((at / CHUNK as u64 * 7 + processor as u64 + 1) % 251);
    for at in (start..start + SHARE).step_by(CHUNK) {
        let data = chunk.slice(CHUNK);
        data.fill(fill(at)?);
        file.write_all_at(data, at).context("write")?;
        if at % (4 * CHUNK as u64) == 0 {
            file.sync_data().context("flush")?;
        }
    }
    for at in (start..start + SHARE).step_by(CHUNK) {
        let (data, byte) = (chunk.slice(CHUNK), fill(at)?);
        data.fill(0);
        file.read_exact_at(data, at).context("read")?;
        ensure!(
            data.iter().all(|found| *found == byte),
            "other bytes at {at:#x}"
        );
    }
    Ok(())
}
