//! The registers of a unit and their masks (section 11.4), as they follow from its capabilities.
//!
//! A register of a feature that is not offered is left out: it reads 0 and ignores writes, as RsvdZ asks.

use super::register_file::{Register, half};
use crate::spec::registers::{Caps, FAULT_RECORD_COUNT, FAULT_RECORDS, VERSION, offset};

/// IM = 1: events are masked after reset.
const EVENT_CONTROL_RESET: u64 = 0x8000_0000;

/// Registers that belong to the lock of the command registers: all but those of the fault log and of the page-request queue.
pub(crate) fn command_registers(caps: &Caps) -> Vec<Register> {
    let mut registers = vec![
        Register::word(offset::GCMD),
        Register::word(offset::GSTS),
        Register::quad(offset::RTADDR).writable(0xFFFF_FFFF_FFFF_FC00),
        Register::quad(offset::CCMD)
            .writable(0xE000_0003_FFFF_FFFF)
            .hidden(0x0000_0003_FFFF_0000),
        Register::quad(offset::IQH),
        Register::quad(offset::IQT).writable(0x7_FFF0),
        Register::quad(offset::IQA).writable(0xFFFF_FFFF_FFFF_F807),
        Register::word(offset::ICS).clears(1),
        Register::quad(offset::IQERCD),
        Register::quad(offset::IVA)
            .writable(0xFFFF_FFFF_FFFF_F07F)
            .hidden(u64::MAX),
        Register::quad(offset::IOTLB).writable(0xB003_FFFF_0000_0000),
    ];
    registers.extend(event_registers(offset::IECTL, caps));
    if caps.ecap.ir() {
        let extended = if caps.ecap.eim() { 0x800 } else { 0 };
        registers.push(Register::quad(offset::IRTA).writable(0xFFFF_FFFF_FFFF_F00F | extended));
    }
    registers
}

/// Whether the word at `at` never changes: VER, CAP, ECAP, and what is reserved between them.
pub(crate) fn is_constant(at: u16) -> bool {
    at < offset::GCMD
}

/// What software reads from the word at `at`, which never changes.
pub(crate) fn constant(caps: &Caps, at: u16) -> u32 {
    let (quad, register) = match at & !4 {
        offset::VER => (u64::from(VERSION), offset::VER),
        offset::CAP => (caps.cap.into_bits(), offset::CAP),
        offset::ECAP => (caps.ecap.into_bits(), offset::ECAP),
        _ => (0, at),
    };
    half(quad, usize::from((at - register) / 4))
}

/// Registers that belong to the fault log's lock.
pub(crate) fn fault_registers(caps: &Caps) -> Vec<Register> {
    // ICE and ITE exist only with device-TLBs.
    let errors = if caps.ecap.dt() { 0x71 } else { 0x11 };
    let mut registers = vec![Register::word(offset::FSTS).clears(errors)];
    registers.extend(event_registers(offset::FECTL, caps));
    for index in 0..u16::from(FAULT_RECORD_COUNT) {
        let low = FAULT_RECORDS + 16 * index;
        registers.push(Register::quad(low));
        registers.push(Register::quad(low + 8).clears(1 << 63));
    }
    registers
}

/// Registers that belong to the lock of the page-request queue.
pub(crate) fn page_registers(caps: &Caps) -> Vec<Register> {
    if !caps.ecap.prs() {
        return Vec::new();
    }
    let mut registers = vec![
        Register::quad(offset::PQH).writable(0x7_FFE0),
        Register::quad(offset::PQT).writable(0x7_FFE0),
        Register::quad(offset::PQA).writable(0xFFFF_FFFF_FFFF_F007),
        Register::word(offset::PRS).clears(3),
    ];
    registers.extend(event_registers(offset::PECTL, caps));
    registers
}

/// Whether the word at `at` is one of [`page_registers`], or would be if there were any.
pub(crate) fn is_page_register(at: u16) -> bool {
    (offset::PQH..=offset::PEUADDR).contains(&at)
}

/// Whether the word at `at` is one of [`fault_registers`].
pub(crate) fn is_fault_register(at: u16) -> bool {
    let records = FAULT_RECORDS..FAULT_RECORDS + 16 * u16::from(FAULT_RECORD_COUNT);
    (offset::FSTS..=offset::FEUADDR).contains(&at) || records.contains(&at)
}

/// Control, data, address and upper address of an event, which always lie in this order.
fn event_registers(control: u16, caps: &Caps) -> impl Iterator<Item = Register> {
    [
        Some(
            Register::word(control)
                .reset(EVENT_CONTROL_RESET)
                .writable(EVENT_CONTROL_RESET),
        ),
        Some(Register::word(control + 4).writable(0xFFFF)),
        Some(Register::word(control + 8).writable(0xFFFF_FFFC)),
        // Destinations beyond 8 bits exist only in extended interrupt mode.
        caps.ecap
            .eim()
            .then(|| Register::word(control + 12).writable(0xFFFF_FFFF)),
    ]
    .into_iter()
    .flatten()
}
