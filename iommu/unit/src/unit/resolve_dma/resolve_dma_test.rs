//! Ranges of a device as ranges of guest-physical memory.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::UnitConfig;
use crate::unit::testing::Bench;

/// 00:04.0, whose PASID 0 has three pages: 1000h and 2000h side by side, 3000h elsewhere and read-only.
const SOURCE: SourceId = SourceId(0x20);

pub(in crate::unit) fn bench() -> Bench {
    let bench = Bench::new(&UnitConfig::scalable(46));
    // Root, context, PASID directory and PASID entry: first stage, 4 levels, domain 1.
    bench.poke(0x1_0000, &[0x1_1001, 0]);
    bench.poke(0x1_1000 + 0x20 * 32, &[0x1_2001, 0, 0, 0]);
    bench.poke(0x1_2000, &[0x1_3001]);
    bench.poke(0x1_3000, &[0x41, 0x80_0001, 0x1_4000, 0]);
    for table in [0x1_4000_u64, 0x1_5000, 0x1_6000] {
        bench.poke(table, &[(table + 0x1000) | 7]);
    }
    bench.poke(0x1_7008, &[0x5_0007, 0x5_1007, 0x8_0005]);
    bench.write64(0x20, 0x1_0400);
    bench.write32(0x18, 0x4000_0000);
    bench
}

/// Turns translation on.
pub(in crate::unit) fn enable(bench: &Bench) {
    bench.write32(0x18, 0x8000_0000);
}

fn resolve(bench: &Bench, address: u64, length: u64, access: Permissions) -> Answer {
    let found = bench
        .unit
        .resolve_dma(SOURCE, None, address, length, access)?;
    let pair = |range: PhysicalRange| (range.address, range.length);
    Ok(found.into_iter().map(pair).collect())
}

type Answer = Result<Vec<(u64, u64)>, DmaBlocked>;

#[test]
fn neighbours_are_one_range_and_what_is_elsewhere_another() {
    let bench = bench();
    enable(&bench);
    let read = |address, length| resolve(&bench, address, length, Permissions::Read);
    assert_eq!(read(0x1234, 4), Ok(vec![(0x5_0234, 4)]));
    assert_eq!(read(0x1FFF, 2), Ok(vec![(0x5_0FFF, 2)]));
    assert_eq!(
        read(0x1800, 0x2000),
        Ok(vec![(0x5_0800, 0x1800), (0x8_0000, 0x800)])
    );
    assert_eq!(read(0x1000, 0), Ok(vec![]));
}

#[test]
fn it_is_the_access_itself_with_its_flags_and_its_faults() {
    let bench = bench();
    enable(&bench);
    assert!(resolve(&bench, 0x1000, 1, Permissions::ReadWrite).is_ok());
    // Accessed and dirty.
    assert_eq!(
        bench
            .memory
            .read_obj::<u64>(GuestAddress(0x1_7008))
            .unwrap(),
        0x5_0067
    );
    // The third page may not be written, and there is no fourth.
    let blocked = |address| Err(DmaBlocked { address });
    assert_eq!(
        resolve(&bench, 0x2FF0, 0x20, Permissions::Write),
        blocked(0x3000)
    );
    assert_eq!(
        resolve(&bench, 0x3FF0, 0x20, Permissions::Read),
        blocked(0x4000)
    );
    assert_eq!(bench.read64(0x228) >> 63, 1);
    assert_eq!(bench.read64(0x238) >> 63, 1);
    assert_eq!(bench.unit.stats().faults_recorded, 2);
    assert_eq!(
        resolve(&bench, u64::MAX, 2, Permissions::Read),
        blocked(u64::MAX)
    );
}

#[test]
fn without_translation_addresses_are_guest_physical() {
    let bench = bench();
    let found = resolve(&bench, 0x1800, 0x2000, Permissions::Write);
    assert_eq!(found, Ok(vec![(0x1800, 0x2000)]));
}
