//! Access through views: what succeeds, what faults, what is cached.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions,
};

use super::{DmaCounts, DmaPort, DmaState, DmaTransaction, FaultSink};
use crate::translate::testing::{Paging, RAM, SOURCE, World};
use crate::translate::{Access, Fault, Latched, Request, Translation};
use crate::{Pasid, SourceId};

type Memory = Arc<GuestMemoryMmap<()>>;

/// Keeps what is reported.
#[derive(Default)]
pub(crate) struct Log {
    /// Input address, access, code, whether to record.
    faults: Mutex<Vec<(u64, Access, u8, bool)>>,
    /// Input addresses.
    pub(crate) stale: Mutex<Vec<u64>>,
}

impl FaultSink for Log {
    fn dma_fault(&self, request: &Request, fault: &Fault) {
        let entry = (
            request.address,
            request.access,
            fault.reason.code(),
            fault.record,
        );
        self.faults.lock().unwrap().push(entry);
    }

    fn stale(
        &self,
        request: &Request,
        _: &Result<Translation, Fault>,
        _: &Result<Translation, Fault>,
    ) {
        self.stale.lock().unwrap().push(request.address);
    }
}

impl Log {
    pub(crate) fn take(&self) -> Vec<(u64, Access, u8, bool)> {
        std::mem::take(&mut self.faults.lock().unwrap())
    }
}

pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) paging: Paging,
    pub(crate) state: Arc<DmaState<Memory>>,
    pub(crate) port: DmaPort<Memory>,
    pub(crate) log: Arc<Log>,
}

/// PASID 0 has an empty second stage of 4 levels.
pub(crate) fn bench() -> Bench {
    bench_of(World::scalable(), |state| state)
}

/// The same in this world, in front of a unit of which `made` makes another one.
pub(crate) fn bench_of(
    world: World,
    made: impl FnOnce(DmaState<Memory>) -> DmaState<Memory>,
) -> Bench {
    let paging = world.second_stage(4);
    world.set_pasid(0, &[paging.top | 0x89, 7]);
    let log = Arc::new(Log::default());
    let state = DmaState::new(
        Arc::clone(&world.memory),
        world.gates,
        Arc::clone(&log) as _,
    );
    let state = Arc::new(made(state));
    state.set_latched(world.latched);
    let port = DmaPort::behind(Arc::clone(&state), SOURCE);
    Bench {
        world,
        paging,
        state,
        port,
        log,
    }
}

fn lengths(
    transaction: &DmaTransaction<'_, Memory>,
    address: u64,
    count: usize,
    access: Permissions,
) -> Vec<Result<usize, GuestMemoryError>> {
    let slices =
        GuestMemory::get_slices(transaction, GuestAddress(address), count, access).unwrap();
    slices.map(|slice| slice.map(|slice| slice.len())).collect()
}

#[test]
fn bytes_arrive_where_the_tables_say() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x7000_1000, 1, 0x20_3003);
    bench.world.map(&bench.paging, 0x7000_2000, 1, 0x20_1003);
    let mut view = bench.port.view();
    let transaction = view.begin();
    transaction
        .write_slice(b"across pages", GuestAddress(0x7000_1ffa))
        .unwrap();
    let mut bytes = [0; 6];
    bench
        .world
        .memory
        .read_slice(&mut bytes, GuestAddress(0x20_3ffa))
        .unwrap();
    assert_eq!(&bytes, b"across");
    bench
        .world
        .memory
        .read_slice(&mut bytes, GuestAddress(0x20_1000))
        .unwrap();
    assert_eq!(&bytes, b" pages");
    let mut back = [0; 12];
    transaction
        .read_slice(&mut back, GuestAddress(0x7000_1ffa))
        .unwrap();
    assert_eq!(&back, b"across pages");
    assert!(transaction.physical_memory().is_none());
    assert!(bench.log.take().is_empty());
}

#[test]
fn neighbouring_pages_are_one_slice_when_their_memory_is_neighbouring() {
    let bench = bench();
    for (input, output) in [
        (0x1000, 0x20_0000),
        (0x2000, 0x20_1000),
        (0x3000, 0x20_2000),
        (0x4000, 0x10_0000),
    ] {
        bench.world.map(&bench.paging, input, 1, output | 3);
    }
    let mut view = bench.port.view();
    let transaction = view.begin();
    let lengths = lengths(&transaction, 0x1800, 0x3000, Permissions::Read);
    let lengths: Vec<_> = lengths.into_iter().map(Result::unwrap).collect();
    assert_eq!(lengths, [0x2800, 0x800]);
}

#[test]
fn a_large_page_is_one_slice() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x4000_0000, 2, 0x60_0083);
    let mut view = bench.port.view();
    let transaction = view.begin();
    let lengths = lengths(&transaction, 0x4000_0800, 0x1f_0000, Permissions::ReadWrite);
    assert_eq!(
        lengths.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [0x1f_0000]
    );
    drop(transaction);
    assert_eq!(view.walks(), 1);
}

#[test]
fn a_range_ends_at_its_first_fault_which_is_reported_once() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    bench.world.map(&bench.paging, 0x3000, 1, 0x20_2003);
    let mut view = bench.port.view();
    let transaction = view.begin();
    let lengths = lengths(&transaction, 0x1800, 0x2000, Permissions::Write);
    assert_eq!(lengths.len(), 2);
    assert_eq!(*lengths[0].as_ref().unwrap(), 0x800);
    assert!(matches!(
        lengths[1],
        Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(0x2000)))
    ));
    assert_eq!(bench.log.take(), [(0x2000, Access::Write, 0x79, true)]);

    assert!(
        transaction
            .write_slice(&[0; 16], GuestAddress(0x2ff8))
            .is_err()
    );
    assert_eq!(bench.log.take(), [(0x2ff8, Access::Write, 0x79, true)]);
    assert!(
        transaction
            .load::<u32>(GuestAddress(0x5000), Ordering::SeqCst)
            .is_err()
    );
    assert_eq!(bench.log.take(), [(0x5000, Access::Read, 0x79, true)]);
}

#[test]
fn access_in_both_directions_reports_the_one_that_is_missing() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0001);
    bench.world.map(&bench.paging, 0x2000, 1, 0x20_0002);
    let mut view = bench.port.view();
    let transaction = view.begin();
    assert!(lengths(&transaction, 0x1000, 8, Permissions::ReadWrite)[0].is_err());
    assert!(lengths(&transaction, 0x2000, 8, Permissions::ReadWrite)[0].is_err());
    assert_eq!(
        bench.log.take(),
        [
            (0x1000, Access::Write, 0x85, true),
            (0x2000, Access::Read, 0x86, true)
        ]
    );
    assert!(lengths(&transaction, 0x2000, 8, Permissions::Write)[0].is_ok());
}

#[test]
fn what_fpd_suppresses_is_reported_as_not_to_be_recorded() {
    let bench = bench();
    bench.world.or(bench.world.pasids, 2);
    let mut view = bench.port.view();
    assert!(view.begin().read_obj::<u8>(GuestAddress(0x1000)).is_err());
    assert_eq!(bench.log.take(), [(0x1000, Access::Read, 0x79, false)]);
}

#[test]
fn a_translation_to_no_memory_is_an_error_and_no_fault() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x7000_0003);
    // The last page of memory, and the one behind it.
    bench
        .world
        .map(&bench.paging, 0x2000, 1, (RAM as u64 - 0x1000) | 3);
    bench.world.map(&bench.paging, 0x3000, 1, RAM as u64 | 3);
    let mut view = bench.port.view();
    let transaction = view.begin();
    assert!(transaction.read_obj::<u64>(GuestAddress(0x1000)).is_err());
    let lengths = lengths(&transaction, 0x2800, 0x1000, Permissions::Read);
    assert_eq!(*lengths[0].as_ref().unwrap(), 0x800);
    assert!(lengths[1].is_err());
    assert_eq!(lengths.len(), 2);
    assert!(bench.log.take().is_empty());
}

#[test]
fn ranges_that_wrap_around_are_errors() {
    let bench = bench();
    let mut view = bench.port.view();
    let transaction = view.begin();
    let last = GuestAddress(u64::MAX - 7);
    assert!(transaction.read_obj::<u128>(last).is_err());
    assert!(transaction.write_slice(&[0; 64], last).is_err());
    assert!(!GuestMemory::check_range(
        &transaction,
        last,
        64,
        Permissions::Read
    ));
    assert!(
        transaction
            .read_obj::<u128>(GuestAddress(0x01ff_ffff_ffff_fff8))
            .is_err()
    );

    // First stage: the last page is legal, what comes after it is not.
    let bench = self::bench();
    let first = bench.world.first_stage(4);
    bench.world.map(&first, 0xffff_ffff_ffff_f000, 1, 0x20_0067);
    bench.world.map(&first, 0, 1, 0x20_1067);
    bench.world.set_pasid(0, &[0x41, 7, first.top]);
    let mut view = bench.port.view();
    let transaction = view.begin();
    assert!(transaction.read_obj::<u64>(last).is_ok());
    assert!(GuestMemory::check_range(
        &transaction,
        last,
        8,
        Permissions::Read
    ));
    assert!(transaction.read_obj::<u128>(last).is_err());
    assert!(!GuestMemory::check_range(
        &transaction,
        last,
        9,
        Permissions::Read
    ));
    drop(transaction);
    let direct = DmaPort::direct(Arc::clone(&bench.world.memory));
    assert!(direct.view().begin().read_obj::<u128>(last).is_err());
}

#[test]
fn an_empty_range_has_no_slices_and_makes_no_request() {
    let bench = bench();
    let mut view = bench.port.view();
    let transaction = view.begin();
    assert!(lengths(&transaction, 0x1000, 0, Permissions::Read).is_empty());
    assert!(GuestMemory::check_range(
        &transaction,
        GuestAddress(0x1000),
        0,
        Permissions::Read
    ));
    assert_eq!(transaction.read(&mut [], GuestAddress(0x1000)).unwrap(), 0);
    assert!(bench.log.take().is_empty());
}

#[test]
fn check_range_looks_at_every_page_and_reports_nothing() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    bench.world.map(&bench.paging, 0x2000, 1, 0x20_0001);
    bench.world.map(&bench.paging, 0x3000, 1, 0x7000_0003);
    let mut view = bench.port.view();
    let transaction = view.begin();
    let check = |address, count, access| {
        GuestMemory::check_range(&transaction, GuestAddress(address), count, access)
    };
    assert!(check(0x1800, 0x1000, Permissions::Read));
    assert!(!check(0x1800, 0x1000, Permissions::Write));
    assert!(check(0x1800, 0x800, Permissions::ReadWrite));
    assert!(!check(0x2800, 0x1000, Permissions::Read), "no memory");
    assert!(!check(0x800, 0x1000, Permissions::Read));
    assert!(!check(0x1000, usize::MAX, Permissions::Read));
    assert!(bench.log.take().is_empty());
}

#[test]
fn check_range_makes_no_page_dirty() {
    let bench = bench();
    bench
        .world
        .set_pasid(0, &[bench.paging.top | 0x289, 0x80_0007]);
    let leaf = bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    let mut view = bench.port.view();
    let transaction = view.begin();
    assert!(GuestMemory::check_range(
        &transaction,
        GuestAddress(0x1000),
        8,
        Permissions::Write
    ));
    assert_eq!(bench.world.get(leaf), 0x20_0103);
}

#[test]
fn a_page_is_walked_once_until_it_is_invalidated() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    let mut view = bench.port.view();
    for _ in 0..10 {
        let transaction = view.begin();
        transaction.write_obj(1_u64, GuestAddress(0x1000)).unwrap();
        transaction.read_obj::<u64>(GuestAddress(0x1ff8)).unwrap();
    }
    assert_eq!(view.walks(), 1);

    bench.world.set(leaf, 0x20_1003);
    bench.state.invalidate_all();
    bench.state.drain();
    view.begin().write_obj(2_u64, GuestAddress(0x1000)).unwrap();
    assert_eq!(view.walks(), 2);
    assert_eq!(bench.world.get(0x20_0000), 1);
    assert_eq!(bench.world.get(0x20_1000), 2);
}

#[test]
fn hits_and_walks_are_counted_across_views_that_come_and_go() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x5000, 1, 0x20_0003);
    for _ in 0..2 {
        let mut view = bench.port.view();
        for _ in 0..3 {
            view.begin().read_obj::<u32>(GuestAddress(0x5000)).unwrap();
        }
    }
    let mut view = bench.port.view();
    view.begin().read_obj::<u32>(GuestAddress(0x5000)).unwrap();
    let expected = DmaCounts {
        translation_hits: 4,
        table_walks: 3,
        nested_walks: 0,
        kept_hits: 0,
        kept_stale: 0,
    };
    assert_eq!(bench.state.counts(), expected);
}

#[test]
fn walks_of_nested_tables_are_counted_beside_all_walks() {
    let bench = bench();
    let first = bench.world.first_stage(4);
    for page in [0x5000, 0x6000] {
        bench.world.map(&first, page, 1, page | 0x67);
    }
    // Tables and pages of the first stage are where the second stage leaves them: a page of 1 GiB.
    let second = bench.world.second_stage(4);
    bench.world.map(&second, 0, 3, 0x83);
    bench
        .world
        .set_pasid(0, &[second.top | 0xc9, 0x7, first.top]);
    let mut view = bench.port.view();
    for address in [0x5000, 0x5000, 0x6000] {
        view.begin().read_obj::<u32>(GuestAddress(address)).unwrap();
    }
    bench.world.set_pasid(0, &[bench.paging.top | 0x89, 0x7]);
    bench.state.invalidate_all();
    bench.world.map(&bench.paging, 0x5000, 1, 0x20_0003);
    view.begin().read_obj::<u32>(GuestAddress(0x5000)).unwrap();
    drop(view);
    let counts = bench.state.counts();
    assert_eq!((counts.table_walks, counts.nested_walks), (3, 2));
}

#[test]
fn the_first_write_to_a_page_that_was_read_walks_again_to_set_dirty() {
    let bench = bench();
    bench
        .world
        .set_pasid(0, &[bench.paging.top | 0x289, 0x80_0007]);
    let leaf = bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    let mut view = bench.port.view();
    view.begin().read_obj::<u64>(GuestAddress(0x1000)).unwrap();
    assert_eq!(bench.world.get(leaf), 0x20_0103);
    view.begin().write_obj(1_u64, GuestAddress(0x1000)).unwrap();
    assert_eq!(bench.world.get(leaf), 0x20_0303);
    view.begin().write_obj(1_u64, GuestAddress(0x1000)).unwrap();
    assert_eq!(view.walks(), 2);
}

#[test]
fn nothing_that_faults_is_cached() {
    let bench = bench();
    let mut view = bench.port.view();
    let transaction = view.begin();
    assert!(transaction.read_obj::<u64>(GuestAddress(0x1000)).is_err());
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0001);
    assert!(transaction.read_obj::<u64>(GuestAddress(0x1000)).is_ok());
    assert!(transaction.write_obj(1_u64, GuestAddress(0x1000)).is_err());
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    assert!(transaction.write_obj(1_u64, GuestAddress(0x1000)).is_ok());
}

#[test]
fn pasids_do_not_share_cache_entries() {
    let bench = bench();
    let other = bench.world.second_stage(4);
    bench.world.set_pasid(3, &[other.top | 0x89, 8]);
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    bench.world.map(&other, 0x1000, 1, 0x20_1003);
    let mut view = bench.port.view();
    for _ in 0..2 {
        view.begin().write_obj(1_u64, GuestAddress(0x1000)).unwrap();
        view.begin_pasid(Pasid::new(3))
            .write_obj(2_u64, GuestAddress(0x1000))
            .unwrap();
        assert!(
            view.begin_pasid(Pasid::new(4))
                .read_obj::<u8>(GuestAddress(0x1000))
                .is_err()
        );
    }
    assert_eq!(
        (bench.world.get(0x20_0000), bench.world.get(0x20_1000)),
        (1, 2)
    );
    assert_eq!(bench.log.take().len(), 2);
}

#[test]
fn sources_have_context_entries_of_their_own() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    let port = DmaPort::behind(Arc::clone(&bench.state), SourceId(0x0020));
    assert!(
        port.view()
            .begin()
            .read_obj::<u8>(GuestAddress(0x1000))
            .is_err()
    );
    assert_eq!(bench.log.take(), [(0x1000, Access::Read, 0x41, true)]);
}

#[test]
fn while_translation_is_off_addresses_are_guest_physical() {
    let bench = bench();
    let mut view = bench.port.view();
    bench.state.set_latched(Latched {
        enabled: false,
        ..bench.world.latched
    });
    bench.state.drain();
    let transaction = view.begin();
    transaction
        .write_obj(5_u64, GuestAddress(0x20_0000))
        .unwrap();
    assert_eq!(bench.world.get(0x20_0000), 5);
    assert!(transaction.physical_memory().is_some());
    let end = GuestAddress(RAM as u64);
    assert!(!GuestMemory::check_range(
        &transaction,
        end.unchecked_sub(8),
        16,
        Permissions::Read
    ));
    assert!(transaction.read_obj::<u128>(end.unchecked_sub(8)).is_err());
    assert!(bench.log.take().is_empty());
    drop(transaction);
    bench.state.set_latched(bench.world.latched);
    assert!(
        view.begin()
            .read_obj::<u8>(GuestAddress(0x20_0000))
            .is_err()
    );
    assert_eq!(bench.log.take().len(), 1);
}

#[test]
fn a_closed_gate_fails_every_access_and_reports_nothing() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    let gate = Arc::new(AtomicBool::new(false));
    let memory = Arc::clone(&bench.world.memory);
    for port in [bench.port.clone(), DmaPort::direct(memory)] {
        let port = port.gated(Arc::clone(&gate));
        let mut view = port.view();
        gate.store(false, Ordering::Release);
        let transaction = view.begin();
        assert!(transaction.read_obj::<u64>(GuestAddress(0x1000)).is_err());
        assert!(transaction.write_obj(1_u64, GuestAddress(0x1000)).is_err());
        assert!(!GuestMemory::check_range(
            &transaction,
            GuestAddress(0x1000),
            8,
            Permissions::Read
        ));
        assert!(transaction.physical_memory().is_none());
        gate.store(true, Ordering::Release);
        assert!(transaction.read_obj::<u64>(GuestAddress(0x1000)).is_ok());
    }
    assert!(bench.log.take().is_empty());
}

#[test]
fn behind_no_unit_addresses_are_guest_physical() {
    let bench = bench();
    let port = DmaPort::direct(Arc::clone(&bench.world.memory));
    let mut view = port.view();
    let transaction = view.begin();
    transaction
        .write_obj(5_u64, GuestAddress(0x20_0000))
        .unwrap();
    assert_eq!(bench.world.get(0x20_0000), 5);
    assert!(transaction.physical_memory().is_some());
    assert!(GuestMemory::check_range(
        &transaction,
        GuestAddress(0),
        RAM,
        Permissions::ReadWrite
    ));
    assert!(!GuestMemory::check_range(
        &transaction,
        GuestAddress(0),
        RAM + 1,
        Permissions::Read
    ));
}

#[test]
fn one_step_of_a_huge_range_does_bounded_work() {
    let bench = bench();
    // 512 pages whose memory is neighbouring.
    for page in 0..512 {
        bench.world.map(
            &bench.paging,
            page * 0x1000,
            1,
            (0x80_0000 + page * 0x1000) | 3,
        );
    }
    let mut view = bench.port.view();
    let transaction = view.begin();
    let mut slices =
        GuestMemory::get_slices(&transaction, GuestAddress(0), usize::MAX, Permissions::Read)
            .unwrap();
    let first = slices.next().unwrap().unwrap();
    assert_eq!(first.len(), 32 * 0x1000);
    drop(slices);
    drop(transaction);
    assert!(view.walks() <= 33);
}

#[test]
fn a_page_of_the_interrupt_range_inside_a_large_page_stays_blocked() {
    let bench = bench();
    bench.world.map(&bench.paging, 0xc000_0000, 3, 0x83);
    let mut view = bench.port.view();
    let transaction = view.begin();
    let lengths = lengths(&transaction, 0xfedf_f800, 0x1000, Permissions::Write);
    assert!(lengths[0].is_err(), "there is no memory at 3eff_f800h");
    assert!(
        transaction
            .write_obj(1_u32, GuestAddress(0xfee0_0000))
            .is_err()
    );
    assert_eq!(bench.log.take(), [(0xfee0_0000, Access::Write, 0x29, true)]);
}

#[test]
fn supervisors_reach_what_users_do_not_and_neither_finds_what_the_other_remembered() {
    let bench = bench();
    let world = &bench.world;
    let first = world.first_stage(4);
    // PASID 3: first stage, domain 9, PWSNP, SRE. PASID 4: without SRE. PASID 5: with WPE as well.
    world.set_pasid(3, &[0x41, 0x80_0009, first.top | 1]);
    world.set_pasid(4, &[0x41, 0x80_0009, first.top]);
    world.set_pasid(5, &[0x41, 0x80_0009, first.top | 0x11]);
    // A user's page that cannot be written, and a supervisor's that can.
    world.map(&first, 0x1000, 1, 0x20_1065);
    world.map(&first, 0x2000, 1, 0x20_2063);
    let pasid = |number| Pasid::new(number).unwrap();
    let mut view = bench.port.view();
    let log = || -> Vec<(u64, u8)> {
        let reported = bench.log.take().into_iter();
        reported.map(|(at, _, code, _)| (at, code)).collect()
    };
    let write = |transaction: DmaTransaction<'_, Memory>, at: u64| {
        transaction.write_obj(1_u8, GuestAddress(at)).is_ok()
    };
    for _ in 0..3 {
        assert!(write(view.begin_supervisor(pasid(3)), 0x1000));
        assert!(write(view.begin_supervisor(pasid(3)), 0x2000));
        assert_eq!(log(), []);
        assert!(!write(view.begin_pasid(Some(pasid(3))), 0x1000));
        assert!(!write(view.begin_pasid(Some(pasid(3))), 0x2000));
        assert_eq!(log(), [(0x1000, 0x85), (0x2000, 0x81)]);
    }
    assert!(!write(view.begin_supervisor(pasid(4)), 0x2000));
    assert_eq!(log(), [(0x2000, 0x5d)]);
    assert!(!write(view.begin_supervisor(pasid(5)), 0x1000));
    assert!(write(view.begin_supervisor(pasid(5)), 0x2000));
    assert_eq!(log(), [(0x1000, 0x85)]);
}
