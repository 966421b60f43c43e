//! The disks of a guest that is a stock distribution: one with its root file system, and one with our
//! program, which its service runs.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Task;

/// File name of the disk with the root file system: a block device that may be written, or an image
/// that must stay as it is.
pub const ROOT_DISK: &str = "debian.raw";
/// File name of the disk with our program.
pub const PROGRAM_DISK: &str = "lab.raw";

/// The disks.
pub(super) struct Stock {
    root: PathBuf,
    program: PathBuf,
}

impl Stock {
    /// Copies the root to the scratch directory if it is an image.
    pub(super) fn create(task: &Task) -> Result<Self> {
        let given = task.files.join(ROOT_DISK);
        let program = task.files.join(PROGRAM_DISK);
        let kind = fs::metadata(&given).with_context(|| given.display().to_string())?;
        if kind.file_type().is_block_device() {
            return Ok(Self {
                root: given,
                program,
            });
        }
        let root = task.scratch.join(ROOT_DISK);
        let copied = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto", "--dereference"])
            .args([&given, &root])
            .status();
        let copied = copied.context("cannot start cp")?;
        ensure!(copied.success(), "cp cannot copy {}", given.display());
        Ok(Self { root, program })
    }

    /// Options of nido.
    pub(super) fn arguments(&self) -> [String; 4] {
        let [root, program] = [&self.root, &self.program].map(|path| path.display().to_string());
        [
            "--disk".to_owned(),
            format!("path={root},id=root"),
            "--disk".to_owned(),
            format!("path={program},id=program,readonly=on"),
        ]
    }

    /// What is wrong with the root file system after the guest has left.
    pub(super) fn verify(&self) -> Result<Option<String>> {
        let path: &Path = &self.root;
        let mut superblock = [0; SUPERBLOCK];
        File::open(path)
            .and_then(|disk| disk.read_exact_at(&mut superblock, SUPERBLOCK as u64))
            .with_context(|| path.display().to_string())?;
        Ok(unclean(&superblock))
    }
}

/// Bytes of the superblock of an ext4, and the byte at which it begins
/// (Documentation/filesystems/ext4/super.rst of Linux).
const SUPERBLOCK: usize = 1024;

/// Why a file system with this superblock was not unmounted in an orderly way.
fn unclean(superblock: &[u8; SUPERBLOCK]) -> Option<String> {
    const MAGIC: u16 = 0xEF53;
    /// Of s_state: unmounted cleanly, and no errors.
    const VALID: u16 = 1;
    /// Of s_feature_incompat: the journal holds what the file system does not.
    const RECOVER: u16 = 4;
    let word = |at: usize| {
        let bytes = superblock.get(at..at + 2).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u16::from_le_bytes)
    };
    let (magic, state, features) = (word(0x38), word(0x3A), word(0x60));
    if magic != MAGIC {
        return Some(format!("the root disk holds no ext4: magic {magic:#x}"));
    }
    (state != VALID || features & RECOVER != 0).then(|| {
        format!("the root was left with state {state:#x}, incompatible features {features:#x}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_clean_when_its_state_says_so_and_its_journal_is_empty() {
        let with = |magic: u16, state: u16, features: u16| {
            let mut superblock = [0; SUPERBLOCK];
            for (at, value) in [(0x38, magic), (0x3A, state), (0x60, features)] {
                superblock[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
            unclean(&superblock)
        };
        assert_eq!(with(0xEF53, 1, 0x2C2), None);
        for (magic, state, features) in [(0, 1, 0), (0xEF53, 0, 0), (0xEF53, 3, 0), (0xEF53, 1, 6)]
        {
            assert!(with(magic, state, features).is_some());
        }
    }
}
