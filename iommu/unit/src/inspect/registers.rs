//! The registers of a unit, decoded (section 11.4).

use std::fmt;
use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

use super::field::{Field, FieldValue, fields, write_set};
use crate::spec::fault_reason::FaultReason;
use crate::spec::ids::SourceId;
use crate::spec::registers::{
    Capability, Caps, ContextCommand, EventControl, ExtendedCapability, FAULT_RECORD_COUNT,
    FAULT_RECORDS, FaultRecord, FaultStatus, GlobalCommand, InterruptTableAddress, IotlbInvalidate,
    PageQueueAddress, PageRequestStatus, QueueAddress, QueueErrorRecord, RootTableAddress,
    TableMode, offset,
};
use crate::translate::Latched;
use crate::unit::{Statistics, Unit};

/// One register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterDescription {
    /// Its name, without `_REG`.
    pub name: &'static str,
    /// Where it is in the register window.
    pub offset: u16,
    /// Its size in bytes: 4 or 8.
    pub size: u8,
    /// What the guest reads from it.
    pub value: u64,
    /// What that means.
    pub fields: Vec<Field>,
}

/// A fault record that the guest has not cleared yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingFault {
    /// Its index among the records.
    pub index: u8,
    /// What it holds.
    pub record: FaultRecord,
}

/// A unit, as its guest sees it, and what it has done.
///
/// Each register was read as the guest reads it, one after the other: a unit at work may have
/// changed some in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitDescription {
    /// The registers of all features that are offered, apart from fault records, in the order of
    /// their offsets.
    pub registers: Vec<RegisterDescription>,
    /// What commands have latched: translation on or off, root table, mode.
    pub latched: Latched,
    /// Fault records in use.
    pub faults: Vec<PendingFault>,
    /// Counters.
    pub statistics: Statistics,
}

/// A register, and how to decode it.
struct Layout {
    name: &'static str,
    offset: u16,
    size: u8,
    decode: fn(u64) -> Vec<Field>,
}

const fn word(name: &'static str, offset: u16, decode: fn(u64) -> Vec<Field>) -> Layout {
    Layout {
        name,
        offset,
        size: 4,
        decode,
    }
}

const fn quad(name: &'static str, offset: u16, decode: fn(u64) -> Vec<Field>) -> Layout {
    Layout {
        size: 8,
        ..word(name, offset, decode)
    }
}

const REGISTERS: &[Layout] = &[
    word("VER", offset::VER, version),
    quad("CAP", offset::CAP, capability),
    quad("ECAP", offset::ECAP, extended_capability),
    word("GSTS", offset::GSTS, status),
    quad("RTADDR", offset::RTADDR, root_table),
    quad("CCMD", offset::CCMD, context_command),
    word("FSTS", offset::FSTS, fault_status),
    word("FECTL", offset::FECTL, event_control),
    word("FEDATA", offset::FEDATA, plain),
    word("FEADDR", offset::FEADDR, plain),
    word("FEUADDR", offset::FEUADDR, plain),
    quad("IQH", offset::IQH, queue_position),
    quad("IQT", offset::IQT, queue_position),
    quad("IQA", offset::IQA, queue_address),
    word("ICS", offset::ICS, completion_status),
    word("IECTL", offset::IECTL, event_control),
    word("IEDATA", offset::IEDATA, plain),
    word("IEADDR", offset::IEADDR, plain),
    word("IEUADDR", offset::IEUADDR, plain),
    quad("IQERCD", offset::IQERCD, queue_error),
    quad("IRTA", offset::IRTA, interrupt_table),
    quad("PQH", offset::PQH, queue_position),
    quad("PQT", offset::PQT, queue_position),
    quad("PQA", offset::PQA, page_queue_address),
    word("PRS", offset::PRS, page_request_status),
    word("PECTL", offset::PECTL, event_control),
    word("PEDATA", offset::PEDATA, plain),
    word("PEADDR", offset::PEADDR, plain),
    word("PEUADDR", offset::PEUADDR, plain),
    quad("IOTLB", offset::IOTLB, iotlb_command),
];

/// Whether a register is there at all.
fn exists(layout: &Layout, caps: &Caps) -> bool {
    match layout.offset {
        offset::IRTA => caps.ecap.ir(),
        offset::FEUADDR | offset::IEUADDR => caps.ecap.eim(),
        offset::PEUADDR => caps.ecap.prs() && caps.ecap.eim(),
        offset::PQH..=offset::PEADDR => caps.ecap.prs(),
        _ => true,
    }
}

/// A register without fields, or of which the value says it all.
fn plain(_: u64) -> Vec<Field> {
    Vec::new()
}

fn version(value: u64) -> Vec<Field> {
    vec![
        Field::new("MAJOR", value >> 4 & 0xf),
        Field::new("MINOR", value & 0xf),
    ]
}

fn capability(value: u64) -> Vec<Field> {
    fields!(Capability::from_bits(value);
        "ND" nd, "RWBF" rwbf, "PLMR" plmr, "PHMR" phmr, "CM" cm, "SAGAW" sagaw, "MGAW" mgaw, "ZLR" zlr, "FRO" fro,
        "SSLPS" sslps, "PSI" psi, "NFR" nfr, "MAMV" mamv, "DWD" dwd, "DRD" drd, "FS1GP" fs1gp, "PI" pi, "FS5LP" fs5lp,
        "ECMDS" ecmds, "ESIRTPS" esirtps, "ESRTPS" esrtps,
    )
}

fn extended_capability(value: u64) -> Vec<Field> {
    fields!(ExtendedCapability::from_bits(value);
        "C" c, "QI" qi, "DT" dt, "IR" ir, "EIM" eim, "PT" pt, "SC" sc, "IRO" iro, "MHMV" mhmv, "MTS" mts, "NEST" nest,
        "PRS" prs, "ERS" ers, "SRS" srs, "NWFS" nwfs, "EAFS" eafs, "PSS" pss, "PASID" pasid, "DIT" dit, "PDS" pds,
        "SMTS" smts, "VCS" vcs, "SSADS" ssads, "SSTS" ssts, "FSTS" fsts, "SMPWCS" smpwcs, "RPS" rps, "TDXCS" tdxcs,
        "PMS" pms, "ADMS" adms, "RPRIVS" rprivs, "HPTS" hpts, "PTRS" ptrs, "SSIRWS" ssirws, "SMS" sms,
        "HPT1GPS" hpt1gps, "RDTS" rdts, "EIMER" eimer, "IRREQ" irreq,
    )
}

fn status(value: u64) -> Vec<Field> {
    fields!(GlobalCommand::from_bits(low(value));
        "CFIS" cfi, "IRTPS" sirtp, "IRES" ire, "QIES" qie, "WBFS" wbf, "RTPS" srtp, "TES" te,
    )
}

fn root_table(value: u64) -> Vec<Field> {
    let register = RootTableAddress::from_bits(value);
    vec![
        Field::new("TTM", FieldValue::Name(mode(register.mode()))),
        Field::hex("RTA", register.table()),
    ]
}

const fn mode(mode: TableMode) -> &'static str {
    match mode {
        TableMode::Legacy => "legacy",
        TableMode::Scalable => "scalable",
        TableMode::Reserved => "reserved",
        TableMode::AbortDma => "abort-DMA",
    }
}

fn context_command(value: u64) -> Vec<Field> {
    fields!(ContextCommand::from_bits(value);
        "DID" domain, "SID" source, "FM" function_mask, "CAIG" actual, "CIRG" requested, "ICC" invalidate,
    )
}

fn fault_status(value: u64) -> Vec<Field> {
    fields!(FaultStatus::from_bits(low(value));
        "PFO" overflow, "PPF" pending, "IQE" queue_error, "ICE" completion_error, "ITE" timeout_error, "FRI" record,
    )
}

fn event_control(value: u64) -> Vec<Field> {
    fields!(EventControl::from_bits(low(value)); "IP" pending, "IM" masked)
}

/// Heads and tails: bytes from the start of the queue.
fn queue_position(value: u64) -> Vec<Field> {
    vec![Field::hex("at", value)]
}

fn queue_address(value: u64) -> Vec<Field> {
    let register = QueueAddress::from_bits(value);
    vec![
        Field::new("QS", register.size()),
        Field::new("DW", register.wide()),
        Field::hex("IQA", register.base()),
        Field::hex("bytes", register.bytes()),
    ]
}

fn page_queue_address(value: u64) -> Vec<Field> {
    let register = PageQueueAddress::from_bits(value);
    vec![
        Field::new("PQS", register.size()),
        Field::hex("PQA", register.base()),
        Field::hex("bytes", register.bytes()),
    ]
}

fn page_request_status(value: u64) -> Vec<Field> {
    fields!(PageRequestStatus::from_bits(low(value)); "PPR" pending, "PRO" overflow)
}

fn completion_status(value: u64) -> Vec<Field> {
    vec![Field::new("IWC", value & 1 != 0)]
}

fn queue_error(value: u64) -> Vec<Field> {
    let register = QueueErrorRecord::from_bits(value);
    vec![
        Field::new("IQEI", register.error()),
        Field::hex("ITESID", register.timeout_source()),
        Field::hex("ICESID", register.completion_source()),
    ]
}

fn interrupt_table(value: u64) -> Vec<Field> {
    let register = InterruptTableAddress::from_bits(value);
    vec![
        Field::new("S", register.size()),
        Field::new("EIME", register.extended()),
        Field::hex("IRTA", register.table()),
        Field::new("entries", register.entries()),
    ]
}

fn iotlb_command(value: u64) -> Vec<Field> {
    fields!(IotlbInvalidate::from_bits(value);
        "DID" domain, "DW" drain_writes, "DR" drain_reads, "IAIG" actual, "IIRG" requested, "IVT" invalidate,
    )
}

/// The value of a 32-bit register.
fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

impl UnitDescription {
    pub(super) fn of<M: Deref<Target: GuestMemoryBackend>>(unit: &Unit<M>) -> Self {
        let caps = unit.capabilities();
        let registers = REGISTERS
            .iter()
            .filter(|layout| exists(layout, &caps))
            .map(|layout| {
                let value = load(unit, layout.offset, layout.size);
                RegisterDescription {
                    name: layout.name,
                    offset: layout.offset,
                    size: layout.size,
                    value,
                    fields: (layout.decode)(value),
                }
            })
            .collect();
        let faults = (0..FAULT_RECORD_COUNT)
            .map(|index| {
                let at = FAULT_RECORDS + 16 * u16::from(index);
                // F is in the upper half: while it is set, the lower half does not change.
                let upper = load(unit, at + 8, 8);
                let bits = u128::from(upper) << 64 | u128::from(load(unit, at, 8));
                let record = FaultRecord::from_bits(bits);
                PendingFault { index, record }
            })
            .filter(|fault| fault.record.fault())
            .collect();
        Self {
            registers,
            latched: unit.dma_state().latched(),
            faults,
            statistics: unit.stats(),
        }
    }

    /// The register of that name.
    pub fn register(&self, name: &str) -> Option<&RegisterDescription> {
        self.registers.iter().find(|register| register.name == name)
    }
}

fn load<M: Deref<Target: GuestMemoryBackend>>(unit: &Unit<M>, at: u16, size: u8) -> u64 {
    let mut bytes = [0; 8];
    if let Some(bytes) = bytes.get_mut(..usize::from(size)) {
        unit.load(u64::from(at), bytes);
    }
    u64::from_le_bytes(bytes)
}

impl fmt::Display for RegisterDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = 2 * usize::from(self.size);
        let value = format!("{:0digits$x}", self.value);
        write!(f, "{:<8}{:03x} {value:>16}", self.name, self.offset)?;
        write_set(f, &self.fields)
    }
}

impl fmt::Display for PendingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        let code = record.reason();
        write!(f, "fault {}: {}", self.index, SourceId(record.source()))?;
        if (0x20..0x30).contains(&code) {
            // Interrupt requests: the index is in bits 63:48 of a field that begins at bit 12.
            write!(f, " interrupt {:#x}", record.info() >> 36)?;
        } else {
            let kind = match (record.type1(), record.type2()) {
                (false, false) => "write",
                (false, true) => "page request",
                (true, false) => "read",
                (true, true) => "atomic",
            };
            write!(f, " {kind} {:#x}", record.info() << 12)?;
        }
        if record.pasid_present() {
            write!(f, " PASID {:#x}", record.pasid())?;
        }
        let reason = FaultReason::ALL.iter().find(|reason| reason.code() == code);
        match reason {
            Some(reason) => write!(f, " reason {code:#04x} {reason:?}"),
            None => write!(f, " reason {code:#04x}"),
        }
    }
}

impl fmt::Display for UnitDescription {
    /// One line per register, with the fields that are not 0; then what is latched, the faults, and
    /// the counters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for register in &self.registers {
            writeln!(f, "{register}")?;
        }
        let Latched { enabled, root } = self.latched;
        writeln!(
            f,
            "latched: translation {}, {} mode, root table {:#x}",
            if enabled { "on" } else { "off" },
            mode(root.mode),
            root.address
        )?;
        for fault in &self.faults {
            writeln!(f, "{fault}")?;
        }
        for (name, value) in self.statistics.entries() {
            writeln!(f, "{name}: {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod registers_test;
