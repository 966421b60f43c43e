//! ELF kernels with a PVH entry note.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, Format, Loaded};
use crate::layout;

/// Longest command line that Linux takes through PVH (its COMMAND_LINE_SIZE on x86, without the
/// zero).
const CMDLINE_LIMIT: usize = 2047;

/// Loads the image at the addresses that it names.
pub(super) fn load(
    file: &mut File,
    path: &Path,
    memory: &GuestMemoryMmap<()>,
    ram_size: u64,
    reused: bool,
) -> Result<Loaded, BootError> {
    let refused = |reason: String| BootError::Load {
        path: path.to_owned(),
        reason,
    };
    let result = Elf::load(memory, None, file, None).map_err(|error| refused(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = result.pvh_boot_cap else {
        return Err(BootError::NoPvhNote {
            path: path.to_owned(),
        });
    };
    if reused {
        clear_tails(file, memory).map_err(|error| refused(error.to_string()))?;
    }
    Ok(Loaded {
        format: Format::Pvh,
        entry: entry.raw_value(),
        end: result.kernel_end,
        initramfs_limit: layout::low_ram_end(ram_size),
        cmdline_limit: CMDLINE_LIMIT,
    })
}

/// Zeroes what segments have in memory beyond their file contents: fresh memory is zero there, used
/// memory is not.
fn clear_tails(file: &mut File, memory: &GuestMemoryMmap<()>) -> io::Result<()> {
    static ZEROES: [u8; 0x1_0000] = [0; 0x1_0000];

    for header in program_headers(file)? {
        if header.p_type != PT_LOAD {
            continue;
        }
        let mut address = header.p_paddr.saturating_add(header.p_filesz);
        let end = header.p_paddr.saturating_add(header.p_memsz);
        while address < end {
            let chunk =
                usize::try_from(end - address).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            memory
                .write_slice(&ZEROES[..chunk], GuestAddress(address))
                .map_err(io::Error::other)?;
            address += chunk as u64;
        }
    }
    Ok(())
}

/// The loader has accepted the file, so its header is a valid one.
fn program_headers(file: &mut File) -> io::Result<Vec<Elf64_Phdr>> {
    let mut header = Elf64_Ehdr::default();
    file.rewind()?;
    file.read_exact(header.as_mut_slice())?;
    file.seek(SeekFrom::Start(header.e_phoff))?;
    (0..header.e_phnum)
        .map(|_| {
            let mut entry = Elf64_Phdr::default();
            file.read_exact(entry.as_mut_slice())?;
            Ok(entry)
        })
        .collect()
}
