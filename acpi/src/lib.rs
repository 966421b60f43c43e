//! The ACPI tables of nido's machine (ACPI 6.5; DMAR: VT-d section 8): what an operating system
//! needs to find the processors, the I/O APIC, the PCI Express bus, the remapping unit and the
//! power switch of a hardware-reduced platform.
//!
//! [`build`] turns a [`Platform`] into one blob. The Root System Description Pointer is its first
//! byte, on a 16-byte boundary when the base is, so that a blob in 0xe0000-0xfffff is found by a
//! scan, too.

#![forbid(unsafe_code)]

mod dmar;
mod dsdt;
mod fadt;
mod madt;
mod platform;
#[cfg(test)]
mod tables_test;

use acpi_tables::Aml;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

pub use platform::{
    Apertures, Dmar, Ecam, IoApic, Platform, Power, Uart, intx_gsi, intx_gsi_behind,
};

/// Written into every table.
const OEM_ID: [u8; 6] = *b"NIDO  ";
const OEM_TABLE_ID: [u8; 8] = *b"NIDOVMM ";
const OEM_REVISION: u32 = 1;

/// Tables start on multiples of this.
const ALIGNMENT: usize = 16;

/// All tables, placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The bytes to copy to [`Platform::base`].
    pub bytes: Vec<u8>,
    /// Guest-physical address of the Root System Description Pointer.
    pub rsdp_address: u64,
}

/// The tables of `platform`.
#[must_use]
pub fn build(platform: &Platform<'_>) -> Tables {
    let mut blob = Blob {
        base: platform.base,
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = blob.add(&dsdt::bytes(platform));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(blob.add(&bytes(&fadt::table(platform, dsdt))));
    xsdt.add_entry(blob.add(&bytes(&madt::table(platform))));
    xsdt.add_entry(blob.add(&bytes(&mcfg(platform))));
    if let Some(unit) = &platform.dmar {
        xsdt.add_entry(blob.add(&dmar::bytes(unit, platform.ioapic.id)));
    }
    let xsdt = blob.add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    blob.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Tables {
        bytes: blob.bytes,
        rsdp_address: platform.base,
    }
}

fn mcfg(platform: &Platform<'_>) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(platform.ecam.base, 0, 0, platform.ecam.last_bus);
    mcfg
}

struct Blob {
    base: u64,
    bytes: Vec<u8>,
}

impl Blob {
    /// Appends a table and returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let start = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(table);
        self.base + start as u64
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
