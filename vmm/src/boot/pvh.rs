//! What a PVH kernel is handed: `hvm_start_info` with modules and memory map (Xen, `docs/misc/pvh.pandoc`).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{Immutable, IntoBytes};

use super::memmap::Entry;
use super::{BootError, Initramfs};
use crate::layout::boot::{CMDLINE, PVH_START_INFO};

const MAGIC: u32 = 0x336e_c578;

/// `struct hvm_start_info`, version 1.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    cmdline: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_modlist_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    address: u64,
    size: u64,
    cmdline: u64,
    reserved: u64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

const MODULE_LIST: u64 = PVH_START_INFO + size_of::<StartInfo>() as u64;
const MEMORY_MAP: u64 = MODULE_LIST + size_of::<Module>() as u64;

/// Writes the structures to [`PVH_START_INFO`] and the addresses behind it.
pub(super) fn write_start_info(
    memory: &GuestMemoryMmap<()>,
    map: &[Entry],
    initramfs: Option<Initramfs>,
    rsdp: u64,
) -> Result<(), BootError> {
    let entries: Vec<MemoryMapEntry> = map
        .iter()
        .map(|entry| MemoryMapEntry {
            address: entry.address,
            size: entry.size,
            kind: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let info = StartInfo {
        magic: MAGIC,
        version: 1,
        flags: 0,
        modules: u32::from(initramfs.is_some()),
        module_list: MODULE_LIST,
        cmdline: CMDLINE,
        rsdp,
        memory_map: MEMORY_MAP,
        memory_map_entries: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        reserved: 0,
    };
    memory.write_slice(info.as_bytes(), GuestAddress(PVH_START_INFO))?;
    if let Some(Initramfs { address, size }) = initramfs {
        let module = Module {
            address,
            size,
            cmdline: 0,
            reserved: 0,
        };
        memory.write_slice(module.as_bytes(), GuestAddress(MODULE_LIST))?;
    }
    memory.write_slice(entries.as_bytes(), GuestAddress(MEMORY_MAP))?;
    Ok(())
}
