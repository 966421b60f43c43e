//! The check `disk-queues`: a disk with several queues, each of which interrupts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::disk::{self, CHUNK, Chunk};
use super::interrupts::Interrupt;
use crate::sys;

/// What each processor reads and writes.
const SHARE: u64 = 8 * CHUNK as u64;

/// /dev/vdb has as many queues as the argument says, which is one for each processor. A thread on
/// each of these writes a part of the disk and reads it back, all at the same time, and each queue
/// has interrupted by then. What the disk had is lost.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let expected: usize = argument.parse().context("disk-queues=NUMBER")?;
    let queues = fs::read_dir("/sys/block/vdb/mq")
        .context("queues of vdb")?
        .count();
    ensure!(queues == expected, "vdb has {queues} queues");
    let device = fs::canonicalize("/sys/block/vdb/device").context("vdb's device")?;
    let name = device.file_name().and_then(|name| name.to_str());
    let name = name.context("vdb's device has no name")?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..queues)
            .map(|processor| scope.spawn(move || share(processor)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(_) => anyhow::bail!("a thread panicked"),
            })
    })?;
    let mut counts = Vec::new();
    for queue in 0..queues {
        let interrupt = Interrupt::find(&format!("{name}-req.{queue}"))?;
        let count: u64 = interrupt.counts.iter().sum();
        ensure!(count != 0, "queue {queue} has never interrupted");
        counts.push(count.to_string());
    }
    Ok(format!("interrupts by queue: {}", counts.join(" ")))
}

/// One processor's part of the disk.
fn share(processor: usize) -> Result<()> {
    sys::run_on_cpu(processor).context("choosing a processor")?;
    let (file, size) = disk::open("/dev/vdb", true)?;
    let start = processor as u64 * SHARE;
    ensure!(start + SHARE <= size, "vdb is too small");
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
