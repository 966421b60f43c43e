//! An assigned nvme disk: a file system on it, its speed, and heavy load.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Guest;
use super::disk::{self, CHUNK, Chunk};
use super::disk_speed;
use crate::sys;

/// The disk that comes first.
pub(super) const DISK: &str = "/dev/nvme0n1";
const MKFS: &str = "/sbin/mkfs.ext4";
const MOUNT_POINT: &str = "/tmp/disk";
const MIB: u64 = 1 << 20;
/// Longest time until the driver has found the disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `path` is there and opens: a disk has a name a moment before it can be opened.
pub(super) fn wait_for(path: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = File::open(path) {
        ensure!(Instant::now() < deadline, "there is no {path}: {error}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn rate(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(0.001);
    let mib = u32::try_from(bytes / MIB).unwrap_or(u32::MAX);
    format!("{:.0} MiB/s", f64::from(mib) / seconds)
}

fn open_direct(path: &str, create: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(create)
        .custom_flags(libc::O_DIRECT);
    options.open(path).with_context(|| path.to_owned())
}

/// Writes a pattern over the first `size` bytes.
fn write_pattern(file: &File, size: u64) -> Result<()> {
    let mut chunk = Chunk::new();
    disk::each_chunk(size, |offset, length| {
        let data = chunk.slice(length);
        data.fill(0);
        disk::transform(offset, data);
        file.write_all_at(data, offset)
            .with_context(|| format!("write at {offset:#x}"))
    })?;
    file.sync_all().context("flush")
}

/// Reads the pattern back.
fn read_pattern(file: &File, size: u64) -> Result<()> {
    let (mut chunk, mut expected) = (Chunk::new(), Chunk::new());
    disk::each_chunk(size, |offset, length| {
        let data = chunk.slice(length);
        file.read_exact_at(data, offset)
            .with_context(|| format!("read at {offset:#x}"))?;
        let wanted = expected.slice(length);
        wanted.fill(0);
        disk::transform(offset, wanted);
        ensure!(
            data == wanted,
            "the block at {offset:#x} is not what was written"
        );
        Ok(())
    })
}

/// Writes a pattern to the start of a disk and reads it back, without a file system.
pub(super) fn exercise(path: &str, size: u64) -> Result<()> {
    let file = open_direct(path, false)?;
    write_pattern(&file, size)?;
    read_pattern(&file, size)
}

/// Makes a file system, writes a file of as many MiB as the argument says, mounts again and reads
/// back, all by direct I/O. With a second number, as in `256/32`, the second disk gets a file of
/// that size too.
pub(super) fn file_system(_guest: &Guest, argument: &str) -> Result<String> {
    let mut results = Vec::new();
    for (index, size) in argument.split('/').enumerate() {
        let size = size.parse::<u64>().context("nvme=MIB/...")? * MIB;
        let path = format!("/dev/nvme{index}n1");
        wait_for(&path)?;
        results.push(fill_disk(&path, size).with_context(|| path.clone())?);
    }
    Ok(results.join("; "))
}

fn fill_disk(path: &str, size: u64) -> Result<String> {
    let made = Command::new(MKFS)
        .env("LD_LIBRARY_PATH", "/lib")
        .args(["-q", "-F", path])
        .output()
        .context(MKFS)?;
    ensure!(
        made.status.success(),
        "{MKFS}: {} {}",
        made.status,
        String::from_utf8_lossy(&made.stderr)
    );
    fs::create_dir_all(MOUNT_POINT)?;
    let name = format!("{MOUNT_POINT}/file");
    sys::mount(path, MOUNT_POINT, "ext4", "").context("mount")?;
    let started = Instant::now();
    write_pattern(&open_direct(&name, true)?, size)?;
    let writing = started.elapsed();
    sys::unmount(MOUNT_POINT).context("unmount")?;
    sys::mount(path, MOUNT_POINT, "ext4", "").context("mount again")?;
    let started = Instant::now();
    let file = open_direct(&name, false)?;
    ensure!(
        file.metadata()?.len() == size,
        "the file has another size now"
    );
    read_pattern(&file, size)?;
    let reading = started.elapsed();
    drop(file);
    sys::unmount(MOUNT_POINT).context("unmount")?;
    Ok(format!(
        "{path}: {} MiB written at {} and read at {}",
        size / MIB,
        rate(size, writing),
        rate(size, reading)
    ))
}

/// Threads read and write the disk until the guest ends; returns when each has had some of its
/// requests answered.
pub(super) fn load(_guest: &Guest, _argument: &str) -> Result<String> {
    const THREADS: u64 = 4;
    const ENOUGH: u32 = 20;
    wait_for(DISK)?;
    let (_, size) = disk::open(DISK, true)?;
    let part = size / THREADS / CHUNK as u64 * CHUNK as u64;
    let (sender, receiver) = mpsc::channel();
    for thread in 0..THREADS {
        let file = open_direct(DISK, false)?;
        let sender = sender.clone();
        thread::spawn(move || {
            let mut chunk = Chunk::new();
            let chunks = part / CHUNK as u64;
            for round in 0_u32.. {
                let offset = thread * part + u64::from(round) % chunks * CHUNK as u64;
                let data = chunk.slice(CHUNK);
                let done = if (round / 2).is_multiple_of(2) {
                    file.write_all_at(data, offset)
                } else {
                    file.read_exact_at(data, offset)
                };
                let failed = done.is_err();
                if failed || round == ENOUGH {
                    let _ = sender.send(done);
                }
                if failed {
                    break;
                }
            }
        });
    }
    for thread in 0..THREADS {
        match receiver.recv_timeout(Duration::from_secs(20)) {
            Ok(done) => done.with_context(|| format!("thread {thread}"))?,
            Err(_) => bail!("only {thread} of {THREADS} threads get answers"),
        }
    }
    Ok(format!(
        "{THREADS} threads of {} KiB requests",
        CHUNK / 1024
    ))
}

/// How fast one thread reads and writes by direct I/O.
pub(super) fn speed(_guest: &Guest, _argument: &str) -> Result<String> {
    wait_for(DISK)?;
    disk_speed::measure(DISK, disk_speed::LONG)
}
