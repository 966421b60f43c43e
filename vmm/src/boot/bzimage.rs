//! bzImage kernels (Linux, `Documentation/arch/x86/boot.rst`), entered at their 32-bit entry point.

use std::fs::File;
use std::path::Path;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Address, GuestAddress};

use super::memmap::Entry;
use super::{BootError, Format, Initramfs, Loaded};
use crate::layout;
use crate::layout::boot::{BOOT_PARAMS, CMDLINE};
use crate::memory::GuestRam;

/// "Loader without a number of its own".
const LOADER_UNDEFINED: u8 = 0xff;
/// `initrd_addr_max` of kernels older than protocol 2.03, which do not state it.
const INITRD_MAX_DEFAULT: u64 = 0x37ff_ffff;
/// Command line limit of kernels older than protocol 2.06.
const CMDLINE_DEFAULT: usize = 255;
/// `xloadflags`: the initramfs may be anywhere in memory.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;

/// Loads the protected-mode part at 1 MiB.
pub(super) fn load(
    file: &mut File,
    path: &Path,
    memory: &GuestRam,
    ram_size: u64,
) -> Result<Loaded, BootError> {
    let refused = |reason: String| BootError::Load {
        path: path.to_owned(),
        reason,
    };
    let result = BzImage::load(
        memory,
        None,
        file,
        Some(GuestAddress(layout::HIGH_RAM_START)),
    )
    .map_err(|error| refused(error.to_string()))?;
    let Some(header) = result.setup_header else {
        return Err(refused("it has no setup header".to_owned()));
    };
    let entry = result.kernel_load.raw_value();
    // The kernel unpacks itself to its preferred address, or to where it is if that is higher, and
    // needs `init_size` there.
    let unpacked = entry
        .max(header.pref_address)
        .saturating_add(u64::from(header.init_size));
    let end = result.kernel_end.max(unpacked);
    let low_ram_end = layout::low_ram_end(ram_size);
    if end > low_ram_end {
        return Err(refused(format!("it needs memory up to {end:#x}")));
    }
    let header_limit = match header.initrd_addr_max {
        _ if header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 => u64::MAX,
        0 => INITRD_MAX_DEFAULT,
        limit => u64::from(limit),
    };
    Ok(Loaded {
        entry,
        end,
        initramfs_limit: low_ram_end.min(header_limit.saturating_add(1)),
        cmdline_limit: match header.cmdline_size {
            0 => CMDLINE_DEFAULT,
            size => usize::try_from(size).unwrap_or(CMDLINE_DEFAULT),
        },
        format: Format::BzImage(Box::new(header)),
    })
}

/// Writes the "zero page": the kernel's own header, completed by what the boot loader has to tell.
pub(super) fn write_boot_params(
    memory: &GuestRam,
    header: &setup_header,
    map: &[Entry],
    initramfs: Option<Initramfs>,
    rsdp: u64,
    cmdline_size: usize,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: *header,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = u32_of(CMDLINE);
    params.hdr.cmdline_size = u32::try_from(cmdline_size).unwrap_or(u32::MAX);
    if let Some(Initramfs { address, size }) = initramfs {
        params.hdr.ramdisk_image = u32_of(address);
        params.hdr.ramdisk_size = u32_of(size);
    }
    let mut table = params.e820_table;
    let mut entries = 0;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.address,
            size: entry.size,
            r#type: entry.kind as u32,
        };
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    let params = BootParams::new(&params, GuestAddress(BOOT_PARAMS));
    Ok(LinuxBootConfigurator::write_bootparams(&params, memory)?)
}

/// Everything that the header points to is below 4 GiB.
fn u32_of(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}
