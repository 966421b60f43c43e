//! Data that a device writes to the entries that led it there.

use intel_vtd::{Scalable, Stages, UnitConfig};

use super::{Access, Manner};
use crate::driver::entries::{self, PasidEntry};
use crate::driver::tables::{Pages, Space, Stage};
use crate::machine::{Machine, POOL, SCALABLE_ROOT};
use crate::rng::Rng;

/// Where the top table of the device's space is mapped.
const TABLE: u64 = 0x1000;
/// Where a page of data is mapped.
const DATA: u64 = 0x2000;

/// A machine that keeps translations, and the top entry for all that its first device may reach.
fn machine() -> (Machine, u64) {
    let config = UnitConfig::legacy(46)
        .with_scalable(Some(Scalable::new(Stages::First)))
        .with_keep_translations(true);
    let mut machine = Machine::new(&config, &mut Rng::new(1)).expect("a machine");
    let mut pages = Pages::new(POOL, 0x6_0000);
    let ram = &mut machine.driver.ram;
    let mut space = Space::new(Stage::First, 4, 0, &mut pages, ram).expect("a page");
    for (input, target) in [(TABLE, space.top), (DATA, 0x6_0000)] {
        space
            .map(input, target, 1, 0x7, &mut pages, ram)
            .expect("pages");
    }
    let pasid = PasidEntry {
        pgtt: 1,
        snoop_walk: true,
        did: 4,
        first: space.top,
        ..PasidEntry::default()
    };
    ram.store(SCALABLE_ROOT, &entries::scalable_root(0x7000, 0));
    ram.store(0x7100, &entries::scalable_context(0xa000, 0));
    ram.store(0xa000, &[entries::directory(0xd000)]);
    ram.store(0xd000, &pasid.words());
    let top_entry = ram.load(space.top);
    machine.sync();
    machine.image.forget();
    machine.set_root(SCALABLE_ROOT, 1);
    machine.translate(true);
    (machine, top_entry)
}

fn access(address: u64, write: bool, word: u64) -> Access {
    Access {
        view: 0,
        pasid: None,
        privileged: false,
        translated: false,
        address,
        data: word.to_le_bytes().to_vec(),
        write,
        manner: Manner::Slice,
    }
}

fn count(machine: &Machine, what: &str) -> u64 {
    machine.tally.get(what).copied().unwrap_or(0)
}

/// The write marks the entry as accessed before its data get there, so the entry may be cached as
/// it was by then, although memory never shows it.
#[test]
fn an_entry_that_leads_to_itself_may_be_cached_until_it_is_invalidated() {
    let (mut machine, _) = machine();
    machine.dma(access(TABLE, true, 0)).expect("permitted");
    machine.dma(access(DATA, false, 0)).expect("permitted");
    assert_eq!(count(&machine, "dma memory, old"), 1);
    machine.invalidate_all(false);
    machine.dma(access(DATA, false, 0)).expect("permitted");
    assert_eq!(count(&machine, "dma code 71"), 1);
}

/// As above, with data that take nothing but the mark away.
#[test]
fn an_entry_whose_mark_is_overwritten_may_be_cached_as_marked() {
    let (mut machine, top_entry) = machine();
    assert_eq!(top_entry & 0x20, 0, "A");
    machine
        .dma(access(TABLE, true, top_entry))
        .expect("permitted");
    machine.dma(access(DATA, false, 0)).expect("permitted");
    assert_eq!(count(&machine, "dma memory, old"), 1);
    machine.invalidate_all(false);
    machine.dma(access(DATA, false, 0)).expect("permitted");
    assert_eq!(count(&machine, "dma memory"), 2);
}
