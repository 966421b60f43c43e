//! Several boots of one guest: the count on a disk, and kexec.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, ensure};

use super::Guest;
use crate::sys;

/// The disk that counts boots, zeroed by the agent.
const COUNTER: &str = "/dev/vdc";
const MAGIC: u64 = u64::from_le_bytes(*b"nidoboot");

/// Returns how many boots there were before this one, and counts it.
pub(super) fn count_boot() -> Result<u32> {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_SYNC)
        .open(COUNTER)
        .context(COUNTER)?;
    let mut sector = [0; 512];
    disk.read_exact_at(&mut sector, 0)?;
    let (head, _) = sector.split_at(16);
    let word = |range: std::ops::Range<usize>| -> u64 {
        head.get(range)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    let (magic, count) = (word(0..8), word(8..16));
    ensure!(
        magic == MAGIC || (magic == 0 && count == 0),
        "{COUNTER} is no boot counter: {magic:#x}"
    );
    sector[..8].copy_from_slice(&MAGIC.to_le_bytes());
    sector[8..16].copy_from_slice(&(count + 1).to_le_bytes());
    disk.write_all_at(&sector, 0)?;
    disk.sync_all()?;
    Ok(u32::try_from(count)?)
}

/// Starts `/kexec/kernel` with `/kexec/initrd` and the command line of now with `parameter` added. Returns on error only.
pub(super) fn kexec(guest: &Guest, parameter: &str) -> Result<()> {
    let kernel = File::open("/kexec/kernel").context("/kexec/kernel")?;
    let initrd = File::open("/kexec/initrd").context("/kexec/initrd")?;
    let command_line = format!("{} {parameter}", guest.command_line.trim());
    sys::kexec_load(kernel.as_fd(), initrd.as_fd(), &command_line).context("kexec_file_load")?;
    let loaded = fs::read_to_string("/sys/kernel/kexec_loaded").unwrap_or_default();
    ensure!(loaded.trim() != "0", "the kernel was not loaded");
    Err(sys::reboot(sys::Leave::Kexec)).context("kexec")
}
