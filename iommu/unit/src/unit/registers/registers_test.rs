//! What writes ask for, and in which order it is taken.

use super::{GlobalWork, Registers, Work};
use crate::config::UnitConfig;
use crate::spec::registers::GlobalCommand;

fn registers() -> Registers {
    let caps = UnitConfig::scalable(46).capabilities().unwrap();
    Registers::new(&caps)
}

fn write(registers: &mut Registers, words: &[(u16, u32)]) {
    for (at, value) in words {
        assert_eq!(registers.store(*at, *value), None);
    }
}

/// Levels, root table and interrupt table.
fn taken(registers: &mut Registers) -> (u32, Option<u64>, Option<u64>) {
    let Some(Work::Global(work)) = registers.next() else {
        panic!("no command");
    };
    let table = work.table.map(|table| table.table());
    let root = work.root.map(|root| root.address);
    (GlobalCommand::into_bits(work.levels), root, table)
}

#[test]
fn commands_come_before_the_queue_and_each_is_taken_once() {
    let mut registers = registers();
    assert!(!registers.has_work());
    write(
        &mut registers,
        &[(0x88, 32), (0xFC, 0x9000_0000), (0x2C, 0xA000_0000)],
    );
    write(&mut registers, &[(0x18, 0)]);
    assert!(registers.has_command());
    assert_eq!(taken(&mut registers), (0, None, None));
    let rest = [Work::Context, Work::Iotlb, Work::Queue];
    assert_eq!([(); 3].map(|()| registers.next().unwrap()), rest);
    assert!(!registers.has_work());
    assert_eq!(registers.next(), None);
}

#[test]
fn a_queue_is_work_but_no_command() {
    let mut registers = registers();
    registers.ask_queue();
    assert!(registers.has_work() && !registers.has_command());
}

#[test]
fn the_last_command_says_what_is_on_and_the_last_pointer_of_each_kind_stays() {
    let mut registers = registers();
    write(&mut registers, &[(0x20, 0x1000), (0x18, 0x4000_0000)]);
    write(&mut registers, &[(0xB8, 0x2000), (0x18, 0x8100_0000)]);
    write(
        &mut registers,
        &[(0xB8, 0x3000), (0x20, 0x4000), (0x18, 0x0100_0000)],
    );
    assert_eq!(
        taken(&mut registers),
        (0x0100_0000, Some(0x1000), Some(0x3000))
    );
}

#[test]
fn what_is_put_back_comes_before_what_was_asked_for_since() {
    let mut registers = registers();
    write(
        &mut registers,
        &[(0x20, 0x1000), (0xB8, 0x2000), (0x18, 0xC100_0000)],
    );
    let Some(work) = registers.next() else {
        panic!("no command");
    };
    write(&mut registers, &[(0xB8, 0x3000), (0x18, 0x0100_0000)]);
    registers.put_back(work);
    assert_eq!(
        taken(&mut registers),
        (0x0100_0000, Some(0x1000), Some(0x3000))
    );
    let half_done = GlobalWork {
        levels: GlobalCommand::from_bits(0x8000_0000),
        root: None,
        table: None,
    };
    registers.put_back(Work::Global(half_done));
    assert_eq!(taken(&mut registers), (0x8000_0000, None, None));
}
