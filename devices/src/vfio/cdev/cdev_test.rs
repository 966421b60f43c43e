use vfio_ioctls::{VfioRegionInfoCapSparseMmap, VfioRegionSparseMmapArea};

use super::*;

#[test]
fn regions_lie_where_vfio_pci_puts_them() {
    assert_eq!(position(0, 0x10).expect("BAR 0"), 0x10);
    assert_eq!(position(7, 4).expect("configuration"), 0x0700_0000_0004);
    assert!(position(0, 1 << 40).is_err(), "it would be the next region");
}

#[test]
fn what_is_not_described_as_vfio_pci_does_is_misplaced() {
    let place = |region: u32| u64::from(region) << 40;
    // BARs 0 and 2, a ROM, and configuration space.
    let size = |region| match region {
        0 | 2 => 0x4000,
        6 => 0x800,
        7 => 0x1000,
        _ => 0,
    };
    assert_eq!(misplaced(|region| (size(region), place(region))), None);
    // Elsewhere in the file.
    let moved = |region| (size(region), place(region) + u64::from(region == 2));
    assert_eq!(misplaced(moved), Some(2));
    // Region 1 is missing, and all others are counted from there.
    let shifted = |region| match region {
        0 => (size(0), place(0)),
        other => (size(other + 1), place(other + 1)),
    };
    assert_eq!(misplaced(shifted), Some(1));
    // The ROM is missing, and nothing was shown before it.
    let shifted = |region| match region {
        6 => (size(7), place(7)),
        _ => (0, 0),
    };
    assert_eq!(misplaced(shifted), Some(6));
    // There is no configuration space.
    assert_eq!(misplaced(|_| (0, 0)), Some(7));
    // Regions of size 0 may say anything of their place.
    let nowhere = |region| match size(region) {
        0 => (0, 0x55),
        size => (size, place(region)),
    };
    assert_eq!(misplaced(nowhere), None);
}

/// VFIO_REGION_INFO_FLAG_READ, _WRITE and _MMAP.
const ALL: u32 = 7;

fn sparse(areas: &[(u64, u64)]) -> VfioRegionInfoCap {
    let areas = areas
        .iter()
        .map(|&(offset, size)| VfioRegionSparseMmapArea { offset, size });
    VfioRegionInfoCap::SparseMmap(VfioRegionInfoCapSparseMmap {
        areas: areas.collect(),
    })
}

#[test]
fn a_region_without_capabilities_has_no_sparse_areas() {
    let whole: Vec<_> = std::iter::once(0..0x4000).collect();
    assert_eq!(mappable(0x4000, ALL, &[]), whole);
    assert_eq!(
        mappable(0x4000, ALL, &[VfioRegionInfoCap::MsixMappable]),
        whole
    );
}

#[test]
fn sparse_areas_are_found_behind_another_capability() {
    let areas = sparse(&[(0, 0x1000), (0x3000, 0x1000)]);
    let capabilities = [VfioRegionInfoCap::MsixMappable, areas];
    assert_eq!(
        mappable(0x4000, ALL | 8, &capabilities),
        [0..0x1000, 0x3000..0x4000]
    );
    assert_eq!(mappable(0x4000, ALL, &[sparse(&[])]), []);
}

#[test]
fn areas_beyond_all_addresses_are_left_out() {
    let areas = sparse(&[(u64::MAX, 1), (0, 0x1000)]);
    assert_eq!(
        mappable(0x4000, ALL, &[areas]),
        [Range {
            start: 0,
            end: 0x1000
        }]
    );
}

#[test]
fn a_region_that_cannot_be_read_written_and_mapped_is_not_mapped() {
    for flags in [0, 3, 5, 6] {
        assert_eq!(mappable(0x4000, flags, &[]), []);
    }
}
