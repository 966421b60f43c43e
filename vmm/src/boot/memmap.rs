//! The memory map that firmware would report, in the numbering that e820 and PVH share.

use crate::layout;

/// What a range of physical addresses is for (ACPI 6.5, table 15.4; PVH uses the same numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Usable memory.
    Ram = 1,
    /// Not to be used for anything else.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

/// One entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// First byte.
    pub(crate) address: u64,
    /// Number of bytes.
    pub(crate) size: u64,
    /// Use.
    pub(crate) kind: Kind,
}

/// The map of a machine with `ram_size` bytes of memory, in ascending order.
pub(crate) fn memory_map(ram_size: u64) -> Vec<Entry> {
    let entry = |address: u64, end: u64, kind| Entry {
        address,
        size: end - address,
        kind,
    };
    let ecam_end = layout::PCI_ECAM + u64::from(layout::PCI_BUSES) * layout::MIB;
    let mut map = vec![
        entry(0, layout::LOW_RAM_END, Kind::Ram),
        entry(
            layout::ACPI_TABLES.start,
            layout::ACPI_TABLES.end,
            Kind::Acpi,
        ),
        entry(
            layout::HIGH_RAM_START,
            layout::low_ram_end(ram_size),
            Kind::Ram,
        ),
        // Linux trusts the configuration window of MCFG only if the map reserves it.
        entry(layout::PCI_ECAM, ecam_end, Kind::Reserved),
        entry(layout::IOAPIC.start, layout::IOAPIC.end, Kind::Reserved),
        entry(layout::VTD.start, layout::VTD.end, Kind::Reserved),
        entry(
            layout::KVM_IDENTITY_MAP,
            layout::KVM_TSS + 0x3000,
            Kind::Reserved,
        ),
    ];
    map.extend(
        layout::ram(ram_size)
            .into_iter()
            .skip(1)
            .map(|(address, size)| Entry {
                address,
                size,
                kind: Kind::Ram,
            }),
    );
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(kind: Kind, size: u64) -> Vec<(u64, u64)> {
        memory_map(size)
            .into_iter()
            .filter(|e| e.kind == kind)
            .map(|e| (e.address, e.address + e.size))
            .collect()
    }

    #[test]
    fn ram_leaves_out_the_holes() {
        assert_eq!(
            ranges(Kind::Ram, 0x2000_0000),
            [(0, 0xa_0000), (0x10_0000, 0x2000_0000)]
        );
        assert_eq!(
            ranges(Kind::Ram, 0x1_0000_0000),
            [
                (0, 0xa_0000),
                (0x10_0000, 0xc000_0000),
                (0x1_0000_0000, 0x1_4000_0000)
            ]
        );
    }

    #[test]
    fn windows_of_the_platform_are_reserved() {
        let reserved = ranges(Kind::Reserved, 0x2000_0000);
        for window in [
            (0xe000_0000, 0xe200_0000),
            (0xfec0_0000, 0xfec0_1000),
            (0xfed9_0000, 0xfed9_1000),
        ] {
            assert!(reserved.contains(&window), "{window:x?}");
        }
        assert_eq!(ranges(Kind::Acpi, 0x2000_0000), [(0xe_0000, 0x10_0000)]);
    }

    #[test]
    fn entries_ascend_and_do_not_overlap() {
        let map = memory_map(0x2_0000_0000);
        for pair in map.windows(2) {
            assert!(
                pair[0].address + pair[0].size <= pair[1].address,
                "{pair:x?}"
            );
        }
    }
}
