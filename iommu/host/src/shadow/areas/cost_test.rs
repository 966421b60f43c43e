//! What areas cost.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::footprint::AREA;
use crate::host_iommu::Rights;

fn area(input: u64, length: u64) -> Run {
    Run {
        input,
        output: 0,
        length,
        rights: Rights::ALL,
    }
}

/// Bytes of a table, and what a table of each level covers, as powers of two (section 3.7).
const TABLE: u64 = 4096;
const LEVELS: [u8; 4] = [21, 30, 39, 48];

fn insert(areas: &mut Areas, area: &Run) {
    let cost = areas.cost_of(area);
    areas.insert(*area, cost);
}

fn cost(areas: &[Run]) -> u64 {
    let mut all = Areas::default();
    areas.iter().for_each(|area| insert(&mut all, area));
    all.cost()
}

/// The same by the tables that there are.
fn counted(areas: &[Run]) -> u64 {
    let mut tables = BTreeSet::new();
    for area in areas {
        for level in LEVELS {
            let numbers = area.input >> level..=(area.end() - 1) >> level;
            tables.extend(numbers.map(|number| (level, number)));
        }
    }
    AREA * areas.len() as u64 + TABLE * tables.len() as u64
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
    fn what_comes_and_goes_in_any_order_costs_the_tables_that_it_needs(
        inputs in prop::collection::btree_map(0..0x400_u64, 1..8_u64, 0..40),
        size in 12..34_u8,
        order in any::<u64>(),
    ) {
        // Pages in an eighth of what lies between two inputs at most, so that none overlap.
        let mut areas: Vec<_> = inputs
            .iter()
            .map(|(input, pages)| area(input << size, (pages << size >> 3).max(0x1000) & !0xfff))
            .collect();
        areas.sort_by_key(|area| (area.input ^ order).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        prop_assert_eq!(cost(&areas), counted(&areas));
        let mut all = Areas::default();
        areas.iter().for_each(|area| insert(&mut all, area));
        for (at, area) in areas.iter().enumerate() {
            all.remove(area);
            prop_assert_eq!(all.cost(), counted(&areas[at + 1..]));
        }
    }
}
