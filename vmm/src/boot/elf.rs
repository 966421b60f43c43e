//! ELF kernels with a PVH entry note.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress};

use super::{BootError, Format, Loaded};
use crate::layout;
use crate::memory::GuestRam;

/// Longest command line that Linux takes through PVH (its COMMAND_LINE_SIZE on x86, without the
/// zero).
const CMDLINE_LIMIT: usize = 2047;

/// Most program headers. Kernels have a handful.
const HEADERS: u16 = 64;
/// Most bytes of notes in one segment: they are read one by one.
const NOTES: u64 = 64 << 10;

/// Loads the image at the addresses that it names.
pub(super) fn load(
    file: &mut File,
    path: &Path,
    memory: &GuestRam,
    ram_size: u64,
    reused: bool,
) -> Result<Loaded, BootError> {
    let refused = |reason: String| BootError::Load {
        path: path.to_owned(),
        reason,
    };
    let headers = program_headers(file).map_err(|error| refused(error.to_string()))?;
    check(&headers, ram_size).map_err(&refused)?;
    let result = Elf::load(memory, None, file, None).map_err(|error| refused(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = result.pvh_boot_cap else {
        return Err(BootError::NoPvhNote {
            path: path.to_owned(),
        });
    };
    if reused {
        clear_tails(&headers, memory).map_err(|error| refused(error.to_string()))?;
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
fn clear_tails(headers: &[Elf64_Phdr], memory: &GuestRam) -> io::Result<()> {
    static ZEROES: [u8; 0x1_0000] = [0; 0x1_0000];

    for header in headers {
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

/// Whether loading takes no longer than filling guest memory once, which is more than any kernel
/// asks for: a file may be small, and its segments all of memory.
fn check(headers: &[Elf64_Phdr], ram_size: u64) -> Result<(), String> {
    let end = layout::low_ram_end(ram_size);
    let mut places = Vec::new();
    for header in headers {
        let (size, address) = (header.p_memsz.max(header.p_filesz), header.p_paddr);
        match header.p_type {
            PT_NOTE if header.p_filesz > NOTES => {
                return Err(format!("{} bytes of notes", header.p_filesz));
            }
            PT_LOAD if size > 0 => places.push((address, address.saturating_add(size))),
            _ => {}
        }
    }
    places.sort_unstable();
    if let Some((start, beyond)) = places.iter().find(|(_, beyond)| *beyond > end) {
        return Err(format!(
            "a segment at {start:#x} ends at {beyond:#x}, and memory at {end:#x}"
        ));
    }
    let overlap = places.windows(2).find_map(|pair| match pair {
        [(_, end), (start, _)] => (start < end).then_some(*start),
        _ => None,
    });
    match overlap {
        Some(start) => Err(format!("segments overlap at {start:#x}")),
        None => Ok(()),
    }
}

/// What follows the header, which the loader has not looked at.
fn program_headers(file: &mut File) -> io::Result<Vec<Elf64_Phdr>> {
    let mut header = Elf64_Ehdr::default();
    file.rewind()?;
    file.read_exact(header.as_mut_slice())?;
    if header.e_phnum > HEADERS {
        let many = format!("{} program headers", header.e_phnum);
        return Err(io::Error::other(many));
    }
    file.seek(SeekFrom::Start(header.e_phoff))?;
    (0..header.e_phnum)
        .map(|_| {
            let mut entry = Elf64_Phdr::default();
            file.read_exact(entry.as_mut_slice())?;
            Ok(entry)
        })
        .collect()
}
