//! The invalidation queue as a driver sees it.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::dma::{DmaPort, DmaView};
use crate::spec::ids::SourceId;
use crate::unit::testing::{Bench, END, Memory, QUEUE, STATUS, full, plain};

/// Wait with status 2 at STATUS, as Linux encodes it.
const WAIT: [u64; 4] = [0x0000_0002_0000_0025, 0x30_0000, 0, 0];

/// A type that does not exist.
const BAD: [u64; 4] = [0, 0, 0, 0];

fn scalable() -> Bench {
    let bench = Bench::new(&full());
    bench.scalable_mode();
    bench.enable_wide_queue();
    bench
}

/// (IQH, IQEI, FSTS.IQE)
fn state(bench: &Bench) -> (u64, u64, bool) {
    let error = bench.read32(0x34) & 0x10 != 0;
    (bench.read64(0x80), bench.read64(0xB0), error)
}

#[test]
fn a_tail_write_returns_when_all_is_done() {
    let bench = scalable();
    bench.submit_wide(&[
        [0x11, 0, 0, 0],                  // Context, global.
        [0x37, 0, 0, 0],                  // PASID cache, global.
        [0xD2, 0, 0, 0],                  // IOTLB, global.
        [0x0000_1234_0000_0031, 0, 0, 0], // Context, device.
        [0x0002_0017, 0, 0, 0],           // PASID cache, domain 2, PASID 0.
        [0x0002_0026, 0, 0, 0],           // PASID IOTLB, all.
        [0x0003_0036, 0x1234_5040, 0, 0], // PASID IOTLB, page.
        [0x0003_00F2, 0x1234_5001, 0, 0], // IOTLB, pages.
        [0x0000_0005_0000_0014, 0, 0, 0], // Interrupt entry.
        WAIT,
    ]);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(state(&bench), (10 * 32, 0, false));
    let stats = bench.unit.stats();
    assert_eq!(stats.context_invalidations, 2);
    assert_eq!(stats.pasid_cache_invalidations, 2);
    assert_eq!(stats.iotlb_invalidations, 2);
    assert_eq!(stats.pasid_iotlb_invalidations, 2);
    assert_eq!(stats.interrupt_invalidations, 1);
    assert_eq!(stats.waits, 1);
}

#[test]
fn a_narrow_queue_serves_legacy_mode() {
    let bench = Bench::new(&plain());
    bench.enable_narrow_queue();
    bench.submit_narrow(&[[0x11, 0], [0xD2, 0], [WAIT[0], WAIT[1]]]);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(state(&bench), (48, 0, false));
}

#[test]
fn a_wide_queue_serves_legacy_mode_too() {
    let bench = Bench::new(&full());
    bench.enable_wide_queue();
    bench.submit_wide(&[[0x11, 0, 0, 0], WAIT]);
    assert_eq!(state(&bench), (64, 0, false));
    bench.submit_wide(&[[0x26, 0, 0, 0]]);
    assert_eq!(
        state(&bench),
        (64, 3, true),
        "there are no PASIDs in legacy mode"
    );
}

#[test]
fn the_tail_may_be_written_in_four_or_eight_bytes() {
    let bench = scalable();
    bench.poke(QUEUE, &WAIT);
    bench.write64(0x88, 32);
    assert_eq!(bench.peek32(STATUS), 2);
    bench.poke(QUEUE + 32, &[0x0000_0003_0000_0025, 0x30_0000, 0, 0]);
    bench.write32(0x88, 64);
    assert_eq!(bench.peek32(STATUS), 3);
}

#[test]
fn the_queue_wraps() {
    let bench = scalable();
    for round in 0..600 {
        bench.submit_wide(&[[round << 32 | 0x25, 0x30_0000, 0, 0]]);
        assert_eq!(u64::from(bench.peek32(STATUS)), round);
    }
    assert_eq!(state(&bench), (600 * 32 % 0x2000, 0, false));
}

#[test]
fn a_full_queue_is_processed_in_one_write() {
    let bench = scalable();
    for at in (0..0x2000).step_by(32) {
        bench.poke(QUEUE + at, &[0x11, 0, 0, 0]);
    }
    bench.write32(0x88, 0x1FE0);
    assert_eq!(state(&bench), (0x1FE0, 0, false));
    assert_eq!(bench.unit.stats().context_invalidations, 255);
}

#[test]
fn nothing_is_fetched_while_the_queue_is_off() {
    let bench = Bench::new(&full());
    bench.write64(0x90, 0x10_0801);
    bench.submit_wide(&[WAIT]);
    assert_eq!(bench.peek32(STATUS), 0);
    // Switching it on is enough, even if software was not to leave work there.
    bench.write32(0x18, 0x0400_0000);
    assert_eq!(bench.peek32(STATUS), 2);
}

#[test]
fn switching_the_queue_off_resets_the_head() {
    let bench = scalable();
    bench.submit_wide(&[WAIT]);
    assert_eq!(bench.read64(0x80), 32);
    bench.write32(0x18, 0);
    assert_eq!(bench.read64(0x80), 0);
    assert_eq!(bench.read64(0x88), 32);
}

#[test]
fn an_error_leaves_the_head_at_the_descriptor_and_finishes_what_came_before() {
    let bench = scalable();
    bench.submit_wide(&[WAIT, BAD, WAIT]);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(state(&bench), (32, 3, true));
    assert_eq!(bench.unit.stats().queue_errors, 1);
}

#[test]
fn a_stopped_queue_takes_tails_without_effect_until_the_error_is_cleared() {
    let bench = scalable();
    bench.submit_wide(&[BAD]);
    bench.submit_wide(&[WAIT]);
    assert_eq!(bench.peek32(STATUS), 0);
    // As Linux does: put something else in its place, then clear the error.
    bench.poke(QUEUE, &[0x0000_0009_0000_0025, 0x30_0004, 0, 0]);
    bench.write32(0x34, 0x10);
    assert_eq!(bench.peek32(STATUS + 4), 9);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(state(&bench), (64, 0, false));
}

#[test]
fn clearing_the_error_without_a_remedy_brings_it_back() {
    let bench = scalable();
    bench.submit_wide(&[BAD]);
    bench.write32(0x34, 0x10);
    assert_eq!(state(&bench), (0, 3, true));
    assert_eq!(bench.unit.stats().queue_errors, 2);
    // Writing 0 clears nothing.
    bench.write32(0x34, 0);
    assert_eq!(bench.unit.stats().queue_errors, 2);
}

#[test]
fn error_1_the_tail_is_beyond_the_queue() {
    let bench = scalable();
    bench.poke(QUEUE, &WAIT);
    bench.write32(0x88, 0x2000);
    assert_eq!(state(&bench), (0, 1, true));
    assert_eq!(bench.peek32(STATUS), 0);
    bench.write32(0x88, 32);
    bench.write32(0x34, 0x10);
    assert_eq!(state(&bench), (32, 0, false));
}

#[test]
fn error_1_the_queue_shrank_under_its_head() {
    let bench = scalable();
    bench.submit_wide(&vec![[0x11, 0, 0, 0]; 0x80 + 1]);
    assert_eq!(bench.read64(0x80), 0x1020);
    bench.write64(0x90, 0x10_0800);
    bench.write32(0x88, 0);
    assert_eq!(state(&bench), (0x1020, 1, true));
}

#[test]
fn error_2_the_descriptor_is_not_in_memory() {
    for base in [END, 0x0000_4000_0000_0000, 0xFFFF_FFFF_FFFF_F000] {
        let bench = Bench::new(&full());
        bench.write64(0x90, base | 0x801);
        bench.write32(0x18, 0x0400_0000);
        bench.write32(0x88, 32);
        assert_eq!(state(&bench), (0, 2, true), "{base:#x}");
    }
}

#[test]
fn error_3_the_type_does_not_exist() {
    // Device-TLBs (3, 8) and page requests (9) are not offered.
    for kind in [0x0, 0x3, 0x8, 0x9, 0xA, 0xB, 0xF, 0x201, 0xE05] {
        let bench = scalable();
        bench.submit_wide(&[[kind, 0, 0, 0]]);
        assert_eq!(state(&bench), (0, 3, true), "{kind:#x}");
    }
    let narrow = Bench::new(&plain());
    narrow.enable_narrow_queue();
    narrow.submit_narrow(&[[4, 0]]);
    assert_eq!(state(&narrow), (0, 3, true));
}

#[test]
fn error_4_a_reserved_field_is_not_zero() {
    for words in [
        [0x01, 0, 0, 0],         // Granularity 0.
        [0x51, 0, 0, 0],         // Bit 6.
        [0x11, 1, 0, 0],         // Second word.
        [0x11, 0, 1, 0],         // Third word.
        [0x11, 0, 0, 1 << 63],   // Fourth word.
        [0xF2, 19, 0, 0],        // Mask beyond MAMV.
        [0xA5, 0, 0, 0],         // Page-request drain.
        [0x25, 0x30_0001, 0, 0], // Status address.
        [0x06, 0, 0, 0],
        [0x27, 0, 0, 0],
    ] {
        let bench = scalable();
        bench.submit_wide(&[words]);
        assert_eq!(state(&bench), (0, 4, true), "{words:x?}");
    }
}

#[test]
fn error_5_the_width_does_not_go_with_the_mode() {
    let scalable = Bench::new(&full());
    scalable.scalable_mode();
    scalable.enable_narrow_queue();
    scalable.submit_narrow(&[[0x11, 0]]);
    assert_eq!(state(&scalable), (0, 5, true));
    let legacy = Bench::new(&plain());
    legacy.enable_wide_queue();
    legacy.submit_wide(&[[0x11, 0, 0, 0]]);
    assert_eq!(state(&legacy), (0, 5, true));
}

#[test]
fn error_6_the_tail_is_not_aligned_to_the_width() {
    let bench = scalable();
    bench.write32(0x88, 0x30);
    assert_eq!(state(&bench), (0, 6, true));
    // The head can be odd only if the width changed.
    let bench = Bench::new(&full());
    bench.enable_narrow_queue();
    bench.submit_narrow(&[[0x11, 0]]);
    bench.write64(0x90, 0x10_0801);
    bench.write32(0x88, 0x40);
    assert_eq!(state(&bench), (0x10, 6, true));
}

#[test]
fn error_7_the_table_mode_is_reserved() {
    for root in [0x1800, 0x1C00] {
        let bench = Bench::new(&full());
        bench.write64(0x20, root);
        bench.write32(0x18, 0x4000_0000);
        bench.enable_wide_queue();
        bench.submit_wide(&[[0x11, 0, 0, 0]]);
        assert_eq!(state(&bench), (0, 7, true), "{root:#x}");
    }
}

#[test]
fn a_wait_without_status_and_interrupt_just_completes() {
    let bench = scalable();
    bench.submit_wide(&[
        [0x45, 0, 0, 0],
        [0xFFFF_FFFF_0000_0005, 0xFFFF_FFFF_FFFF_FFFC, 0, 0],
    ]);
    assert_eq!(state(&bench), (64, 0, false));
    assert_eq!(bench.read32(0x9C), 0);
}

#[test]
fn a_status_address_beyond_the_host_width_is_cut_and_one_without_memory_lost() {
    let bench = scalable();
    bench.submit_wide(&[[0x0000_0007_0000_0025, 0xFFFF_C000_0030_0000, 0, 0]]);
    assert_eq!(bench.peek32(STATUS), 7);
    bench.submit_wide(&[[0x0000_0007_0000_0025, END, 0, 0], WAIT]);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(bench.unit.stats().lost_statuses, 1);
}

#[test]
fn a_completion_interrupt_comes_after_the_status_and_once_until_it_is_cleared() {
    let bench = scalable();
    bench.write32(0xA4, 0x45);
    bench.write64(0xA8, 0x0000_0100_FEE0_2000);
    bench.write32(0xA0, 0);
    bench.submit_wide(&[
        [0x0000_0008_0000_0035, 0x30_0000, 0, 0],
        [0x0000_0009_0000_0035, 0x30_0004, 0, 0],
    ]);
    assert_eq!(bench.sink.take(), [(0x0000_0100_FEE0_2000, 0x45)]);
    assert_eq!(bench.sink.status_seen(), Some(8));
    assert_eq!(bench.read32(0x9C), 1);
    bench.submit_wide(&[[0x15, 0, 0, 0]]);
    assert_eq!(bench.sink.take(), []);
    bench.write32(0x9C, 1);
    assert_eq!(bench.read32(0x9C), 0);
    bench.submit_wide(&[[0x15, 0, 0, 0]]);
    assert_eq!(bench.sink.take(), [(0x0000_0100_FEE0_2000, 0x45)]);
}

#[test]
fn a_masked_completion_interrupt_is_kept_until_it_is_unmasked_or_cleared() {
    let bench = scalable();
    bench.write32(0xA4, 0x45);
    bench.write32(0xA8, 0xFEE0_2000);
    bench.submit_wide(&[[0x15, 0, 0, 0]]);
    assert_eq!(bench.read32(0xA0), 0xC000_0000);
    bench.write32(0xA0, 0);
    assert_eq!(bench.sink.take(), [(0xFEE0_2000, 0x45)]);
    bench.write32(0x9C, 1);
    bench.write32(0xA0, 0x8000_0000);
    bench.submit_wide(&[[0x15, 0, 0, 0]]);
    bench.write32(0x9C, 1);
    assert_eq!(bench.read32(0xA0), 0x8000_0000);
    bench.write32(0xA0, 0);
    assert_eq!(bench.sink.take(), []);
}

#[test]
fn completion_is_no_fault_event() {
    let bench = scalable();
    bench.unmask_faults();
    bench.submit_wide(&[[0x15, 0, 0, 0]]);
    assert_eq!(bench.sink.take(), []);
    assert_eq!(bench.read32(0x34), 0);
}

fn view(bench: &Bench) -> DmaView<Memory> {
    DmaPort::behind(Arc::clone(bench.unit.dma_state()), SourceId(0x0018)).view()
}

/// How many table walks two writes of the device take: none once its view knows the page.
fn walks(view: &mut DmaView<Memory>) -> u64 {
    let before = view.walks();
    for _ in 0..2 {
        view.begin().write_obj(1_u64, GuestAddress(0x10)).unwrap();
    }
    view.walks() - before
}

#[test]
fn every_invalidation_of_translations_makes_devices_walk_again() {
    let bench = Bench::new(&full());
    bench.pass_through_scalable();
    bench.enable_wide_queue();
    let mut view = view(&bench);
    assert_eq!(walks(&mut view), 1);
    assert_eq!(walks(&mut view), 0);
    for low in [
        0x11,
        0x0001_0021,
        0x0018_0000_0031,
        0xD2,
        0x0001_00E2,
        0x0001_00F2,
        0x0001_0026,
        0x0001_0036,
        0x0001_0007,
        0x0001_0017,
        0x37,
    ] {
        bench.submit_wide(&[[low, 0, 0, 0]]);
        assert_eq!(walks(&mut view), 1, "{low:#x}");
    }
    for low in [0x04, 0x14, 0x05, 0x15] {
        bench.submit_wide(&[[low, 0, 0, 0]]);
        assert_eq!(walks(&mut view), 0, "{low:#x}");
    }
    assert!(!state(&bench).2);
}

#[test]
fn commands_and_registers_invalidate_translations_too() {
    let bench = Bench::new(&full());
    bench.map_legacy(0x60_0000);
    let mut view = view(&bench);
    assert_eq!(walks(&mut view), 1);
    bench.write64(0x28, 0xA000_0000_0000_0000);
    assert_eq!(walks(&mut view), 1, "CCMD");
    bench.write64(0xF8, 0x9000_0000_0000_0000);
    assert_eq!(walks(&mut view), 1, "IOTLB_REG");
    bench.write32(0x18, 0xC000_0000);
    assert_eq!(walks(&mut view), 1, "SRTP");
    bench.write32(0x18, 0);
    assert_eq!(walks(&mut view), 0, "untranslated");
    bench.write32(0x18, 0x8000_0000);
    assert_eq!(walks(&mut view), 1, "TE");
}
