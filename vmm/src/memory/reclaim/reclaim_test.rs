//! Pages that go back to the host, of each kind of memory.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use intel_vtd::DmaPin;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes as _, MmapRegion, Permissions};

use super::*;
use crate::config::MemoryConfig;
use crate::memory::saved::Touched;
use crate::memory::{Backing, allocate};

const SIZE: u64 = 8 << 20;
/// From 3 MiB on there are data in the file of a snapshot, up to 5 MiB, and holes besides.
const DATA: Range<u64> = 0x30_0000..0x50_0000;

fn ram(backing: Backing, source: Option<&Arc<File>>) -> Memory {
    allocate(&MemoryConfig::plain(SIZE), 0, backing, source).expect("memory")
}

/// A file of a snapshot, with 0x11 in each byte of [`DATA`].
fn snapshot() -> Arc<File> {
    let file = memfd_create(c"snapshot", MFdFlags::empty()).expect("a memfd");
    let file = File::from(file);
    file.set_len(SIZE).expect("a length");
    let data = vec![0x11; usize::try_from(DATA.end - DATA.start).expect("small")];
    file.write_all_at(&data, DATA.start).expect("data");
    Arc::new(file)
}

fn fill(memory: &Memory, byte: u8) {
    let bytes = vec![byte; usize::try_from(SIZE).expect("small")];
    memory.write_slice(&bytes, GuestAddress(0)).expect("RAM");
}

fn byte(memory: &Memory, at: u64) -> u8 {
    memory.read_obj(GuestAddress(at)).expect("RAM")
}

/// The pages that are marked as written.
fn marked(memory: &Memory) -> Vec<u64> {
    let region = memory.iter().next().expect("a region");
    let words = MmapRegion::bitmap(region).take();
    let bits = words.iter().zip(0..).flat_map(|(word, number)| {
        (0..64).filter_map(move |bit| (word & 1 << bit != 0).then_some(number * 64 + bit))
    });
    bits.collect()
}

/// Pages of this process that have memory of the host.
fn resident(memory: &Memory) -> u64 {
    Touched::new(memory, None).pages().expect("pagemap").count()
}

#[test]
fn memory_of_this_process_and_of_a_file_goes_back_reads_as_zeros_and_is_marked() {
    for backing in [Backing::Anonymous, Backing::File] {
        let memory = ram(backing, None);
        fill(&memory, 0xaa);
        let region = memory.iter().next().expect("a region");
        MmapRegion::bitmap(region).begin();
        let before = resident(&memory);
        let reclaimer = Reclaimer::new(&memory, None);
        // What is no whole page stays.
        let given = reclaimer.reclaim(GuestAddress(0x1f_f800), 0x20_1000);
        assert_eq!(given.expect("given"), 0x20_0000, "{backing:?}");
        assert_eq!(marked(&memory), (0x200..0x400).collect::<Vec<_>>());
        assert!(before - resident(&memory) >= 0x200, "{backing:?}");
        let around = [0x1f_ffff, 0x20_0000, 0x3f_ffff, 0x40_0000];
        assert_eq!(around.map(|at| byte(&memory, at)), [0xaa, 0, 0, 0xaa]);
        // The guest has it again when it wants to.
        memory
            .write_obj(1_u8, GuestAddress(0x20_0000))
            .expect("RAM");
        assert_eq!(byte(&memory, 0x20_0000), 1);
        let _ = marked(&memory);
        reclaimer
            .reclaim(GuestAddress(0x20_0000), 4096)
            .expect("given");
        assert_eq!(byte(&memory, 0x20_0000), 0);
        assert_eq!(marked(&memory), [0x200]);
    }
}

#[test]
fn a_file_has_less_blocks_afterwards() {
    let memory = ram(Backing::File, None);
    fill(&memory, 0xaa);
    let region = memory.iter().next().expect("a region");
    let file = Arc::clone(region.file_offset().expect("a file").arc());
    let blocks = || file.metadata().expect("metadata").blocks() * 512;
    assert_eq!(blocks(), SIZE);
    let reclaimer = Reclaimer::new(&memory, None);
    reclaimer.reclaim(GuestAddress(0), 1 << 20).expect("given");
    assert_eq!(blocks(), SIZE - (1 << 20));
}

#[test]
fn what_is_not_memory_is_passed_over() {
    for backing in [Backing::Anonymous, Backing::File] {
        let memory = ram(backing, None);
        fill(&memory, 0xaa);
        let reclaimer = Reclaimer::new(&memory, None);
        let given = |start, length| reclaimer.reclaim(GuestAddress(start), length).ok();
        assert_eq!(given(SIZE, 4096), Some(0));
        assert_eq!(given(u64::MAX - 4095, u64::MAX), Some(0));
        assert_eq!(given(u64::MAX, 1), Some(0));
        assert_eq!(given(0x1001, 0xfff), Some(0));
        assert_eq!(given(0x1000, 0), Some(0));
        assert_eq!(given(SIZE - 4096, u64::MAX), Some(4096));
        assert_eq!(byte(&memory, SIZE - 1), 0);
        assert_eq!(byte(&memory, SIZE - 4097), 0xaa);
    }
}

#[test]
fn memory_in_two_pieces_goes_back_on_both_sides_of_the_hole() {
    // More than there is below the hole: it costs addresses only.
    let size = (3 << 30) + SIZE;
    let memory = allocate(&MemoryConfig::plain(size), 0, Backing::Anonymous, None);
    // A small host cannot.
    let Ok(memory) = memory else { return };
    let places = [0xbfff_f000, 0x1_0000_0000];
    for place in places {
        memory.write_obj(1_u8, GuestAddress(place)).expect("RAM");
    }
    let reclaimer = Reclaimer::new(&memory, None);
    let given = reclaimer.reclaim(GuestAddress(0xbfff_f000), 0x4000_2000);
    assert_eq!(given.expect("given"), 0x2000);
    assert_eq!(places.map(|place| byte(&memory, place)), [0, 0]);
}

#[test]
fn what_came_from_a_snapshot_does_not_come_back() {
    let file = snapshot();
    let memory = ram(Backing::Anonymous, Some(&file));
    assert_eq!(byte(&memory, DATA.start), 0x11);
    let reclaimer = Reclaimer::new(&memory, Some(&file));
    memory
        .write_obj(7_u8, GuestAddress(DATA.start - 4096))
        .expect("RAM");
    // From a hole into data.
    let given = reclaimer.reclaim(GuestAddress(DATA.start - 0x2000), 0x4000);
    assert_eq!(given.expect("given"), 0x4000);
    for page in [-2_i64, -1, 0, 1] {
        let at = DATA.start.wrapping_add_signed(page * 4096);
        assert_eq!(byte(&memory, at), 0, "{page}");
    }
    assert_eq!(byte(&memory, DATA.start + 0x2000), 0x11);
    // Again, and on to the end: what was replaced is forgotten now.
    memory
        .write_obj(9_u8, GuestAddress(DATA.start))
        .expect("RAM");
    let given = reclaimer.reclaim(GuestAddress(DATA.start), SIZE - DATA.start);
    assert_eq!(given.expect("given"), SIZE - DATA.start);
    let mut rest = vec![1; usize::try_from(SIZE - DATA.start).expect("small")];
    memory
        .read_slice(&mut rest, GuestAddress(DATA.start))
        .expect("RAM");
    assert!(rest.iter().all(|byte| *byte == 0));
    let origin = reclaimer.origin.as_ref().expect("a file");
    assert_eq!(origin.replaced.lock().pieces, 1);
    // The snapshot has what it had.
    let mut data = [0; 4096];
    file.read_exact_at(&mut data, DATA.start).expect("data");
    assert_eq!(data, [0x11; 4096]);
}

#[test]
fn a_host_without_room_for_more_pieces_leaves_what_came_from_a_snapshot_as_it_is() {
    let file = snapshot();
    let memory = ram(Backing::Anonymous, Some(&file));
    let reclaimer = Reclaimer::new(&memory, Some(&file));
    let origin = reclaimer.origin.as_ref().expect("a file");
    origin.replaced.lock().pieces = MOST_PIECES - 1;
    let given = |start, length| reclaimer.reclaim(GuestAddress(start), length).ok();
    assert_eq!(given(DATA.start, 4096), Some(4096));
    assert_eq!(given(DATA.start + 0x2000, 4096), Some(0));
    assert_eq!(byte(&memory, DATA.start), 0);
    assert_eq!(byte(&memory, DATA.start + 0x2000), 0x11);
    // Where the file has nothing, it needs no room, nor beside a piece.
    assert_eq!(given(0, DATA.start), Some(DATA.start));
    assert_eq!(given(DATA.end, SIZE), Some(SIZE - DATA.end));
    assert_eq!(byte(&memory, DATA.end - 1), 0x11);
    assert_eq!(given(DATA.start + 0x1000, 4096), Some(4096));
    assert_eq!(byte(&memory, DATA.start + 0x1000), 0);
    assert_eq!(byte(&memory, DATA.start + 0x2000), 0x11);
}

#[test]
fn every_other_page_of_a_snapshot_goes_back_without_a_mapping_too_many() {
    let file = snapshot();
    let memory = ram(Backing::Anonymous, Some(&file));
    let reclaimer = Reclaimer::new(&memory, Some(&file));
    for page in DATA.step_by(0x2000) {
        reclaimer.reclaim(GuestAddress(page), 4096).expect("given");
    }
    for page in DATA.step_by(0x2000) {
        assert_eq!(byte(&memory, page), 0);
        assert_eq!(byte(&memory, page + 4096), 0x11);
    }
}

#[test]
fn a_page_that_a_device_has_pinned_goes_back_and_what_the_device_writes_is_the_guests() {
    for backing in [Backing::Anonymous, Backing::File] {
        let memory = ram(backing, None);
        fill(&memory, 0xaa);
        let port = devices::Dma::direct(Arc::clone(&memory));
        let mut view = port.view();
        let mut pin = DmaPin::new();
        let pinned = view
            .begin()
            .pin(&mut pin, [(GuestAddress(0x5000), 4096)], Permissions::Write)
            .expect("pinned");
        let reclaimer = Reclaimer::new(&memory, None);
        assert_eq!(
            reclaimer.reclaim(GuestAddress(0x5000), 4096).ok(),
            Some(4096)
        );
        let slice = pinned.slices().next().expect("one").expect("RAM");
        slice.copy_from(&[0x55_u8; 16]);
        assert_eq!(byte(&memory, 0x5000), 0x55);
        assert_eq!(byte(&memory, 0x5010), 0);
        assert_eq!(byte(&memory, 0x6000), 0xaa);
    }
}

#[test]
fn neighbours_that_go_back_one_by_one_are_one_piece() {
    let file = snapshot();
    let memory = ram(Backing::Anonymous, Some(&file));
    let reclaimer = Reclaimer::new(&memory, Some(&file));
    let origin = reclaimer.origin.as_ref().expect("a file");
    for page in DATA.step_by(0x1000) {
        reclaimer.reclaim(GuestAddress(page), 4096).expect("given");
    }
    assert_eq!(origin.replaced.lock().pieces, 1);
}
