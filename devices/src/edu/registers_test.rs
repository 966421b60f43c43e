use super::extension::Manner;
use super::registers::{Action, Copy, Direction, Registers, factorial};

fn write4(registers: &mut Registers, offset: u64, value: u32) -> Action {
    registers.write(offset, &value.to_le_bytes())
}

fn write8(registers: &mut Registers, offset: u64, value: u64) -> Action {
    registers.write(offset, &value.to_le_bytes())
}

#[test]
fn identification_and_liveness_answer() {
    let mut registers = Registers::default();
    assert_eq!(registers.read(0x00, 4), 0x0100_00ed);
    assert_eq!(write4(&mut registers, 0x04, 0x1234_5678), Action::None);
    assert_eq!(registers.read(0x04, 4), 0xedcb_a987);
}

#[test]
fn only_documented_sizes_are_answered() {
    let mut registers = Registers::default();
    for size in [1, 2, 3, 8] {
        assert_eq!(registers.read(0x00, size), u64::MAX);
    }
    assert_eq!(write8(&mut registers, 0x04, 1), Action::None);
    assert_eq!(registers.read(0x04, 4), 0);
    assert_eq!(registers.read(0x80, 2), u64::MAX);
    assert_eq!(registers.read(0x80, 8), 0);
    for offset in [0x0c, 0x60, 0x64, 0x84, 0xa0, 0x4_0000, u64::MAX] {
        assert_eq!(registers.read(offset, 4), u64::MAX, "{offset:#x}");
    }
}

#[test]
fn factorials_wrap_at_32_bits() {
    assert_eq!(factorial(0), 1);
    assert_eq!(factorial(1), 1);
    assert_eq!(factorial(12), 479_001_600);
    assert_eq!(factorial(13), 1_932_053_504);
    assert_eq!(factorial(33), 0x8000_0000);
    assert_eq!(factorial(34), 0);
    assert_eq!(factorial(u32::MAX), 0);
}

#[test]
fn a_factorial_is_busy_until_it_is_finished() {
    let mut registers = Registers::default();
    assert_eq!(write4(&mut registers, 0x20, 0xffff_ffff), Action::None);
    assert_eq!(
        registers.read(0x20, 4),
        0x80,
        "only the interrupt bit is writable"
    );
    assert_eq!(write4(&mut registers, 0x08, 5), Action::Factorial(5));
    assert_eq!(registers.read(0x20, 4), 0x81);
    assert_eq!(write4(&mut registers, 0x08, 6), Action::None);
    assert_eq!(registers.finish_factorial(120), 0x1);
    assert_eq!(registers.read(0x08, 4), 120);
    assert_eq!(registers.read(0x20, 4), 0x80);
}

#[test]
fn interrupt_bits_accumulate_until_they_are_acknowledged() {
    let mut registers = Registers::default();
    assert_eq!(write4(&mut registers, 0x60, 0x5), Action::Raise(5));
    registers.raise(5);
    registers.raise(0x100);
    assert_eq!(registers.read(0x24, 4), 0x105);
    assert_eq!(write4(&mut registers, 0x64, 0x5), Action::Acknowledge);
    assert_eq!(registers.read(0x24, 4), 0x100);
    assert!(registers.interrupt_pending());
    write4(&mut registers, 0x64, 0x100);
    assert!(!registers.interrupt_pending());
}

#[test]
fn a_copy_names_the_buffer_by_its_address_on_the_device() {
    let mut registers = Registers::default();
    write8(&mut registers, 0x80, 0x1_2345_6000);
    write8(&mut registers, 0x88, 0x4_0010);
    write4(&mut registers, 0x90, 100);
    let expected = Copy {
        direction: Direction::FromMemory,
        address: 0x1_2345_6000,
        offset: 0x10,
        length: 100,
        manner: Manner::default(),
    };
    assert_eq!(write4(&mut registers, 0x98, 0x5), Action::Copy(expected));
    assert_eq!(registers.read(0x98, 8), 0x5);
    // Registers stand still while it runs.
    write8(&mut registers, 0x80, 0);
    assert_eq!(registers.read(0x80, 8), 0x1_2345_6000);
    assert_eq!(write4(&mut registers, 0x98, 0x1), Action::None);
    assert_eq!(registers.finish_copy(), 0x100);
    assert_eq!(registers.read(0x98, 8), 0x4);

    write8(&mut registers, 0x80, 0x4_0000);
    write8(&mut registers, 0x88, 0x7000);
    write8(&mut registers, 0x90, 0x1000);
    let expected = Copy {
        direction: Direction::ToMemory,
        address: 0x7000,
        offset: 0,
        length: 0x1000,
        manner: Manner::default(),
    };
    assert_eq!(write4(&mut registers, 0x98, 0x3), Action::Copy(expected));
    assert_eq!(registers.finish_copy(), 0);
}

#[test]
fn a_copy_outside_the_buffer_does_not_start() {
    let cases = [
        (0x4_0000, 0x1001),
        (0x4_0fff, 2),
        (0x3_ffff, 1),
        (0, 1),
        (0x4_1000, 1),
        (u64::MAX, 1),
        (0x4_0001, u64::MAX),
    ];
    for (own, count) in cases {
        let mut registers = Registers::default();
        write8(&mut registers, 0x88, own);
        write8(&mut registers, 0x90, count);
        assert_eq!(
            write4(&mut registers, 0x98, 0x5),
            Action::OutOfBounds,
            "{own:#x} + {count:#x}"
        );
        assert_eq!(registers.read(0x98, 4), 0);
    }
}
