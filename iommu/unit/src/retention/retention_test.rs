//! What stays in use after the tables have changed, and which invalidation ends that.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::dma::dma_test::{Bench, bench_of};
use crate::dma::{DmaPort, DmaState, DmaView};
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::invalidation::Invalidation::{self, Context, Iotlb, PasidCache, PasidIotlb};
use crate::translate::testing::World;

type View = DmaView<Arc<vm_memory::GuestMemoryMmap<()>>>;

const OLD: u64 = 0x20_0000;
const NEW: u64 = 0x20_1000;
const INPUT: u64 = 0x4000_5000;

/// A unit that keeps translations; PASID 0 has an empty second stage of 4 levels, of domain 7.
fn keeping(world: World) -> Bench {
    let bench = bench_of(world, DmaState::keeping_translations);
    for (target, name) in [(OLD, b"old"), (NEW, b"new")] {
        let memory = &bench.world.memory;
        memory.write_slice(name, GuestAddress(target)).unwrap();
    }
    bench
}

fn bench() -> Bench {
    keeping(World::scalable())
}

impl Bench {
    fn invalidate(&self, invalidation: Invalidation) {
        self.state.forget(&invalidation);
        self.state.invalidate_all();
        self.state.drain();
    }

    fn invalidate_each(&self, invalidations: &[Invalidation]) {
        for invalidation in invalidations {
            self.invalidate(*invalidation);
        }
    }
}

/// What a device finds; `None` if it may not look.
fn look(view: &mut View, pasid: Option<u32>, address: u64) -> Option<[u8; 3]> {
    let pasid = pasid.map(|pasid| Pasid::new(pasid).unwrap());
    let mut bytes = [0; 3];
    view.begin_pasid(pasid)
        .read_slice(&mut bytes, GuestAddress(address))
        .ok()?;
    Some(bytes)
}

#[track_caller]
fn expect(view: &mut View, what: &[u8; 3]) {
    assert_eq!(look(view, None, INPUT).as_ref(), Some(what));
}

/// Whether a device may write.
fn write(view: &mut View) -> bool {
    view.begin().write_obj(1_u8, GuestAddress(INPUT)).is_ok()
}

/// Where a device-TLB is told that a page is.
fn ask(view: &mut View) -> u64 {
    view.begin().translate(INPUT, false).unwrap().address
}

const fn pages(address: u64, mask: u8) -> PageBlock {
    PageBlock {
        address,
        mask,
        leaf_only: false,
    }
}

const fn leaves(address: u64, mask: u8) -> PageBlock {
    PageBlock {
        leaf_only: true,
        ..pages(address, mask)
    }
}

const fn of_pasid(domain: u16, pasid: u32, scope: PasidIotlbScope) -> Invalidation {
    PasidIotlb {
        domain,
        pasid,
        scope,
    }
}

/// Everything that names neither domain 7 as a whole nor [`INPUT`].
const OF_OTHERS: &[Invalidation] = &[
    Iotlb(IotlbScope::Domain(8)),
    Iotlb(IotlbScope::Pages(8, pages(INPUT, 0))),
    of_pasid(8, 0, PasidIotlbScope::Pasid),
    of_pasid(7, 1, PasidIotlbScope::Pasid),
    of_pasid(7, 1, PasidIotlbScope::Pages(pages(INPUT, 0))),
    of_pasid(7, 0, PasidIotlbScope::Pages(pages(INPUT + 0x1000, 0))),
    Context(ContextScope::Global),
    PasidCache(PasidCacheScope::Global),
];

#[test]
fn a_second_stage_page_stays_until_its_domain_or_it_is_named() {
    for right in [
        Iotlb(IotlbScope::Global),
        Iotlb(IotlbScope::Domain(7)),
        Iotlb(IotlbScope::Pages(7, pages(INPUT, 0))),
        Iotlb(IotlbScope::Pages(7, leaves(INPUT & !0xffff, 4))),
        of_pasid(7, 0, PasidIotlbScope::Pasid),
    ] {
        let bench = bench();
        bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
        let mut view = bench.port.view();
        expect(&mut view, b"old");
        bench.world.map(&bench.paging, INPUT, 1, NEW | 3);
        bench.invalidate_each(OF_OTHERS);
        bench.invalidate(Iotlb(IotlbScope::Pages(7, pages(INPUT + 0x1000, 0))));
        // This names what a first stage translates.
        bench.invalidate(of_pasid(7, 0, PasidIotlbScope::Pages(pages(INPUT, 0))));
        expect(&mut view, b"old");
        expect(&mut bench.port.view(), b"old");
        bench.invalidate(right);
        expect(&mut view, b"new");
    }
}

#[test]
fn a_first_stage_page_stays_until_it_its_pasid_or_anything_of_its_domain_is_named() {
    for right in [
        Iotlb(IotlbScope::Global),
        Iotlb(IotlbScope::Domain(7)),
        Iotlb(IotlbScope::Pages(7, pages(INPUT + 0x1000, 0))),
        of_pasid(7, 0, PasidIotlbScope::Pasid),
        of_pasid(7, 0, PasidIotlbScope::Pages(leaves(INPUT, 0))),
    ] {
        let bench = bench();
        let first = bench.world.first_stage(4);
        bench.world.map(&first, INPUT, 1, OLD | 7);
        bench.world.set_pasid(0, &[0x49, 0x80_0007, first.top]);
        let mut view = bench.port.view();
        expect(&mut view, b"old");
        bench.world.map(&first, INPUT, 1, NEW | 7);
        bench.invalidate_each(OF_OTHERS);
        expect(&mut view, b"old");
        bench.invalidate(right);
        expect(&mut view, b"new");
    }
}

#[test]
fn a_nested_page_stays_whichever_stage_changes() {
    for change_first in [true, false] {
        for right in [
            Iotlb(IotlbScope::Global),
            Iotlb(IotlbScope::Domain(7)),
            Iotlb(IotlbScope::Pages(7, pages(0x9000, 0))),
        ] {
            let bench = bench();
            let first = bench.world.first_stage(4);
            bench.world.map(&first, INPUT, 1, 0x9000 | 7);
            // Tables of the first stage are where they are, in the first GiB but in pages of 2 MiB.
            bench.world.map(&bench.paging, 0x10_0000, 2, 0x83);
            let other = 0x4000_0000 + 0x9000;
            bench.world.map(&bench.paging, other, 1, OLD | 3);
            bench.world.map(&first, INPUT, 1, other | 7);
            bench
                .world
                .set_pasid(0, &[bench.paging.top | 0xc9, 0x80_0007, first.top]);
            let mut view = bench.port.view();
            expect(&mut view, b"old");
            if change_first {
                let third = 0x4000_0000 + 0xa000;
                bench.world.map(&bench.paging, third, 1, NEW | 3);
                bench.world.map(&first, INPUT, 1, third | 7);
            } else {
                bench.world.map(&bench.paging, other, 1, NEW | 3);
            }
            bench.invalidate_each(OF_OTHERS);
            expect(&mut view, b"old");
            bench.invalidate(right);
            expect(&mut view, b"new");
        }
    }
}

/// Second-stage tables with the page at the new place, of domain 9.
fn another_second_stage(bench: &Bench) -> [u64; 2] {
    let other = bench.world.second_stage(4);
    bench.world.map(&other, INPUT, 1, NEW | 3);
    [other.top | 0x89, 9]
}

#[test]
fn a_pasid_entry_stays_until_it_is_named_and_its_pages_even_longer() {
    let bench = bench();
    for page in 0..2 {
        bench
            .world
            .map(&bench.paging, INPUT + page * 0x1000, 1, OLD | 3);
    }
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    let words = another_second_stage(&bench);
    bench.world.set_pasid(0, &words);
    bench.invalidate_each(&[
        Context(ContextScope::Global),
        PasidCache(PasidCacheScope::Domain(9)),
        PasidCache(PasidCacheScope::Pasid(7, 1)),
        PasidCache(PasidCacheScope::Pasid(9, 0)),
        Iotlb(IotlbScope::Domain(9)),
    ]);
    expect(&mut view, b"old");
    // The domain is clean, but still the one that is in use.
    bench.invalidate(Iotlb(IotlbScope::Domain(7)));
    assert_eq!(look(&mut view, None, INPUT + 0x1000), Some(*b"old"));
    expect(&mut view, b"old");
    bench.invalidate(PasidCache(PasidCacheScope::Pasid(7, 0)));
    expect(&mut view, b"old");
    bench.invalidate(Iotlb(IotlbScope::Domain(7)));
    expect(&mut view, b"new");
    assert_eq!(look(&mut view, None, INPUT + 0x1000), None);
}

#[test]
fn a_context_entry_stays_until_its_source_is_named() {
    for (mask, named) in [(0, 0x18), (1, 0x1c), (2, 0x1e), (3, 0x1f)] {
        let bench = bench();
        bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
        let mut view = bench.port.view();
        expect(&mut view, b"old");
        // Another directory, in which PASID 0 is of domain 9.
        let (directory, table) = (bench.world.page(), bench.world.page());
        bench.world.set(directory, table | 1);
        for (at, word) in [0, 8].into_iter().zip(another_second_stage(&bench)) {
            bench.world.set(table + at, word);
        }
        bench
            .world
            .set(bench.world.scalable_context(), directory | 0x25d);
        let all_else = [
            PasidCache(PasidCacheScope::Global),
            Iotlb(IotlbScope::Global),
        ];
        bench.invalidate_each(&all_else);
        bench.invalidate(Context(ContextScope::Device {
            source: 0x20,
            function_mask: 3,
        }));
        bench.invalidate(Context(ContextScope::Device {
            source: 0x19,
            function_mask: 0,
        }));
        expect(&mut view, b"old");
        bench.invalidate(Context(ContextScope::Device {
            source: named,
            function_mask: mask,
        }));
        expect(&mut view, b"old");
        bench.invalidate_each(&all_else);
        expect(&mut view, b"new");
    }
}

#[test]
fn a_legacy_context_entry_is_of_its_domain() {
    let bench = keeping(World::legacy());
    let tables = |target: u64| {
        let paging = bench.world.second_stage(4);
        bench.world.map(&paging, INPUT, 1, target | 3);
        paging.top | 1
    };
    // Domains 3 and 4, four levels.
    bench.world.set_context(tables(OLD), 0x302);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    bench.world.set_context(tables(NEW), 0x402);
    bench.invalidate_each(&[
        Context(ContextScope::Domain(4)),
        Iotlb(IotlbScope::Domain(3)),
    ]);
    expect(&mut view, b"old");
    bench.invalidate(Context(ContextScope::Domain(3)));
    expect(&mut view, b"old");
    bench.invalidate(Iotlb(IotlbScope::Domain(3)));
    expect(&mut view, b"new");
}

#[test]
fn an_entry_above_a_leaf_stays_when_the_hint_says_that_only_leaves_changed() {
    for first in [true, false] {
        let bench = bench();
        let paging = if first {
            let paging = bench.world.first_stage(4);
            bench.world.set_pasid(0, &[0x49, 0x80_0007, paging.top]);
            paging
        } else {
            bench.paging
        };
        let flags = if first { 7 } else { 3 };
        let leaf = bench.world.map(&paging, INPUT, 1, OLD | flags);
        let mut view = bench.port.view();
        expect(&mut view, b"old");
        let table = bench.world.page();
        bench.world.set(table + leaf % 0x1000, NEW | flags);
        bench
            .world
            .map(&paging, INPUT, 2, table | paging.table_flags);
        let invalidation = |block| {
            if first {
                of_pasid(7, 0, PasidIotlbScope::Pages(block))
            } else {
                Iotlb(IotlbScope::Pages(7, block))
            }
        };
        bench.invalidate(invalidation(leaves(INPUT, 0)));
        expect(&mut view, b"old");
        // Another table's pages.
        bench.invalidate(invalidation(pages(INPUT + 0x20_0000, 0)));
        bench.invalidate(invalidation(leaves(INPUT, 0)));
        expect(&mut view, b"old");
        bench.invalidate(invalidation(pages(INPUT, 0)));
        expect(&mut view, b"new");
    }
}

#[test]
fn a_large_page_goes_when_all_of_it_is_named_and_else_in_pieces() {
    let bench = bench();
    bench
        .world
        .map(&bench.paging, INPUT & !0x1f_ffff, 2, OLD | 0x83);
    let at = INPUT & !0x1f_ffff;
    let mut view = bench.port.view();
    for page in [0, 0x1000, 0x2000] {
        look(&mut view, None, at + page).unwrap();
    }
    bench.world.map(&bench.paging, at, 2, 0);
    bench.invalidate(Iotlb(IotlbScope::Pages(7, pages(at, 0))));
    assert_eq!(look(&mut view, None, at), None);
    assert!(look(&mut view, None, at + 0x1000).is_some());
    bench.invalidate(Iotlb(IotlbScope::Pages(7, pages(at, 9))));
    for page in [0x1000, 0x2000] {
        assert_eq!(look(&mut view, None, at + page), None);
    }
}

#[test]
fn what_is_not_present_is_not_kept() {
    let bench = bench();
    let mut view = bench.port.view();
    assert_eq!(look(&mut view, None, INPUT), None);
    bench.world.map(&bench.paging, INPUT, 1, NEW | 3);
    expect(&mut view, b"new");
}

#[test]
fn a_page_denies_what_it_denied_until_it_is_invalidated() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 1);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    assert!(!write(&mut view));
    let (address, _, code, recorded) = bench.log.take()[0];
    assert_eq!((address, code, recorded), (INPUT, 0x85, true));
    bench.invalidate(Iotlb(IotlbScope::Pages(7, leaves(INPUT, 0))));
    assert!(write(&mut view));
}

#[test]
fn the_first_write_through_a_page_that_was_read_sets_dirty() {
    let bench = bench();
    let first = bench.world.first_stage(4);
    let leaf = bench.world.map(&first, INPUT, 1, OLD | 7);
    bench.world.set_pasid(0, &[0x49, 0x80_0007, first.top]);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    assert_eq!(bench.world.get(leaf), OLD | 0x27);
    view.begin()
        .write_obj(*b"odd", GuestAddress(INPUT))
        .unwrap();
    assert_eq!(bench.world.get(leaf), OLD | 0x67);
    // It is dirty by now, and cleared behind the back of the unit.
    bench.world.clear(leaf, 0x40);
    bench.state.invalidate_all();
    view.begin()
        .write_obj(*b"odd", GuestAddress(INPUT))
        .unwrap();
    assert_eq!(bench.world.get(leaf), OLD | 0x27);
}

#[test]
fn sources_pasids_and_supervisors_find_nothing_of_each_other() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let other = SourceId(0x20);
    let context = bench.world.get(bench.world.scalable_context());
    bench.world.set(bench.world.context + 0x400, context);
    bench.world.set_pasid(5, &[bench.paging.top | 0x89, 7]);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    bench.world.map(&bench.paging, INPUT, 1, NEW | 3);
    let mut second = DmaPort::behind(Arc::clone(&bench.state), other).view();
    assert_eq!(look(&mut second, None, INPUT), Some(*b"new"));
    assert_eq!(look(&mut view, Some(5), INPUT), Some(*b"new"));
    expect(&mut view, b"old");
    // Each of one domain and PASID.
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    bench.invalidate(of_pasid(7, 5, PasidIotlbScope::Pasid));
    assert_eq!(look(&mut second, None, INPUT), Some(*b"new"));
    assert_eq!(look(&mut view, Some(5), INPUT), Some(*b"old"));
}

#[test]
fn a_device_tlb_is_answered_with_what_is_kept() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    bench.world.map(&bench.paging, INPUT, 1, NEW | 3);
    assert_eq!(ask(&mut view), OLD);
    bench.invalidate(Iotlb(IotlbScope::Pages(7, leaves(INPUT, 0))));
    assert_eq!(ask(&mut view), NEW);
    // And what it was answered is kept.
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    expect(&mut view, b"new");
    // But a device that may not ask any more gets no answer, once its context entry is read again.
    bench.world.clear(bench.world.scalable_context(), 0x14);
    bench.invalidate(Context(ContextScope::Global));
    view.begin().translate(INPUT, false).unwrap_err();
}

#[test]
fn a_transaction_that_began_before_an_invalidation_leaves_nothing_behind() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let (mut slow, mut view) = (bench.port.view(), bench.port.view());
    let transaction = slow.begin();
    bench.state.forget(&Iotlb(IotlbScope::Global));
    let mut bytes = [0; 3];
    transaction
        .read_slice(&mut bytes, GuestAddress(INPUT))
        .unwrap();
    drop(transaction);
    bench.state.invalidate_all();
    bench.world.map(&bench.paging, INPUT, 1, NEW | 3);
    expect(&mut view, b"new");
}

#[test]
fn check_range_sees_what_accesses_see() {
    use vm_memory::{GuestMemory, Permissions};
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    bench.world.map(&bench.paging, INPUT, 1, 0);
    let check = |view: &mut View| {
        view.begin()
            .check_range(GuestAddress(INPUT), 8, Permissions::Read)
    };
    assert!(check(&mut view));
    bench.invalidate(Iotlb(IotlbScope::Domain(7)));
    assert!(!check(&mut view));
}

#[test]
fn check_range_asks_the_tables_for_a_write_that_would_mark_them() {
    use vm_memory::{GuestMemory, Permissions};
    /// Where no memory is.
    const NOWHERE: u64 = 0x1_0000_0000;
    let bench = bench();
    let first = bench.world.first_stage(4);
    bench.world.map(&first, INPUT, 1, NOWHERE | 7);
    bench.world.set_pasid(0, &[0x49, 0x80_0007, first.top]);
    let mut view = bench.port.view();
    assert_eq!(look(&mut view, None, INPUT), None);
    // The page that is kept was not written through.
    bench.world.map(&first, INPUT, 1, NEW | 7);
    let check = |view: &mut View, access| view.begin().check_range(GuestAddress(INPUT), 8, access);
    assert!(!check(&mut view, Permissions::Read));
    assert!(!check(&mut view, Permissions::ReadWrite));
    assert!(check(&mut view, Permissions::Write));
    assert_eq!(look(&mut view, None, INPUT), None);
    assert!(write(&mut view));
}

#[test]
fn setting_the_root_pointer_forgets_everything() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    let words = another_second_stage(&bench);
    bench.world.set_pasid(0, &words);
    bench.state.set_latched(bench.world.latched);
    expect(&mut view, b"new");
}

#[test]
fn hits_are_counted_and_are_no_walks() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let mut view = bench.port.view();
    for _ in 0..3 {
        expect(&mut view, b"old");
        bench.invalidate(Iotlb(IotlbScope::Domain(8)));
    }
    drop(view);
    let counts = bench.state.counts();
    assert_eq!((counts.table_walks, counts.kept_hits), (1, 2));
}

fn stale(bench: &Bench) -> u64 {
    bench.state.counts().kept_stale
}

#[test]
fn an_answer_that_the_tables_no_longer_give_is_counted_and_told() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    expect(&mut view, b"old");
    assert_eq!(stale(&bench), 0);
    for entry in [NEW | 3, 0] {
        bench.world.map(&bench.paging, INPUT, 1, entry);
        expect(&mut view, b"old");
    }
    assert_eq!(stale(&bench), 2);
    assert_eq!(*bench.log.stale.lock().unwrap(), [INPUT, INPUT]);
    bench.invalidate(Iotlb(IotlbScope::Domain(7)));
    assert_eq!(look(&mut view, None, INPUT), None);
    assert_eq!(stale(&bench), 2);
}

#[test]
fn a_denial_that_the_tables_no_longer_have_is_stale_and_one_that_they_have_is_not() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 1);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    assert!(!write(&mut view));
    assert_eq!(stale(&bench), 0);
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    assert!(!write(&mut view));
    assert_eq!(stale(&bench), 1);
    // What was permitted before still is.
    expect(&mut view, b"old");
    assert_eq!(stale(&bench), 1);
}

#[test]
fn a_walk_from_a_table_that_was_replaced_is_stale() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    let table = bench.world.page();
    bench.world.set(table + leaf % 0x1000, NEW | 3);
    let upper = table | bench.paging.table_flags;
    bench.world.map(&bench.paging, INPUT, 2, upper);
    bench.invalidate(Iotlb(IotlbScope::Pages(7, leaves(INPUT, 0))));
    expect(&mut view, b"old");
    assert_eq!(stale(&bench), 1);
    bench.invalidate(Iotlb(IotlbScope::Pages(7, pages(INPUT, 0))));
    expect(&mut view, b"new");
    assert_eq!(stale(&bench), 1);
}

#[test]
fn a_device_tlb_that_is_answered_with_an_old_page_counts() {
    let bench = bench();
    bench.world.map(&bench.paging, INPUT, 1, OLD | 3);
    let mut view = bench.port.view();
    assert_eq!((ask(&mut view), stale(&bench)), (OLD, 0));
    bench.world.map(&bench.paging, INPUT, 1, NEW | 3);
    assert_eq!((ask(&mut view), stale(&bench)), (OLD, 1));
}

#[test]
fn what_is_compared_with_the_tables_marks_nothing_in_them() {
    let bench = bench();
    let first = bench.world.first_stage(4);
    let leaf = bench.world.map(&first, INPUT, 1, OLD | 7);
    bench.world.set_pasid(0, &[0x49, 0x80_0007, first.top]);
    let mut view = bench.port.view();
    expect(&mut view, b"old");
    // Software takes the accessed bit back, and invalidates nothing.
    bench.world.set(leaf, OLD | 7);
    expect(&mut view, b"old");
    assert_eq!(bench.world.get(leaf), OLD | 7);
    assert_eq!(stale(&bench), 0);
}
