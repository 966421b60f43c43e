//! PVH boot parameters: `hvm_start_info` with a module list and a memory map (Xen,
//! `docs/misc/pvh.pandoc`).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::memmap::Entry;
use super::{BootError, Initramfs};
use crate::layout::boot::{CMDLINE, PVH_START_INFO};
use crate::memory::GuestRam;

const MODULE_LIST: u64 = PVH_START_INFO + size_of::<hvm_start_info>() as u64;
const MEMORY_MAP: u64 = MODULE_LIST + size_of::<hvm_modlist_entry>() as u64;

/// Writes the structures to [`PVH_START_INFO`] and the addresses behind it.
pub(super) fn write_start_info(
    memory: &GuestRam,
    map: &[Entry],
    initramfs: Option<Initramfs>,
    rsdp: u64,
) -> Result<(), BootError> {
    let entries: Vec<hvm_memmap_table_entry> = map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.address,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: MODULE_LIST,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(PVH_START_INFO));
    params.set_sections(&entries, GuestAddress(MEMORY_MAP));
    if let Some(Initramfs { address, size }) = initramfs {
        let module = hvm_modlist_entry {
            paddr: address,
            size,
            ..Default::default()
        };
        params.set_modules(&[module], GuestAddress(MODULE_LIST));
    }
    Ok(PvhBootConfigurator::write_bootparams(&params, memory)?)
}
