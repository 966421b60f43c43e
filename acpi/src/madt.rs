//! Multiple APIC Description Table (section 5.2.12).

use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::{Aml, AmlSink};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::platform::Platform;
use crate::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// The first APIC id that an 8-bit local APIC structure cannot hold: 255 is the broadcast.
const FIRST_X2APIC_ID: u32 = 255;

/// Processor local x2APIC structure (section 5.2.12.12).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct ProcessorLocalX2Apic {
    kind: u8,
    length: u8,
    reserved: U16,
    x2apic_id: U32,
    flags: U32,
    processor_uid: U32,
}

impl ProcessorLocalX2Apic {
    fn new(id: u32) -> Self {
        Self {
            kind: 9,
            length: 16,
            reserved: U16::ZERO,
            x2apic_id: id.into(),
            flags: 1.into(),
            processor_uid: id.into(),
        }
    }
}

impl Aml for ProcessorLocalX2Apic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

pub(crate) fn table(platform: &Platform<'_>) -> MADT {
    let local_apic = LocalInterruptController::Address(platform.local_apic);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for &id in platform.cpu_apic_ids {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_X2APIC_ID => {
                madt.add_structure(ProcessorLocalApic::new(
                    short,
                    short,
                    EnabledStatus::Enabled,
                ));
            }
            _ => madt.add_structure(ProcessorLocalX2Apic::new(id)),
        }
    }
    let ioapic = &platform.ioapic;
    madt.add_structure(IoApic::new(ioapic.id, ioapic.address, ioapic.gsi_base));
    madt
}
