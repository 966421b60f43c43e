//! What a case is made of, and the worlds that cases begin with.

use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::{Request, Stages};

/// A request of 00:03.0. The first of two numbers is the PASID, if there is one; the other the address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    Read(Option<u32>, u64),
    Write(Option<u32>, u64),
    Translation(Option<u32>, u64),
    Page(Option<u32>, u64),
    /// A read that asks for supervisor privilege.
    Supervisor(u32, u64),
    /// A read with a translated address.
    ReadTranslated(u64),
    /// Address and data.
    Interrupt(u64, u32),
    /// A request that no device of this crate can make: it is only translated, and so leaves no record.
    Walk(Request),
}

/// What a translation request is told where an untranslated one is blocked (section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// There is no such translation request.
    Nothing,
    Unsupported,
    Aborted,
    /// Success without permissions, and no record.
    NoAccess,
    /// Success without permissions, and a record nevertheless.
    NoAccessRecorded,
    /// Success with the permissions that there are.
    WhatIsPermitted,
}

/// An entry with an FPD bit: what it is called, and where the world has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(pub(super) &'static str, pub(super) u64);

pub(super) const CONTEXT_LEGACY: Place = Place("context", 0x2180);
pub(super) const CONTEXT: Place = Place("context", 0x2300);
pub(super) const DIRECTORY: Place = Place("directory", 0x3000);
pub(super) const ENTRY_0: Place = Place("PASID entry", 0x4000);
pub(super) const ENTRY_5: Place = Place("PASID entry", 0x4140);
pub(super) const ENTRY_6: Place = Place("PASID entry", 0x4180);
pub(super) const ENTRY_7: Place = Place("PASID entry", 0x41C0);
pub(super) const IRTE: Place = Place("IRTE", 0x20_0030);

/// Words to write, each row from an address on.
pub(super) type Pokes = &'static [(u64, &'static [u64])];

/// How one reason is provoked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) reason: FaultReason,
    /// What is wrong, for the table in the documentation.
    pub(super) when: &'static str,
    pub(super) base: Pokes,
    /// What differs from `base`.
    pub(super) pokes: Pokes,
    /// RTADDR.
    pub(super) root: u64,
    /// IRTA.
    pub(super) interrupt_table: u64,
    pub(super) pasid_bits: u8,
    /// MGAW.
    pub(super) address_bits: u8,
    pub(super) stages: Stages,
    /// An entry that can be read once, and not updated then.
    pub(super) loses: Option<u64>,
    pub(super) ask: Ask,
    /// The fault record: low half, high half.
    pub(super) record: [u64; 2],
    /// The entries on the way whose FPD bit is read before the fault: those suppress the record, if the reason is qualified.
    pub(super) fpd: &'static [Place],
    pub(super) told: Told,
}

/// The low half of the records of requests for 1000h.
pub(super) const AT_1000: u64 = 0x1000;
/// An entry with bit 50 set, which is beyond HAW.
pub(super) const BIT_50: u64 = 0x0004_0000_0000_0000;

pub(super) const LEGACY: Case = Case {
    reason: FaultReason::RootNotPresent,
    when: "",
    base: &[
        (0x1000, &[0x2001, 0]),
        (0x2180, &[0x3005, 0x0101]),
        (0x3000, &[0x4003]),
        (0x4000, &[0x5003]),
        (0x5008, &[0x60_0003]),
    ],
    pokes: &[],
    root: 0x1000,
    interrupt_table: 0x20_0807,
    pasid_bits: 20,
    address_bits: 48,
    stages: Stages::Nested,
    loses: None,
    ask: Ask::Read(None, 0x1000),
    record: [0, 0],
    fpd: &[],
    told: Told::Nothing,
};

pub(super) const SCALABLE: Case = Case {
    base: &[
        (0x1000, &[0x2001, 0]),
        (0x2300, &[0x301D, 0, 0, 0]),
        (0x3000, &[0x4001]),
        // PASID 0: pass-through, domain 1.
        (0x4000, &[0x0109, 1, 0, 0, 0, 0, 0, 0]),
        // PASID 5: first stage, domain 2, PWSNP.
        (0x4140, &[0x0049, 0x0080_0002, 0x5000, 0, 0, 0, 0, 0]),
        (0x5000, &[0x6027]),
        (0x6000, &[0x7027]),
        (0x7000, &[0x8027]),
        (0x8008, &[0x1_0067]),
        // PASID 6: second stage, domain 3, PWSNP.
        (0x4180, &[0x9085, 0x0080_0003, 0, 0, 0, 0, 0, 0]),
        (0x9000, &[0xA003]),
        (0xA000, &[0xB003]),
        (0xB008, &[0x60_0003]),
        // PASID 7: nested, domain 4, PWSNP.
        (0x41C0, &[0xC0C5, 0x0080_0004, 0x5000, 0, 0, 0, 0, 0]),
        (0xC000, &[0xD003]),
        (0xD000, &[0xE003]),
        (0xE028, &[0x5003, 0x6003, 0x7003, 0x8003]),
        (0xE080, &[0x60_0003]),
    ],
    root: 0x1400,
    ..LEGACY
};

pub(super) const PASID_5: Case = Case {
    ask: Ask::Read(Some(5), 0x1000),
    fpd: &[CONTEXT, DIRECTORY, ENTRY_5],
    ..SCALABLE
};

pub(super) const PASID_6: Case = Case {
    ask: Ask::Read(Some(6), 0x1000),
    fpd: &[CONTEXT, DIRECTORY, ENTRY_6],
    ..SCALABLE
};

pub(super) const PASID_7: Case = Case {
    ask: Ask::Read(Some(7), 0x1000),
    fpd: &[CONTEXT, DIRECTORY, ENTRY_7],
    ..SCALABLE
};

pub(super) const INTERRUPT: Case = Case {
    base: &[(0x20_0030, &[0x0000_0005_0041_0001, 0])],
    // Entry 3, without a subhandle.
    ask: Ask::Interrupt(0xFEE0_0070, 0),
    ..LEGACY
};
