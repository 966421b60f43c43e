//! The physical address map and the port map of the machine.
//!
//! ```text
//! 0000_0000  RAM, with the PC's hole at 640 KiB (ACPI tables at 000E_0000)
//! C000_0000  32-bit PCI aperture
//! E000_0000  PCI ECAM, 1 MiB per bus
//! FEC0_0000  IOAPIC      FED9_0000  VT-d      FEE0_0000  local APICs
//! 1_0000_0000  rest of RAM
//! next GiB  memory that is plugged (virtio-mem)
//! upper half of the guest-physical space (at most 512 GiB..1 TiB): 64-bit PCI aperture
//! ```

use std::ops::Range;

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
/// One gibibyte.
pub(crate) const GIB: u64 = 1 << 30;

/// First byte above conventional memory; what follows up to 1 MiB is not RAM to the guest.
pub(crate) const LOW_RAM_END: u64 = 0xa_0000;
/// Where the ACPI tables are, the RSDP first.
pub(crate) const ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;
/// RAM from here up is free for the kernel and its initramfs.
pub(crate) const HIGH_RAM_START: u64 = MIB;
/// RAM below 4 GiB ends here at the latest.
pub(crate) const RAM_HOLE: Range<u64> = 0xc000_0000..4 * GIB;

/// 32-bit PCI memory aperture.
pub(crate) const PCI_MMIO32: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI configuration space (ECAM), from bus 0 on.
pub(crate) const PCI_ECAM: u64 = 0xe000_0000;
/// Buses for which there is room in the ECAM window: bus 0, and one behind each of its root ports, of
/// which there are 31 at most.
pub(crate) const PCI_BUSES: u8 = 32;
/// The IOAPIC's register window.
pub(crate) const IOAPIC: Range<u64> = 0xfec0_0000..0xfec0_1000;
/// The remapping unit's register window.
pub(crate) const VTD: Range<u64> = 0xfed9_0000..0xfed9_1000;
/// Local APICs, and the interrupt address range.
pub(crate) const LOCAL_APIC: Range<u64> = 0xfee0_0000..0xfef0_0000;

/// Three pages that KVM needs on Intel hosts for real-mode emulation (KVM_SET_TSS_ADDR).
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;
/// One more such page (KVM_SET_IDENTITY_MAP_ADDR).
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// First serial port.
pub(crate) const COM1: u16 = 0x3f8;
/// Interrupt line of the first serial port.
pub(crate) const COM1_IRQ: u8 = 4;
/// Pins of the IOAPIC, and so the number of GSIs that KVM reserves for it.
pub(crate) const IOAPIC_PINS: u32 = 24;
/// What boot protocols put into low memory.
pub(crate) mod boot {
    /// Global descriptor table of the boot CPU.
    pub(crate) const GDT: u64 = 0x500;
    /// PVH `hvm_start_info`, its module list and memory map.
    pub(crate) const PVH_START_INFO: u64 = 0x6000;
    /// Linux `boot_params` (the "zero page").
    pub(crate) const BOOT_PARAMS: u64 = 0x7000;
    /// Kernel command line.
    pub(crate) const CMDLINE: u64 = 0x2_0000;
    /// Space kept for the command line, with its terminating zero.
    pub(crate) const CMDLINE_MAX: usize = 0x1_0000;
}

/// The 64-bit PCI aperture of a guest with so many physical address bits: the upper half of its
/// space, but not beyond 1 TiB.
pub(crate) fn pci_mmio64(physical_bits: u8) -> Range<u64> {
    let end = 1u64 << physical_bits.clamp(33, 40);
    end / 2..end
}

/// Guest RAM of `size` bytes as (address, size): below the hole, and above 4 GiB if it does not fit
/// there.
pub(crate) fn ram(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(RAM_HOLE.start);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((RAM_HOLE.end, size - low));
    }
    regions
}

/// Where `further` bytes of memory are that are not RAM to firmware, in a machine with `size` bytes of RAM:
/// above all of it, so that a kernel's blocks of memory are not shared with it. None are nowhere.
pub(crate) fn further(size: u64, further: u64) -> Option<(u64, u64)> {
    let end = ram(size).last().map_or(0, |(address, size)| address + size);
    let start = end.max(RAM_HOLE.end).next_multiple_of(GIB);
    (further != 0).then_some((start, further))
}

/// The end of RAM below 4 GiB.
pub(crate) fn low_ram_end(size: u64) -> u64 {
    size.min(RAM_HOLE.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_stays_in_one_piece_up_to_three_gibibytes() {
        assert_eq!(ram(0x1000_0000), [(0, 0x1000_0000)]);
        assert_eq!(ram(0xc000_0000), [(0, 0xc000_0000)]);
    }

    #[test]
    fn ram_beyond_three_gibibytes_continues_at_four() {
        assert_eq!(
            ram(0xc020_0000),
            [(0, 0xc000_0000), (0x1_0000_0000, 0x20_0000)]
        );
        assert_eq!(low_ram_end(0x2_0000_0000), 0xc000_0000);
    }

    #[test]
    fn memory_that_is_plugged_begins_with_a_gibibyte_above_all_ram() {
        assert_eq!(further(0x1000_0000, 0), None);
        let start = |size| further(size, 0x4000_0000);
        assert_eq!(start(0x1000_0000), Some((0x1_0000_0000, 0x4000_0000)));
        assert_eq!(start(0xc000_0000), Some((0x1_0000_0000, 0x4000_0000)));
        assert_eq!(start(0xc020_0000), Some((0x1_4000_0000, 0x4000_0000)));
        assert_eq!(start(0x1_0000_0000), Some((0x1_4000_0000, 0x4000_0000)));
    }

    #[test]
    fn the_64_bit_aperture_is_the_upper_half_of_the_address_space_up_to_one_tebibyte() {
        assert_eq!(pci_mmio64(36), 0x8_0000_0000..0x10_0000_0000);
        assert_eq!(pci_mmio64(40), 0x80_0000_0000..0x100_0000_0000);
        assert_eq!(pci_mmio64(52), 0x80_0000_0000..0x100_0000_0000);
    }
}
