//! Differentiated System Description Table: the devices that cannot be enumerated, in AML (section
//! 20).

use std::ops::Range;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, PackageBuilder,
    Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use crate::platform::{Ecam, Platform, Uart, intx_gsi};
use crate::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// The UUID with which `_OSC` is called for PCI Express (PCI Firmware Specification 3.3, section
/// 4.5).
const OSC_PCI_EXPRESS: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What the operating system may control: hot plug (bit 0), power management events (bit 2), the
/// PCI Express capability structure (bit 4). Advanced error reporting is not there to be
/// controlled.
const OSC_GRANTED: u32 = 0x15;
/// Status bits that `_OSC` returns: unknown UUID, some control was refused.
const OSC_UNKNOWN_UUID: u32 = 1 << 2;
const OSC_MASKED: u32 = 1 << 4;

pub(crate) fn bytes(platform: &Platform<'_>) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut aml = Vec::new();
    let mut devices = vec![host_bridge(platform), motherboard(platform.ecam)];
    devices.extend(platform.uart.map(uart));
    let devices: Vec<&dyn Aml> = devices.iter().map(|device| device as &dyn Aml).collect();
    Scope::new("_SB_".into(), devices).to_aml_bytes(&mut aml);
    let off = platform.power.sleep_type_off;
    Name::new("_S5_".into(), &Package::new(vec![&off, &off, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// Finished AML.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn encode(object: &dyn Aml) -> Encoded {
    Encoded(crate::bytes(object))
}

fn host_bridge(platform: &Platform<'_>) -> Encoded {
    let buses = AddressSpace::new_bus_number(0_u16, u16::from(platform.ecam.last_bus));
    let windows: Vec<_> = [&platform.apertures.mmio32, &platform.apertures.mmio64]
        .into_iter()
        .filter_map(window)
        .collect();
    let mut resources: Vec<&dyn Aml> = vec![&buses];
    resources.extend(windows.iter().map(|window| window as &dyn Aml));
    encode(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &Name::new("_PRT".into(), &interrupt_routing()),
            &operating_system_capabilities(),
        ],
    ))
}

/// A memory window of the host bridge. 64-bit descriptors hold ranges below 4 GiB as well.
fn window(range: &Range<u64>) -> Option<AddressSpace<u64>> {
    let last = range
        .end
        .checked_sub(1)
        .filter(|last| range.start <= *last)?;
    Some(AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        range.start,
        last,
        None,
    ))
}

/// `_PRT` (section 6.2.13): which interrupt each pin of each slot raises.
fn interrupt_routing() -> PackageBuilder {
    let mut routing = PackageBuilder::new();
    for slot in 0..32_u8 {
        for pin in 0..4_u8 {
            // Slot in the high word, any function in the low word.
            let address = u32::from(slot) << 16 | 0xffff;
            routing.add_element(&Package::new(vec![
                &address,
                &pin,
                &ZERO,
                &intx_gsi(slot, pin),
            ]));
        }
    }
    routing
}

/// `_OSC` (section 6.2.11): grants native control of PCI Express features.
fn operating_system_capabilities() -> Encoded {
    let status = Path::new("CDW1");
    let control = Path::new("CDW3");
    let (buffer, uuid, granted) = (Arg(3), Arg(0), Local(0));
    encode(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &buffer, &0_u8),
            &If::new(
                &Equal::new(&uuid, &Uuid::new(OSC_PCI_EXPRESS)),
                vec![
                    &CreateDWordField::new(&control, &buffer, &8_u8),
                    &And::new(&granted, &control, &OSC_GRANTED),
                    &If::new(
                        &NotEqual::new(&granted, &control),
                        vec![&Or::new(&status, &status, &OSC_MASKED)],
                    ),
                    &Store::new(&control, &granted),
                ],
            ),
            &Else::new(vec![&Or::new(&status, &status, &OSC_UNKNOWN_UUID)]),
            &Return::new(&buffer),
        ],
    ))
}

/// Reserves the configuration space, without which Linux does not trust MCFG.
fn motherboard(ecam: Ecam) -> Encoded {
    let size = (u64::from(ecam.last_bus) + 1) << 20;
    let resource = match (u32::try_from(ecam.base), u32::try_from(size)) {
        (Ok(base), Ok(size)) => encode(&Memory32Fixed::new(true, base, size)),
        _ => encode(&AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            ecam.base,
            ecam.base.saturating_add(size - 1),
            None,
        )),
    };
    encode(&Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&resource])),
        ],
    ))
}

fn uart(uart: Uart) -> Encoded {
    let ports = IO::new(uart.port, uart.port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, uart.gsi);
    encode(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &interrupt]),
            ),
        ],
    ))
}
