//! Areas stay what was announced.

use super::*;
use crate::host_iommu::Rights;

const READ: Rights = Rights {
    read: true,
    write: false,
};

fn run(input: u64, output: u64, length: u64) -> Run {
    Run {
        input,
        output,
        length,
        rights: Rights::ALL,
    }
}

fn areas(runs: &[Run]) -> Areas {
    let mut areas = Areas::default();
    runs.iter()
        .for_each(|run| areas.insert(*run, areas.cost_of(run)));
    areas
}

fn changed(areas: &Areas, inputs: Range<u64>, runs: &[Run]) -> Vec<u64> {
    let mut changed = Vec::new();
    let mut budget = Budget::new(0, 0);
    areas
        .find_changed(&inputs, runs, &mut changed, &mut budget)
        .unwrap();
    changed.iter().map(|area| area.input).collect()
}

fn added(areas: &Areas, runs: &[Run], removed: &[Run]) -> (Vec<(u64, u64)>, u64) {
    let mut added = Vec::new();
    let splits = areas.find_added(runs, removed, &mut added);
    (
        added.iter().map(|run| (run.input, run.length)).collect(),
        splits,
    )
}

#[test]
fn what_is_part_of_a_run_stays_and_is_not_merged_with_its_neighbours() {
    let areas = areas(&[run(0x2000, 0x9_2000, 0x2000)]);
    let runs = [run(0, 0x9_0000, 0x8000)];
    assert_eq!(changed(&areas, 0..0x8000, &runs), [0_u64; 0]);
    assert_eq!(
        added(&areas, &runs, &[]),
        (vec![(0, 0x2000), (0x4000, 0x4000)], 0)
    );
}

#[test]
fn other_places_other_rights_and_missing_pages_are_changes() {
    let areas = areas(&[
        run(0x1000, 0x9_1000, 0x1000),
        run(0x2000, 0x9_2000, 0x1000),
        run(0x3000, 0x9_3000, 0x2000),
        run(0x5000, 0x9_5000, 0x1000),
        run(0x6000, 0x9_6000, 0x1000),
    ]);
    let runs = [
        run(0x1000, 0x8_1000, 0x1000),
        Run {
            rights: READ,
            ..run(0x2000, 0x9_2000, 0x1000)
        },
        run(0x3000, 0x9_3000, 0x1000),
        run(0x5000, 0x9_5000, 0x1000),
    ];
    assert_eq!(
        changed(&areas, 0..0x8000, &runs),
        [0x1000, 0x2000, 0x3000, 0x6000]
    );
}

#[test]
fn areas_that_reach_out_of_the_range_are_compared_within_it() {
    let areas = areas(&[run(0, 0x9_0000, 0x4000), run(0x6000, 0x9_6000, 0x4000)]);
    let within = [run(0x3000, 0x9_3000, 0x1000), run(0x6000, 0x9_6000, 0x1000)];
    assert_eq!(changed(&areas, 0x3000..0x7000, &within), [0_u64; 0]);
    assert_eq!(changed(&areas, 0x3000..0x7000, &within[1..]), [0]);
    assert_eq!(changed(&areas, 0x3000..0x7000, &within[..1]), [0x6000]);
    assert_eq!(changed(&areas, 0x4000..0x6000, &[]), [0_u64; 0]);
}

#[test]
fn what_stays_of_an_area_is_cut_into_aligned_pieces() {
    let old = run(0x1000, 0x9_1000, 0xf000);
    let runs = [run(0x1000, 0x9_1000, 0x5000), run(0x7000, 0x9_7000, 0xa000)];
    assert_eq!(
        added(&areas(&[]), &runs, &[old]),
        (
            vec![
                (0x1000, 0x1000),
                (0x2000, 0x2000),
                (0x4000, 0x2000),
                (0x7000, 0x1000),
                (0x8000, 0x8000),
                // New: it is no part of what was announced as one.
                (0x1_0000, 0x1000),
            ],
            1
        )
    );
}

#[test]
fn what_replaces_an_area_is_not_cut() {
    let old = run(0x1000, 0x9_1000, 0x3000);
    let runs = [run(0x1000, 0x8_1000, 0x3000)];
    assert_eq!(
        added(&areas(&[]), &runs, &[old]),
        (vec![(0x1000, 0x3000)], 0)
    );
}

#[test]
fn bytes_and_areas_are_counted() {
    let mut areas = areas(&[run(0, 0, 0x3000), run(0x4000, 0, 0x1000)]);
    assert_eq!((areas.len(), areas.bytes()), (2, 0x4000));
    areas.remove(&run(0, 0, 0x3000));
    areas.remove(&run(0, 0, 0x3000));
    assert_eq!((areas.len(), areas.bytes()), (1, 0x1000));
    assert_eq!(areas.overlapping(&(0x4fff..0x5000)).count(), 1);
    assert_eq!(areas.overlapping(&(0x5000..0x6000)).count(), 0);
    assert_eq!(areas.overlapping(&(0..0x4000)).count(), 0);
}
