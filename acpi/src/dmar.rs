//! DMA Remapping Reporting table (VT-d section 8.1): one unit for the whole segment, and the I/O
//! APIC in its scope; and that functions behind root ports may use ATS, where that is so.
//!
//! No reserved memory regions: a device in one could not be assigned further by the guest.

use acpi_tables::sdt::Sdt;
use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::platform::Dmar;
use crate::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Table flags.
const INTERRUPT_REMAPPING: u8 = 1 << 0;
const X2APIC_OPT_OUT: u8 = 1 << 1;

/// Unit flag: every PCI device that no other unit names.
const INCLUDE_PCI_ALL: u8 = 1 << 0;

/// Device scope type.
const SCOPE_IOAPIC: u8 = 3;

/// Offset of what follows the common table header.
const HEADER_END: u32 = 36;

/// The table's own part of the header (section 8.1).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable)]
struct Reporting {
    /// Host address width, minus one.
    width: u8,
    flags: u8,
    reserved: [u8; 10],
}

/// DMA Remapping Hardware Unit Definition with one device scope (sections 8.3 and 8.3.1).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable)]
struct Unit {
    kind: U16,
    length: U16,
    flags: u8,
    /// The register window is 4 KiB times two to this power.
    size: u8,
    segment: U16,
    base: U64,
    scope: Scope,
}

#[repr(C)]
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable)]
struct Scope {
    kind: u8,
    length: u8,
    flags: u8,
    reserved: u8,
    enumeration_id: u8,
    start_bus: u8,
    device: u8,
    function: u8,
}

/// Root Port ATS Capability Reporting (section 8.5).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable)]
struct PortAts {
    kind: U16,
    length: U16,
    flags: u8,
    reserved: u8,
    segment: U16,
}

/// Port ATS flag: all root ports of the segment.
const ALL_PORTS: u8 = 1 << 0;

pub(crate) fn bytes(unit: &Dmar, ioapic_id: u8) -> Vec<u8> {
    let flags = match (unit.interrupt_remapping, unit.x2apic) {
        (false, _) => 0,
        (true, false) => INTERRUPT_REMAPPING | X2APIC_OPT_OUT,
        (true, true) => INTERRUPT_REMAPPING,
    };
    let (start_bus, device, function) = unit.ioapic_scope;
    let scope = Scope {
        kind: SCOPE_IOAPIC,
        length: 8,
        flags: 0,
        reserved: 0,
        enumeration_id: ioapic_id,
        start_bus,
        device,
        function,
    };
    let mut table = Sdt::new(*b"DMAR", HEADER_END, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append(Reporting {
        width: unit.haw.saturating_sub(1),
        flags,
        reserved: [0; 10],
    });
    table.append(Unit {
        kind: U16::ZERO,
        length: U16::new(24),
        flags: INCLUDE_PCI_ALL,
        size: 0,
        segment: U16::ZERO,
        base: unit.base.into(),
        scope,
    });
    if unit.ats_behind_ports {
        table.append(PortAts {
            kind: U16::new(2),
            length: U16::new(8),
            flags: ALL_PORTS,
            reserved: 0,
            segment: U16::ZERO,
        });
    }
    table.as_slice().to_vec()
}
