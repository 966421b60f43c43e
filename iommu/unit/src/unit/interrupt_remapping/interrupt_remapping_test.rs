//! Interrupt requests in both formats, and every reason to block one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::InterruptMessage;
use crate::spec::ids::SourceId;
use crate::unit::testing::{Bench, END, STATUS, TABLE, full, plain};
use crate::unit::{InlineBudget, InterruptEntryObserver, Patience, Unfinished};

/// Fixed, physical, edge, vector 0x41; APIC 7 in extended mode.
const ENTRY: [u64; 2] = [0x0000_0007_0041_0001, 0];

fn bench(extended: bool) -> Bench {
    let bench = Bench::new(&full());
    bench.enable_interrupts(extended);
    bench
}

fn remap(bench: &Bench, address: u64, data: u32) -> Result<(u64, u32), u8> {
    match bench.unit.remap(SourceId(0x0018), address, data) {
        Ok(message) => Ok((message.address, message.data)),
        Err(blocked) => Err(blocked.reason.code()),
    }
}

/// Remaps the remappable request for `index` with SHV = 0.
fn remap_index(bench: &Bench, index: u64) -> Result<(u64, u32), u8> {
    let address = 0xFEE0_0010 | (index & 0x7FFF) << 5 | (index >> 15) << 2;
    remap(bench, address, 0xDEAD_BEEF)
}

fn set(bench: &Bench, index: u64, entry: [u64; 2]) {
    bench.poke(TABLE + 16 * index, &entry);
}

/// Asserts that exactly one fault was recorded, with this code and this index in FI.
fn assert_recorded(bench: &Bench, code: u64, index: u64) {
    assert_eq!(bench.read64(0x220), index << 48, "code {code:#x}");
    assert_eq!(bench.read64(0x228), 0x8000_0000_0000_0018 | code << 32);
    assert_eq!(bench.read32(0x23C), 0, "code {code:#x}");
}

#[test]
fn requests_pass_unchanged_while_remapping_is_off() {
    let bench = Bench::new(&full());
    for address in [0xFEE0_1000, 0xFEE0_0010, 0xFEEF_FFFF, 0x0000_0100_FEE0_1000] {
        assert_eq!(remap(&bench, address, 0x4041), Ok((address, 0x4041)));
    }
    assert_eq!(
        remap(&Bench::new(&plain()), 0xFEE0_0010, 1),
        Ok((0xFEE0_0010, 1))
    );
    assert_eq!(bench.unit.stats().interrupts_passed, 4);
}

#[test]
fn an_entry_determines_the_whole_message() {
    let bench = bench(true);
    set(&bench, 0, ENTRY);
    assert_eq!(remap_index(&bench, 0), Ok((0xFEE0_7000, 0x41)));
    // Logical, redirection hint, lowest priority.
    set(&bench, 1, [0x0000_0007_00FE_002D, 0]);
    assert_eq!(remap_index(&bench, 1), Ok((0xFEE0_700C, 0x1FE)));
    // Level: asserted. NMI.
    set(&bench, 2, [0x0000_00FF_0000_0091, 0]);
    assert_eq!(remap_index(&bench, 2), Ok((0xFEEF_F000, 0xC400)));
    // Software bits are of no matter.
    set(&bench, 3, [0x0000_0007_0041_0F01, 0]);
    assert_eq!(remap_index(&bench, 3), Ok((0xFEE0_7000, 0x41)));
    assert_eq!(bench.unit.stats().interrupts_remapped, 4);
}

#[test]
fn an_extended_destination_is_split_between_both_halves_of_the_address() {
    let bench = bench(true);
    set(&bench, 5, [0x1234_5678_0041_0001, 0]);
    assert_eq!(remap_index(&bench, 5), Ok((0x1234_5600_FEE7_8000, 0x41)));
}

#[test]
fn without_extended_mode_the_destination_is_one_byte() {
    let bench = bench(false);
    set(&bench, 5, [0x0000_AB00_0041_0001, 0]);
    assert_eq!(remap_index(&bench, 5), Ok((0xFEEA_B000, 0x41)));
}

#[test]
fn the_handle_has_sixteen_bits_in_three_places() {
    let bench = Bench::new(&full());
    // 65536 entries.
    bench.write64(0xB8, 0x20_080F);
    bench.write32(0x18, 0x0100_0000);
    bench.write32(0x18, 0x0200_0000);
    set(&bench, 0xA5A5, [0x0000_0001_0051_0001, 0]);
    assert_eq!(remap(&bench, 0xFEE4_B4B4, 0), Ok((0xFEE0_1000, 0x51)));
    set(&bench, 0xFFFF, [0x0000_0002_0052_0001, 0]);
    assert_eq!(remap(&bench, 0xFEEF_FFF4, 0), Ok((0xFEE0_2000, 0x52)));
}

#[test]
fn a_valid_subhandle_is_added_and_an_invalid_one_ignored() {
    let bench = bench(true);
    set(&bench, 0x10, ENTRY);
    set(&bench, 0x13, [0x0000_0007_0043_0001, 0]);
    assert_eq!(remap(&bench, 0xFEE0_0218, 3), Ok((0xFEE0_7000, 0x43)));
    assert_eq!(
        remap(&bench, 0xFEE0_0210, 0xFFFF_0003),
        Ok((0xFEE0_7000, 0x41))
    );
}

#[test]
fn code_20_data_above_the_subhandle_is_reserved() {
    let bench = bench(true);
    assert_eq!(remap(&bench, 0xFEE0_0218, 0x0001_0000), Err(0x20));
    assert_recorded(&bench, 0x20, 0);
}

#[test]
fn code_21_the_index_is_beyond_the_table() {
    let inside = bench(true);
    set(&inside, 0xFF, ENTRY);
    assert!(remap_index(&inside, 0xFF).is_ok());
    assert_eq!(remap_index(&inside, 0x100), Err(0x21));
    assert_recorded(&inside, 0x21, 0x100);
    // With a carry out of 16 bits, too.
    let carry = Bench::new(&full());
    carry.write64(0xB8, 0x20_080F);
    carry.write32(0x18, 0x0100_0000);
    carry.write32(0x18, 0x0200_0000);
    assert_eq!(remap(&carry, 0xFEEF_FFFC, 1), Err(0x21));
    assert_recorded(&carry, 0x21, 0);
}

#[test]
fn code_21_the_entry_is_beyond_the_host_address_width() {
    for table in [0x0000_4000_0000_0800, 0xFFFF_FFFF_FFFF_F80F] {
        let bench = Bench::new(&full());
        bench.write64(0xB8, table);
        bench.write32(0x18, 0x0100_0000);
        bench.write32(0x18, 0x0200_0000);
        assert_eq!(remap_index(&bench, 1), Err(0x21));
        assert_recorded(&bench, 0x21, 1);
    }
}

#[test]
fn code_22_the_entry_is_not_present() {
    let bench = bench(true);
    set(&bench, 9, [0xFFFF_FFFF_FFFF_FFFC, u64::MAX]);
    assert_eq!(remap_index(&bench, 9), Err(0x22));
    assert_recorded(&bench, 0x22, 9);
}

#[test]
fn code_23_the_entry_is_not_in_memory() {
    let bench = Bench::new(&full());
    bench.write64(0xB8, END | 0x807);
    bench.write32(0x18, 0x0100_0000);
    bench.write32(0x18, 0x0200_0000);
    assert_eq!(remap_index(&bench, 9), Err(0x23));
    assert_recorded(&bench, 0x23, 9);
}

#[test]
fn code_24_the_entry_is_malformed() {
    for entry in [
        [0x0000_0007_0041_1001, 0],           // Bit 12.
        [0x0000_0007_0041_4001, 0],           // URG without posted interrupts.
        [0x0000_0007_0041_8001, 0],           // IM without posted interrupts.
        [0x0000_0007_0141_0001, 0],           // Bit 24.
        [0x0000_0007_0041_0061, 0],           // Delivery mode 3.
        [0x0000_0007_0041_00C1, 0],           // Delivery mode 6.
        [0x0000_0007_0041_0001, 0x10_0000],   // Bit 84.
        [0x0000_0007_0041_0001, 0x000C_0000], // Verification type 3.
    ] {
        let bench = bench(true);
        set(&bench, 9, entry);
        assert_eq!(remap_index(&bench, 9), Err(0x24), "{entry:x?}");
        assert_recorded(&bench, 0x24, 9);
    }
    let xapic = bench(false);
    set(&xapic, 9, ENTRY);
    assert_eq!(remap_index(&xapic, 9), Err(0x24));
    assert_recorded(&xapic, 0x24, 9);
}

#[test]
fn code_25_compatibility_format_is_blocked_unless_it_is_allowed() {
    let blocked = bench(false);
    assert_eq!(remap(&blocked, 0xFEE0_1000, 0x41), Err(0x25));
    assert_recorded(&blocked, 0x25, 0);
    blocked.write32(0x18, 0x0280_0000);
    assert_eq!(remap(&blocked, 0xFEE0_1008, 0x41), Ok((0xFEE0_1008, 0x41)));
    // Never in extended mode.
    let extended = bench(true);
    extended.write32(0x18, 0x0280_0000);
    assert_eq!(extended.read32(0x1C), 0x0380_0000);
    assert_eq!(remap(&extended, 0xFEE0_1000, 0x41), Err(0x25));
    assert_recorded(&extended, 0x25, 0);
}

#[test]
fn code_26_the_source_is_another() {
    let bench = bench(true);
    set(&bench, 9, [ENTRY[0], 0x0004_0018]);
    assert!(remap_index(&bench, 9).is_ok());
    set(&bench, 9, [ENTRY[0], 0x0004_0019]);
    assert_eq!(remap_index(&bench, 9), Err(0x26));
    assert_recorded(&bench, 0x26, 9);
    // A range of buses.
    set(&bench, 10, [ENTRY[0], 0x0008_0001]);
    assert!(remap_index(&bench, 10).is_ok());
    set(&bench, 10, [ENTRY[0], 0x0008_0102]);
    assert_eq!(remap_index(&bench, 10), Err(0x26));
}

#[test]
fn the_source_is_checked_before_the_format() {
    let bench = bench(true);
    set(&bench, 9, [0x0000_0007_0041_1001, 0x0004_0019]);
    assert_eq!(remap_index(&bench, 9), Err(0x26));
}

#[test]
fn an_entry_suppresses_its_own_faults_even_when_it_is_not_present() {
    let bench = bench(true);
    set(&bench, 1, [2, 0]);
    set(&bench, 2, [0x0000_0007_0041_1003, 0]);
    set(&bench, 3, [0x0000_0007_0041_0003, 0x0004_0019]);
    assert_eq!(remap_index(&bench, 1), Err(0x22));
    assert_eq!(remap_index(&bench, 2), Err(0x24));
    assert_eq!(remap_index(&bench, 3), Err(0x26));
    assert_eq!(bench.read32(0x34), 0);
    let stats = bench.unit.stats();
    assert_eq!((stats.interrupts_blocked, stats.faults_suppressed), (3, 3));
}

#[test]
fn what_is_outside_of_the_interrupt_range_is_no_interrupt() {
    let bench = bench(true);
    for address in [0xFED0_0010, 0xFEF0_0010, 0x0000_0001_FEE0_0010, 0] {
        assert_eq!(remap(&bench, address, 0), Err(0x29), "{address:#x}");
    }
    assert_eq!(bench.read32(0x34), 0);
}

#[test]
fn asking_without_a_request_records_nothing() {
    let bench = bench(true);
    let before = bench.unit.stats();
    let answer = bench.unit.resolve_interrupt(SourceId(0x18), 0xFEE0_0010, 0);
    assert_eq!(answer.unwrap_err().reason.code(), 0x22);
    assert_eq!(bench.read32(0x34), 0);
    assert_eq!(bench.unit.stats(), before);
}

#[test]
fn a_table_that_is_not_set_yet_is_not_used() {
    let bench = bench(true);
    set(&bench, 0, ENTRY);
    bench.write64(0xB8, 0x40_0807);
    assert!(remap_index(&bench, 0).is_ok());
    bench.write32(0x18, 0x0300_0000);
    assert_eq!(remap_index(&bench, 0), Err(0x22));
}

#[derive(Default)]
struct Observer(Mutex<Vec<(u16, u32)>>);

impl InterruptEntryObserver for Observer {
    fn interrupt_entries_invalidated(
        &self,
        first: u16,
        count: u32,
        _: &Patience,
    ) -> Result<(), Unfinished> {
        self.0.lock().unwrap().push((first, count));
        Ok(())
    }
}

#[test]
fn observers_hear_of_every_change_to_entries_and_to_remapping() {
    let bench = Bench::new(&full());
    let observer = Arc::new(Observer::default());
    bench
        .unit
        .observe_interrupt_entries(Arc::clone(&observer) as _);
    let heard = || std::mem::take(&mut *observer.0.lock().unwrap());
    bench.enable_interrupts(true);
    assert_eq!(heard(), [(0, 0x1_0000), (0, 0x1_0000)]);
    bench.enable_wide_queue();
    assert_eq!(heard(), []);
    bench.submit_wide(&[
        [0x0000_0025_1000_0014, 0, 0, 0],
        [0x0000_0002_0000_0025, 0x30_0000, 0, 0],
    ]);
    assert_eq!(heard(), [(0x24, 4)]);
    // Without a wait they are heard, too: neighbours as one, others apart.
    bench.submit_wide(&[
        [0x0000_0025_0000_0014, 0, 0, 0],
        [0x0000_0020_0000_0014, 0, 0, 0],
        [0x0000_0026_0000_0014, 0, 0, 0],
    ]);
    assert_eq!(heard(), [(0x25, 2), (0x20, 1)]);
    // Too many to be told apart: the first one covers the rest.
    let many: Vec<[u64; 4]> = (0..20).map(|entry| [entry << 33 | 0x14, 0, 0, 0]).collect();
    bench.submit_wide(&many);
    let ranges = heard();
    assert_eq!(ranges.len(), 16);
    assert_eq!(ranges.first(), Some(&(0, 39)));
    bench.submit_wide(&[[0x4, 0, 0, 0]]);
    assert_eq!(heard(), [(0, 0x1_0000)]);
    bench.write32(0x18, 0x0400_0000);
    assert_eq!(heard(), [(0, 0x1_0000)]);
    bench.unit.reset();
    assert_eq!(heard(), [(0, 0x1_0000)]);
}

/// Finishes with the ranges that it is to hear, one in each call that is not a register write's.
#[derive(Default)]
struct Slow {
    heard: Mutex<Vec<(u16, u32)>>,
    /// Calls until it does.
    left: AtomicUsize,
}

impl InterruptEntryObserver for Slow {
    fn interrupt_entries_invalidated(
        &self,
        first: u16,
        count: u32,
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        self.heard.lock().unwrap().push((first, count));
        let left = |left: usize| left.checked_sub(1);
        let is_left = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        if is_left.is_ok() || patience.steps() != u64::MAX {
            return Err(Unfinished);
        }
        Ok(())
    }
}

#[test]
fn nothing_completes_before_all_observers_have_finished() {
    let bench = Bench::new(&full());
    bench.enable_wide_queue();
    let observer = Arc::new(Slow::default());
    bench
        .unit
        .observe_interrupt_entries(Arc::clone(&observer) as _);
    bench
        .unit
        .run_in_background(InlineBudget::default(), Arc::new(|| {}));
    let heard = || std::mem::take(&mut *observer.heard.lock().unwrap());
    let run = || bench.unit.run_backlog(&Arc::default());
    bench.write64(0xB8, 0x20_0807);
    for (command, shown) in [(0x0500_0000, 0x0500_0000), (0x0600_0000, 0x0700_0000)] {
        let before = bench.read32(0x1C);
        bench.write32(0x18, command);
        assert_eq!(
            bench.read32(0x1C),
            before & !0x0100_0000 | before & shown & 0x0100_0000
        );
        assert_eq!(heard(), [(0, 0x1_0000)]);
        run();
        assert_eq!(bench.read32(0x1C), shown);
        assert_eq!(heard(), [(0, 0x1_0000)]);
    }
    // The second range is told twice, and the first is not told again.
    bench.submit_wide(&[
        [0x0000_0025_0000_0014, 0, 0, 0],
        [0x0000_0020_0000_0014, 0, 0, 0],
        [0x0000_0002_0000_0025, STATUS, 0, 0],
    ]);
    assert_eq!((heard(), bench.peek32(STATUS)), (vec![(0x25, 1)], 0));
    observer.left.store(2, Ordering::SeqCst);
    run();
    assert_eq!(heard(), [(0x25, 1), (0x25, 1), (0x25, 1), (0x20, 1)]);
    assert_eq!(bench.peek32(STATUS), 2);
    // Without a wait as well.
    bench.submit_wide(&[[0x0000_0025_0000_0014, 0, 0, 0]]);
    assert_eq!(heard(), [(0x25, 1)]);
    run();
    assert_eq!(heard(), [(0x25, 1)]);
}

#[test]
fn a_request_names_its_entry_unless_it_is_in_compatibility_format() {
    let index = |address, data| InterruptMessage { address, data }.entry_index();
    assert_eq!(index(0xFEE0_0010 | 0x25 << 5, 7), Some(0x25));
    assert_eq!(index(0xFEE0_0018 | 0x25 << 5, 7), Some(0x2C));
    assert_eq!(index(0xFEE0_0014, 0), Some(0x8000));
    assert_eq!(index(0xFEE0_0018, 0x1_0000), None);
    assert_eq!(index(0xFEE0_1000, 0x31), None);
    assert_eq!(index(0xFED0_0010, 0), None);
    assert_eq!(index(0x1_FEE0_0010, 0), None);
}
