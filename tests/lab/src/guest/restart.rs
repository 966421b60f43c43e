//! Several boots of one guest: the count on a disk, kexec, and a kernel for when this one crashes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Guest;
use crate::cpio::Archive;
use crate::kernel_log;
use crate::sys::{self, Start};

/// The disk that counts boots, zeroed by the agent.
const COUNTER: &str = "/dev/vdc";
/// Where the kernel for kexec is, and the kernel.
const KEXEC: &str = "kexec";
const KERNEL: &str = "/kexec/kernel";
/// Its initramfs.
const INITRD: &str = "/tmp/initrd";
/// Directories of the root that are no part of the initramfs.
const OTHERS: &[&str] = &["dev", "proc", "sys", "tmp"];
/// The memory of the kernel before a crash kernel.
const CORE: &str = "/proc/vmcore";
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

/// Starts [`KERNEL`] with the command line of now and `parameter`. Its initramfs is this one, with
/// the kernel in it, so that it can do the same. Returns on error only.
pub(super) fn kexec(guest: &Guest, parameter: &str) -> Result<()> {
    let command_line = format!("{} {parameter}", guest.command_line.trim());
    load(&command_line, OTHERS, Start::OnLeave)?;
    Err(sys::reboot(sys::Leave::Kexec)).context("kexec")
}

/// Has [`KERNEL`] start when this one panics, in the memory that `crashkernel=` sets aside: one
/// processor, as the others are not stopped in an orderly way, and drivers that reset what they find.
pub(super) fn load_crash_kernel(guest: &Guest) -> Result<()> {
    let words = guest.command_line.split_whitespace();
    let words = words.filter(|word| !word.starts_with("crashkernel="));
    let words: Vec<&str> = words.chain(["nr_cpus=1", "reset_devices"]).collect();
    let others = [OTHERS, &[KEXEC]].concat();
    load(&words.join(" "), &others, Start::OnPanic)
}

/// Loads [`KERNEL`]. Its initramfs is this one without `others`.
fn load(command_line: &str, others: &[&str], start: Start) -> Result<()> {
    let kernel = File::open(KERNEL).context(KERNEL)?;
    let archive = Archive::new(BufWriter::new(File::create(INITRD).context(INITRD)?))?;
    pack(Path::new("/"), others, archive)?
        .flush()
        .context(INITRD)?;
    let initrd = File::open(INITRD).context(INITRD)?;
    sys::kexec_load(kernel.as_fd(), initrd.as_fd(), command_line, start)
        .context("kexec_file_load")?;
    let loaded = match start {
        Start::OnLeave => "/sys/kernel/kexec_loaded",
        Start::OnPanic => "/sys/kernel/kexec_crash_loaded",
    };
    let loaded = fs::read_to_string(loaded).context(loaded)?;
    ensure!(loaded.trim() == "1", "the kernel was not loaded");
    Ok(())
}

/// This is a crash kernel: the memory of the one before is there as an ELF file, and the tables of
/// that one, for DMA and for interrupts, were taken over. (Of a bus with a function whose entry is still such
/// a copy, debugfs shows nothing, so that the check `translation` has no say there.)
pub(super) fn crash_kernel(_guest: &Guest, _argument: &str) -> Result<String> {
    let mut magic = [0; 4];
    let core = File::open(CORE).context(CORE)?;
    core.read_exact_at(&mut magic, 0).context(CORE)?;
    ensure!(magic == *b"\x7fELF", "{CORE} is no ELF file");
    let log = kernel_log::read()?;
    for wanted in [
        "Copied translation tables from previous kernel for dmar0",
        "Copied IR table for dmar0 from previous kernel",
    ] {
        let found = log.iter().any(|line| line.contains(wanted));
        ensure!(found, "the kernel does not say '{wanted}'");
    }
    Ok(format!("{} bytes in {CORE}", core.metadata()?.len()))
}

/// Packs what is in `root` but not in `others`.
fn pack<W: Write>(root: &Path, others: &[&str], mut archive: Archive<W>) -> Result<W> {
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let name = path.to_str().context("a name that is no text")?;
            if others.contains(&name) {
                continue;
            }
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                archive.directory(name)?;
                directories.push(path);
            } else if metadata.is_symlink() {
                let target = fs::read_link(entry.path())?;
                archive.symlink(name, &target.to_string_lossy())?;
            } else {
                let content = fs::read(entry.path()).with_context(|| format!("/{name}"))?;
                archive.file(name, metadata.mode() & 0o777, &content)?;
            }
        }
    }
    Ok(archive.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initramfs_is_packed_with_its_directories_and_without_what_is_mounted() {
        let root = std::env::temp_dir().join(format!("nido-pack-{}", std::process::id()));
        fs::create_dir_all(root.join("proc")).unwrap();
        fs::create_dir_all(root.join("kexec")).unwrap();
        fs::write(root.join("init"), "the program").unwrap();
        fs::write(root.join("kexec/kernel"), "the kernel").unwrap();
        fs::write(root.join("proc/cmdline"), "a parameter").unwrap();
        std::os::unix::fs::symlink("init", root.join("link")).unwrap();
        let packed = pack(&root, OTHERS, Archive::new(Vec::new()).unwrap()).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let text = String::from_utf8_lossy(&packed);
        for there in [
            "init\0",
            "the program",
            "kexec/kernel\0",
            "the kernel",
            "link\0",
        ] {
            assert!(text.contains(there), "{there:?}");
        }
        assert!(text.find("kexec\0").unwrap() < text.find("kexec/kernel\0").unwrap());
        assert!(!text.contains("a parameter") && !text.contains("proc"));
    }
}
