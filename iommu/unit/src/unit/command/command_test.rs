//! Registers and commands as a driver sees them.

use proptest::prelude::*;

use crate::config::Interrupts;
use crate::unit::testing::{Bench, END, full, plain};

/// Every register with a value after reset, as (offset, size, value), of a unit with everything on.
const AFTER_RESET: [(u64, u8, u64); 32] = [
    (0x000, 4, 0x50),
    (0x008, 8, 0xC1D2_078C_226F_0606),
    (0x010, 8, 0x0001_E800_04F0_0FDB),
    (0x018, 4, 0),
    (0x01C, 4, 0),
    (0x020, 8, 0),
    (0x028, 8, 0),
    (0x034, 4, 0),
    (0x038, 4, 0x8000_0000),
    (0x03C, 4, 0),
    (0x040, 4, 0),
    (0x044, 4, 0),
    (0x080, 8, 0),
    (0x088, 8, 0),
    (0x090, 8, 0),
    (0x09C, 4, 0),
    (0x0A0, 4, 0x8000_0000),
    (0x0A4, 4, 0),
    (0x0A8, 4, 0),
    (0x0AC, 4, 0),
    (0x0B0, 8, 0),
    (0x0B8, 8, 0),
    (0x0F0, 8, 0),
    (0x0F8, 8, 0),
    (0x220, 8, 0),
    (0x228, 8, 0),
    (0x230, 8, 0),
    (0x238, 8, 0),
    (0x270, 8, 0),
    (0x278, 8, 0),
    (0x290, 8, 0),
    (0x298, 8, 0),
];

/// What reads back after all ones were written, of registers whose writes command nothing.
const WRITABLE: [(u64, u8, u64); 10] = [
    (0x020, 8, 0xFFFF_FFFF_FFFF_FC00),
    (0x038, 4, 0x8000_0000),
    (0x03C, 4, 0x0000_FFFF),
    (0x040, 4, 0xFFFF_FFFC),
    (0x044, 4, 0xFFFF_FFFF),
    (0x088, 8, 0x0007_FFF0),
    (0x090, 8, 0xFFFF_FFFF_FFFF_F807),
    (0x0A4, 4, 0x0000_FFFF),
    (0x0A8, 4, 0xFFFF_FFFC),
    (0x0B8, 8, 0xFFFF_FFFF_FFFF_F80F),
];

fn check_reset_values(bench: &Bench) {
    for (at, size, value) in AFTER_RESET {
        match size {
            4 => assert_eq!(u64::from(bench.read32(at)), value, "{at:#x}"),
            _ => assert_eq!(bench.read64(at), value, "{at:#x}"),
        }
    }
}

#[test]
fn registers_come_out_of_reset_with_the_specified_values() {
    check_reset_values(&Bench::new(&full()));
}

#[test]
fn reset_restores_every_register() {
    let bench = Bench::new(&full());
    bench.scalable_mode();
    bench.enable_interrupts(true);
    bench.enable_wide_queue();
    bench.submit_wide(&[[0x15, 0, 0, 0], [0x3, 0, 0, 0]]);
    bench.write32(0x18, 0x8680_0000);
    for (at, _, value) in WRITABLE {
        bench.write64(at & !7, value | value << 32);
    }
    assert_ne!(bench.read32(0x1C), 0);
    assert_ne!(bench.read32(0x34), 0);
    bench.unit.reset();
    check_reset_values(&bench);
    assert!(!bench.unit.dma_state().latched().enabled);
}

#[test]
fn writes_change_writable_bits_and_nothing_else() {
    let bench = Bench::new(&full());
    for (at, size, value) in WRITABLE {
        if size == 4 {
            bench.write32(at, u32::MAX);
            assert_eq!(u64::from(bench.read32(at)), value, "{at:#x}");
        } else {
            bench.write64(at, u64::MAX);
            assert_eq!(bench.read64(at), value, "{at:#x}");
        }
    }
}

#[test]
fn read_only_and_write_only_registers_read_what_they_did_before() {
    let bench = Bench::new(&full());
    for at in [
        0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x80, 0x84, 0xB0, 0xB4, 0xF0, 0xF4, 0x220, 0x228,
    ] {
        let before = bench.read32(at);
        bench.write32(at, u32::MAX);
        assert_eq!(bench.read32(at), before, "{at:#x}");
    }
}

#[test]
fn registers_of_absent_features_read_zero_and_ignore_writes() {
    let absent: Vec<u64> = (0x48..0x80) // Old fault log, protected memory.
        .chain(0xC0..0xF0) // Page requests.
        .chain(0x100..0x220) // Memory types.
        .chain(0x2A0..0x1000) // Performance, enhanced and virtual commands.
        .filter(|at| at % 4 == 0)
        .chain([0x04, 0x30, 0x98])
        .collect();
    let bench = Bench::new(&full());
    for at in absent {
        bench.write32(at, u32::MAX);
        assert_eq!(bench.read32(at), 0, "{at:#x}");
    }
    let bench = Bench::new(&plain());
    for at in [0x44, 0xAC, 0xB8, 0xBC] {
        bench.write32(at, u32::MAX);
        assert_eq!(bench.read32(at), 0, "{at:#x}");
    }
    let xapic = Bench::new(&full().with_interrupts(Interrupts::Remapped { x2apic: false }));
    xapic.write64(0xB8, u64::MAX);
    assert_eq!(xapic.read64(0xB8), 0xFFFF_FFFF_FFFF_F00F);
    xapic.write32(0x44, u32::MAX);
    assert_eq!(xapic.read32(0x44), 0);
}

#[test]
fn a_quad_is_one_access_of_eight_bytes_or_two_of_four() {
    let bench = Bench::new(&full());
    bench.write64(0x20, 0x0123_4567_89AB_CC00);
    assert_eq!(bench.read32(0x20), 0x89AB_CC00);
    assert_eq!(bench.read32(0x24), 0x0123_4567);
    bench.write32(0x24, 0x1111_1111);
    bench.write32(0x20, 0x2222_2000);
    assert_eq!(bench.read64(0x20), 0x1111_1111_2222_2000);
    // Two neighbours at once.
    bench.write64(0x40, 0x0000_0100_FEE0_1000);
    assert_eq!(bench.read32(0x40), 0xFEE0_1000);
    assert_eq!(bench.read32(0x44), 0x0000_0100);
}

#[test]
fn odd_accesses_are_dropped_and_read_zero() {
    let bench = Bench::new(&full());
    bench.write64(0x20, 0x1000);
    for (at, length) in [
        (0x20, 1),
        (0x20, 2),
        (0x22, 4),
        (0x24, 8),
        (0x20, 3),
        (0x20, 16),
        (0x1000, 4),
    ] {
        bench.unit.write(at, &vec![0xFF; length]);
        assert_eq!(bench.read64(0x20), 0x1000, "{at:#x} {length}");
        let mut data = vec![0xAA; length];
        bench.unit.read(at, &mut data);
        assert_eq!(data, vec![0; length], "{at:#x} {length}");
    }
    bench.unit.write(0x20, &[]);
    bench.unit.read(0x20, &mut []);
}

#[test]
fn a_level_command_shows_in_the_status_until_it_is_taken_back() {
    for bit in [0x8000_0000, 0x0400_0000, 0x0200_0000, 0x0080_0000] {
        let bench = Bench::new(&full());
        bench.write32(0x18, bit);
        assert_eq!(bench.read32(0x1C), bit);
        assert_eq!(bench.read64(0x18), u64::from(bit) << 32);
        bench.write32(0x18, 0);
        assert_eq!(bench.read32(0x1C), 0);
    }
}

#[test]
fn one_shot_commands_leave_their_status_set() {
    let bench = Bench::new(&full());
    bench.write32(0x18, 0x4000_0000);
    assert_eq!(bench.read32(0x1C), 0x4000_0000);
    bench.write32(0x18, 0x0100_0000);
    assert_eq!(bench.read32(0x1C), 0x4100_0000);
    bench.write32(0x18, 0);
    assert_eq!(bench.read32(0x1C), 0x4100_0000);
}

#[test]
fn commands_that_do_not_exist_are_ignored() {
    let bench = Bench::new(&full());
    // WBF with RWBF = 0, the old fault log's commands, and the reserved bits.
    bench.write32(0x18, 0x387F_FFFF);
    assert_eq!(bench.read32(0x1C), 0);
    // Interrupt commands without ECAP.IR.
    let bench = Bench::new(&plain());
    bench.write32(0x18, 0x0380_0000);
    assert_eq!(bench.read32(0x1C), 0);
}

#[test]
fn several_commands_in_one_write_all_act() {
    let bench = Bench::new(&full());
    bench.write64(0x20, 0x5400);
    bench.write32(0x18, 0xC780_0000);
    assert_eq!(bench.read32(0x1C), 0xC780_0000);
    let latched = bench.unit.dma_state().latched();
    assert!(latched.enabled);
    assert_eq!(latched.root.address, 0x5000);
}

#[test]
fn the_root_pointer_takes_effect_only_when_it_is_set() {
    let bench = Bench::new(&full());
    bench.write64(0x20, 0x7000);
    assert_eq!(bench.unit.dma_state().latched().root.address, 0);
    bench.write32(0x18, 0x4000_0000);
    bench.write64(0x20, 0x9000);
    assert_eq!(bench.read64(0x20), 0x9000);
    assert_eq!(bench.unit.dma_state().latched().root.address, 0x7000);
}

#[test]
fn registers_invalidate_in_legacy_mode_and_tell_what_they_did() {
    let bench = Bench::new(&full());
    for (asked, answer) in [
        (0xA000_0000_0000_0000, 0x2800_0000_0000_0000), // Global.
        (0xC000_0000_0000_1234, 0x5000_0000_0000_1234), // Domain.
        (0xE000_0003_5678_1234, 0x7800_0000_0000_1234), // Device; FM and SID read 0.
        (0x8000_0000_0000_0000, 0),                     // Reserved.
    ] {
        bench.write64(0x28, asked);
        assert_eq!(bench.read64(0x28), answer, "{asked:#x}");
    }
    for (address, asked, answer) in [
        (0, 0x9000_0000_0000_0000, 0x1200_0000_0000_0000_u64),
        (0, 0xA003_0007_0000_0000, 0x2403_0007_0000_0000),
        (0x1000 | 18, 0xB000_0000_0000_0000, 0x3600_0000_0000_0000),
        (0x1000 | 19, 0xB000_0000_0000_0000, 0x3000_0000_0000_0000), // Mask beyond MAMV.
        (0, 0x8000_0000_0000_0000, 0),                               // Reserved.
    ] {
        bench.write64(0xF0, address);
        bench.write64(0xF8, asked);
        assert_eq!(bench.read64(0xF8), answer, "{asked:#x}");
    }
    assert_eq!(bench.unit.stats().register_invalidations, 6);
}

#[test]
fn register_invalidation_starts_with_the_high_half_only() {
    let bench = Bench::new(&full());
    bench.write32(0x2C, 0x2000_0000);
    bench.write32(0x28, 0x1234);
    assert_eq!(bench.read64(0x28), 0x2000_0000_0000_1234);
    bench.write32(0x2C, 0xA000_0000);
    assert_eq!(bench.read64(0x28), 0x2800_0000_0000_1234);
}

#[test]
fn register_invalidation_is_an_error_in_scalable_mode_and_beside_a_queue() {
    let scalable = Bench::new(&full());
    scalable.scalable_mode();
    let queue = Bench::new(&full());
    queue.enable_narrow_queue();
    for bench in [scalable, queue] {
        bench.write64(0x28, 0xA000_0000_0000_0000);
        assert_eq!(bench.read64(0x28), 0x2000_0000_0000_0000);
        bench.write64(0xF8, 0x9000_0000_0000_0000);
        assert_eq!(bench.read64(0xF8), 0x1000_0000_0000_0000);
        assert_eq!(bench.unit.stats().register_invalidations, 0);
    }
}

#[test]
fn no_value_in_any_register_stops_the_unit() {
    let bench = Bench::new(&full());
    for value in [
        u32::MAX,
        0x8000_0000,
        0xAAAA_AAAA,
        0x5555_5555,
        0x7FFF_FFFF,
        1,
        0,
    ] {
        for at in (0..0x1000).step_by(4) {
            bench.write32(at, value);
        }
        for at in (0..0x400_u32).rev().map(|word| u64::from(word) * 4) {
            bench.write64(at, u64::from(value) << 32 | u64::from(value));
            bench.read64(at);
        }
    }
    assert_eq!(bench.peek32(END - 4), 0);
}

proptest! {
    /// Whatever a driver does, each write ends, and the head stays where a queue can be.
    #[test]
    fn any_sequence_of_writes_ends(
        writes in prop::collection::vec(
            (prop::sample::select(vec![0x18_u64, 0x20, 0x28, 0x34, 0x38, 0x88, 0x90, 0xA0, 0xB8, 0xF0, 0xF8, 0x228]), any::<u64>()),
            1..64,
        ),
        words in prop::collection::vec(any::<u64>(), 64),
        pages in any::<bool>(),
    ) {
        let bench = Bench::new(&full());
        bench.poke(0x10_0000, &words);
        for (at, value) in writes {
            // Often a place in memory, and often a small tail.
            let value = match at {
                0x20 | 0x90 | 0xB8 if pages => value & 0xFFF | 0x10_0000,
                0x88 => value & 0x1FFF,
                _ => value,
            };
            if at == 0x18 {
                bench.write32(at, u32::try_from(value >> 32).unwrap());
            } else {
                bench.write64(at, value);
            }
            prop_assert!(bench.read64(0x80) < 0x8_0000);
        }
        bench.unit.reset();
        prop_assert_eq!(bench.read64(0x80), 0);
    }
}
