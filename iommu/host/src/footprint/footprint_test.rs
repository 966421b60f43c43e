//! What areas are counted as.

use proptest::prelude::*;

use super::*;
use crate::host_iommu::Rights;

fn area(input: u64, length: u64) -> Run {
    Run {
        input,
        output: 0,
        length,
        rights: Rights::ALL,
    }
}

fn cost(areas: &[Run]) -> u64 {
    let mut footprint = Footprint::default();
    areas.iter().for_each(|area| footprint.add(area));
    footprint.bytes()
}

#[test]
fn the_first_page_of_a_region_costs_its_tables_and_its_neighbours_do_not() {
    // Tables of four levels.
    assert_eq!(cost(&[area(0x1000, 0x1000)]), 320 + 4 * 4096);
    assert_eq!(
        cost(&[area(0x1000, 0x1000), area(0x1f_f000, 0x1000)]),
        2 * 320 + 4 * 4096
    );
    // The next 2 MiB, the next 1 GiB, the next 512 GiB.
    assert_eq!(
        cost(&[area(0, 0x1000), area(0x20_0000, 0x1000)]),
        2 * 320 + 5 * 4096
    );
    assert_eq!(
        cost(&[area(0, 0x1000), area(0x4000_0000, 0x1000)]),
        2 * 320 + 6 * 4096
    );
    assert_eq!(
        cost(&[area(0, 0x1000), area(0x80_0000_0000, 0x1000)]),
        2 * 320 + 7 * 4096
    );
}

#[test]
fn a_long_area_costs_a_table_for_each_region() {
    // 1 GiB: 512 of the lowest level, and three above.
    assert_eq!(cost(&[area(0, 0x4000_0000)]), 320 + 515 * 4096);
    // Half of one region, one, and half of another.
    assert_eq!(cost(&[area(0x10_0000, 0x40_0000)]), 320 + 6 * 4096);
}

proptest! {
    #[test]
    fn what_goes_costs_nothing_more(
        inputs in prop::collection::btree_map(0..0x400_u64, 1..8_u64, 0..40),
        size in 12..34_u8,
    ) {
        let areas: Vec<_> = inputs
            .iter()
            .map(|(input, pages)| area(input << size, pages * 0x1000))
            .collect();
        let mut footprint = Footprint::default();
        areas.iter().for_each(|area| footprint.add(area));
        let (gone, stay) = areas.split_at(areas.len() / 2);
        gone.iter().for_each(|area| footprint.remove(area));
        prop_assert_eq!(footprint.bytes(), cost(stay));
        stay.iter().for_each(|area| footprint.remove(area));
        prop_assert_eq!(footprint.bytes(), 0);
        prop_assert!(footprint.regions.is_empty());
    }
}
