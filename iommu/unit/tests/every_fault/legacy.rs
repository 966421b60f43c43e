//! Interrupts and legacy mode: codes 1 to 32h.

use super::case::Told::{Aborted, NoAccess, Nothing, Unsupported, WhatIsPermitted};
use super::case::{AT_1000, Ask, BIT_50, CONTEXT_LEGACY, Case, INTERRUPT, IRTE, LEGACY};
use intel_vtd::Stages;
use intel_vtd::spec::fault_reason::FaultReason as Reason;

pub(super) const CASES: &[Case] = &[
    Case {
        reason: Reason::RootNotPresent,
        when: "root entry with P = 0",
        pokes: &[(0x1000, &[0, 0])],
        record: [AT_1000, 0xC000_0001_0000_0018],
        told: Unsupported,
        ..LEGACY
    },
    Case {
        reason: Reason::ContextNotPresent,
        when: "context entry with P = 0",
        pokes: &[(0x2180, &[0, 0])],
        record: [AT_1000, 0xC000_0002_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Unsupported,
        ..LEGACY
    },
    Case {
        reason: Reason::ContextInvalid,
        when: "translation type 11",
        pokes: &[(0x2180, &[0x300D])],
        record: [AT_1000, 0xC000_0003_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::ContextInvalid,
        when: "address width that SAGAW does not offer",
        pokes: &[(0x2180, &[0x3005, 0x0103])],
        record: [AT_1000, 0xC000_0003_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::ContextInvalid,
        when: "no memory at SSPTPTR",
        pokes: &[(0x2180, &[0x7000_0005])],
        record: [AT_1000, 0xC000_0003_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::AddressBeyondWidth,
        when: "address of 40 bits, tables for 39",
        ask: Ask::Read(None, 0x80_0000_0000),
        record: [0x80_0000_0000, 0xC000_0004_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: NoAccess,
        ..LEGACY
    },
    Case {
        reason: Reason::AddressBeyondWidth,
        when: "pass-through, address beyond HAW",
        pokes: &[(0x2180, &[0x9, 0x0102])],
        ask: Ask::Write(None, 0x4000_0000_0000),
        record: [0x4000_0000_0000, 0x8000_0004_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Nothing,
        ..LEGACY
    },
    Case {
        reason: Reason::AddressBeyondWidth,
        when: "pass-through, address beyond MGAW",
        address_bits: 39,
        stages: Stages::Second,
        pokes: &[(0x2180, &[0x9, 0x0101])],
        ask: Ask::Write(None, 0x80_0000_0000),
        // FI has no bits beyond the deepest tables.
        record: [0, 0x8000_0004_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Nothing,
        ..LEGACY
    },
    Case {
        reason: Reason::WriteDenied,
        when: "write, leaf with W = 0",
        pokes: &[(0x5008, &[0x60_0001])],
        ask: Ask::Write(None, 0x1000),
        record: [AT_1000, 0x8000_0005_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: WhatIsPermitted,
        ..LEGACY
    },
    Case {
        reason: Reason::ReadDenied,
        when: "read, leaf with R = 0",
        pokes: &[(0x5008, &[0x60_0002])],
        record: [AT_1000, 0xC000_0006_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: WhatIsPermitted,
        ..LEGACY
    },
    Case {
        reason: Reason::SecondStageFetch,
        when: "no memory at the second table",
        pokes: &[(0x3000, &[0x7000_0003])],
        record: [AT_1000, 0xC000_0007_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::RootFetch,
        when: "no memory at the root table",
        root: 0x7000_0000,
        record: [AT_1000, 0xC000_0008_0000_0018],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::ContextFetch,
        when: "no memory at the context table",
        pokes: &[(0x1000, &[0x7000_0001])],
        record: [AT_1000, 0xC000_0009_0000_0018],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::RootReserved,
        when: "root entry with bit 1 set",
        pokes: &[(0x1000, &[0x2003])],
        record: [AT_1000, 0xC000_000A_0000_0018],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::ContextReserved,
        when: "context entry with bit 4 set",
        pokes: &[(0x2180, &[0x3015])],
        record: [AT_1000, 0xC000_000B_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::SecondStageReserved,
        when: "leaf with an address beyond HAW",
        pokes: &[(0x5008, &[BIT_50 | 0x60_0003])],
        record: [AT_1000, 0xC000_000C_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::TranslationTypeBlocks,
        when: "translation request, translation type 00",
        pokes: &[(0x2180, &[0x3001])],
        ask: Ask::Translation(None, 0x1000),
        record: [AT_1000, 0xD000_000D_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Unsupported,
        ..LEGACY
    },
    Case {
        reason: Reason::TranslationTypeBlocks,
        when: "translated request, translation type 00",
        pokes: &[(0x2180, &[0x3001])],
        ask: Ask::ReadTranslated(0x1000),
        record: [AT_1000, 0xE000_000D_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Unsupported,
        ..LEGACY
    },
    Case {
        reason: Reason::InterruptRange,
        when: "leaf that leads to FEE0_0000h",
        pokes: &[(0x5008, &[0xFEE0_0003])],
        ask: Ask::Write(None, 0x1000),
        record: [AT_1000, 0x8000_000E_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::InterruptRequestReserved,
        when: "request with subhandle and data bit 16",
        ask: Ask::Interrupt(0xFEE0_0078, 0x1_0000),
        record: [0, 0x8000_0020_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::InterruptIndexBeyondTable,
        when: "index 256, table of 256 entries",
        ask: Ask::Interrupt(0xFEE0_2010, 0),
        record: [0x0100_0000_0000_0000, 0x8000_0021_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::InterruptEntryNotPresent,
        when: "IRTE with P = 0",
        pokes: &[(0x20_0030, &[0])],
        record: [0x0003_0000_0000_0000, 0x8000_0022_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::InterruptEntryFetch,
        when: "no memory at the interrupt remapping table",
        interrupt_table: 0x7000_0807,
        record: [0x0003_0000_0000_0000, 0x8000_0023_0000_0018],
        ..INTERRUPT
    },
    Case {
        reason: Reason::InterruptEntryReserved,
        when: "delivery mode 011",
        pokes: &[(0x20_0030, &[0x0000_0005_0041_0061])],
        record: [0x0003_0000_0000_0000, 0x8000_0024_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::InterruptEntryReserved,
        when: "posted format (IM = 1)",
        pokes: &[(0x20_0030, &[0x0000_0005_0041_8001])],
        record: [0x0003_0000_0000_0000, 0x8000_0024_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::CompatibilityFormatBlocked,
        when: "compatibility format, EIME = 1",
        ask: Ask::Interrupt(0xFEE0_0000, 0x41),
        record: [0, 0x8000_0025_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::CompatibilityFormatBlocked,
        when: "compatibility format, CFIS = 0",
        interrupt_table: 0x20_0007,
        ask: Ask::Interrupt(0xFEE0_0000, 0x41),
        record: [0, 0x8000_0025_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::InterruptSourceMismatch,
        when: "IRTE for 00:04.0",
        pokes: &[(0x20_0038, &[0x4_0020])],
        record: [0x0003_0000_0000_0000, 0x8000_0026_0000_0018],
        fpd: &[IRTE],
        ..INTERRUPT
    },
    Case {
        reason: Reason::NotAnInterrupt,
        when: "read without PASID from FEE0_0000h",
        ask: Ask::Read(None, 0xFEE0_0000),
        record: [0xFEE0_0000, 0xC000_0029_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        ..LEGACY
    },
    Case {
        reason: Reason::RootPointerInvalid,
        when: "RTADDR.TTM = 10",
        root: 0x1800,
        record: [AT_1000, 0xC000_0030_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::RootPointerInvalid,
        when: "RTADDR.TTM = 11",
        root: 0x1C00,
        record: [AT_1000, 0xC000_0030_0000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Aborted,
        ..LEGACY
    },
    Case {
        reason: Reason::PasidInLegacyMode,
        when: "request with PASID",
        ask: Ask::Read(Some(5), 0x1000),
        record: [AT_1000, 0xC000_0531_8000_0018],
        fpd: &[CONTEXT_LEGACY],
        told: Unsupported,
        ..LEGACY
    },
    Case {
        reason: Reason::PageRequestInLegacyMode,
        when: "page request",
        ask: Ask::Page(None, 0x1000),
        record: [AT_1000, 0x8000_0032_1000_0018],
        fpd: &[CONTEXT_LEGACY],
        ..LEGACY
    },
    Case {
        reason: Reason::PageRequestInLegacyMode,
        when: "page request with PASID",
        ask: Ask::Page(Some(5), 0x1000),
        record: [AT_1000, 0x8000_0532_9000_0018],
        fpd: &[CONTEXT_LEGACY],
        ..LEGACY
    },
];
