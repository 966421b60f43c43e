//! The tables, read by raw offsets, with their checksums added up independently.

use crate::{
    Apertures, Dmar, Ecam, IoApic, Platform, Power, Tables, Uart, build, intx_gsi, intx_gsi_behind,
};

const BASE: u64 = 0xe_0000;

fn platform(cpu_apic_ids: &[u32]) -> Platform<'_> {
    Platform {
        base: BASE,
        cpu_apic_ids,
        local_apic: 0xfee0_0000,
        ioapic: IoApic {
            id: 0,
            address: 0xfec0_0000,
            gsi_base: 0,
        },
        ecam: Ecam {
            base: 0xe000_0000,
            last_bus: 0,
        },
        apertures: Apertures {
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0x80_0000_0000..0x100_0000_0000,
        },
        dmar: Some(Dmar {
            base: 0xfed9_0000,
            haw: 46,
            interrupt_remapping: true,
            x2apic: true,
            ioapic_scope: (0xff, 0, 0),
            ats_behind_ports: false,
        }),
        power: Power {
            sleep_control: 0x600,
            sleep_status: 0x601,
            sleep_type_off: 5,
            reset: 0x604,
            reset_value: 1,
        },
        uart: Some(Uart {
            port: 0x3f8,
            gsi: 4,
        }),
    }
}

fn le(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn sum(bytes: &[u8]) -> u8 {
    let total: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    u8::try_from(total & 0xff).expect("masked")
}

fn at(tables: &Tables, address: u64) -> &[u8] {
    let start = usize::try_from(address - BASE).expect("small");
    let rest = &tables.bytes[start..];
    let length = usize::try_from(le(&rest[4..8])).expect("small");
    &rest[..length]
}

/// The table with `signature`, found as an operating system does.
fn find<'a>(tables: &'a Tables, signature: &[u8; 4]) -> Option<&'a [u8]> {
    let xsdt = at(tables, le(&tables.bytes[24..32]));
    assert_eq!(&xsdt[..4], b"XSDT");
    xsdt[36..]
        .chunks(8)
        .map(|entry| at(tables, le(entry)))
        .find(|table| &table[..4] == signature)
}

#[test]
fn the_root_pointer_comes_first_and_both_of_its_checksums_hold() {
    let tables = build(&platform(&[0]));
    assert_eq!(tables.rsdp_address, 0xe_0000);
    let rsdp = &tables.bytes[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(rsdp[15], 2, "revision");
    assert_eq!(le(&rsdp[20..24]), 36);
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
}

#[test]
fn every_table_is_aligned_and_sums_to_zero() {
    let ids: Vec<u32> = (0..300).collect();
    let tables = build(&platform(&ids));
    let xsdt = le(&tables.bytes[24..32]);
    let facp = find(&tables, b"FACP").expect("present");
    let mut addresses = vec![xsdt, le(&facp[140..148])];
    addresses.extend(at(&tables, xsdt)[36..].chunks(8).map(le));
    assert_eq!(addresses.len(), 6);
    for address in addresses {
        assert_eq!(address % 16, 0);
        assert_eq!(sum(at(&tables, address)), 0, "table at {address:#x}");
    }
    assert!(tables.bytes.len() < 0x1_0000, "fits below 1 MiB");
}

#[test]
fn the_fixed_description_is_hardware_reduced() {
    let tables = build(&platform(&[0]));
    let facp = find(&tables, b"FACP").expect("present");
    assert_eq!(facp.len(), 276);
    let flags = le(&facp[112..116]);
    assert_eq!(flags & 1 << 20, 1 << 20, "HW_REDUCED_ACPI");
    assert_eq!(flags & 1 << 10, 1 << 10, "RESET_REG_SUP");
    assert_eq!(le(&facp[109..111]), 0x24, "no VGA, no CMOS clock, no 8042");
    assert_eq!(
        &facp[116..128],
        [1, 8, 0, 1, 0x04, 0x06, 0, 0, 0, 0, 0, 0],
        "reset register"
    );
    assert_eq!(facp[128], 1, "reset value");
    assert_eq!(
        &facp[244..256],
        [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0],
        "sleep control"
    );
    assert_eq!(
        &facp[256..268],
        [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0],
        "sleep status"
    );
    assert_eq!(le(&facp[40..44]), 0, "32-bit DSDT pointer is unused");
    assert_eq!(&at(&tables, le(&facp[140..148]))[..4], b"DSDT");
}

#[test]
fn processors_have_the_structure_that_holds_their_id() {
    let tables = build(&platform(&[0, 254, 255, 0x1_0000]));
    let apic = find(&tables, b"APIC").expect("present");
    assert_eq!(le(&apic[36..40]), 0xfee0_0000);
    assert_eq!(le(&apic[40..44]), 0, "no 8259");
    assert_eq!(&apic[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(&apic[52..60], [0, 8, 254, 254, 1, 0, 0, 0]);
    assert_eq!(
        &apic[60..76],
        [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]
    );
    assert_eq!(
        &apic[76..92],
        [9, 16, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    );
    assert_eq!(
        &apic[92..],
        [1, 12, 0, 0, 0x00, 0x00, 0xc0, 0xfe, 0, 0, 0, 0]
    );
}

#[test]
fn configuration_space_is_announced_for_its_buses() {
    let mut platform = platform(&[0]);
    platform.ecam.last_bus = 0xff;
    let tables = build(&platform);
    let mcfg = find(&tables, b"MCFG").expect("present");
    assert_eq!(mcfg.len(), 60);
    assert_eq!(
        &mcfg[36..60],
        [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0
        ]
    );
}

#[test]
fn the_remapping_unit_covers_the_segment_and_the_ioapic() {
    let tables = build(&platform(&[0]));
    let dmar = find(&tables, b"DMAR").expect("present");
    assert_eq!(dmar.len(), 72);
    assert_eq!(&dmar[36..48], [45, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        &dmar[48..64],
        [0, 0, 24, 0, 1, 0, 0, 0, 0x00, 0x00, 0xd9, 0xfe, 0, 0, 0, 0]
    );
    assert_eq!(&dmar[64..72], [3, 8, 0, 0, 0, 0xff, 0, 0]);
}

#[test]
fn ats_behind_root_ports_is_reported_for_all_ports_or_not_at_all() {
    let mut platform = platform(&[0]);
    platform.dmar = platform.dmar.map(|unit| Dmar {
        ats_behind_ports: true,
        ..unit
    });
    let tables = build(&platform);
    let dmar = find(&tables, b"DMAR").expect("present");
    assert_eq!(dmar[72..], [2, 0, 8, 0, 1, 0, 0, 0]);
    assert_eq!(sum(dmar), 0);
}

#[test]
fn x2apic_is_opted_out_of_when_remapping_cannot_address_it() {
    for (interrupt_remapping, x2apic, flags) in [
        (true, false, 3),
        (false, false, 0),
        (false, true, 0),
        (true, true, 1),
    ] {
        let mut platform = platform(&[0]);
        platform.dmar = platform.dmar.map(|unit| Dmar {
            interrupt_remapping,
            x2apic,
            ..unit
        });
        let tables = build(&platform);
        assert_eq!(find(&tables, b"DMAR").expect("present")[37], flags);
    }
}

#[test]
fn without_a_unit_there_is_no_remapping_table() {
    let mut platform = platform(&[0]);
    platform.dmar = None;
    assert_eq!(find(&build(&platform), b"DMAR"), None);
}

#[test]
fn interrupt_pins_rotate_over_four_interrupts() {
    assert_eq!([0, 1, 2, 3].map(|pin| intx_gsi(0, pin)), [16, 17, 18, 19]);
    assert_eq!([0, 1, 2, 3].map(|pin| intx_gsi(3, pin)), [19, 16, 17, 18]);
    assert_eq!(intx_gsi(31, 3), 18);
}

#[test]
fn pins_behind_a_port_are_rotated_by_the_device_and_then_by_the_port() {
    assert_eq!(
        [0, 1, 2, 3].map(|pin| intx_gsi_behind(3, 0, pin)),
        [19, 16, 17, 18]
    );
    assert_eq!(intx_gsi_behind(3, 2, 1), 18);
    assert_eq!(intx_gsi_behind(4, 31, 3), 18);
}

#[test]
fn the_routing_table_says_what_the_function_says() {
    let tables = build(&platform(&[0]));
    let facp = find(&tables, b"FACP").expect("present");
    let dsdt = at(&tables, le(&facp[140..148]));
    // Package of four: slot 3, any function; INTA; no link device; GSI 19.
    let element = [
        0x12, 0x0b, 0x04, 0x0c, 0xff, 0xff, 0x03, 0x00, 0x00, 0x00, 0x0a, 0x13,
    ];
    assert!(dsdt.windows(element.len()).any(|bytes| bytes == element));
    // Name (_S5, Package (4) { 5, 5, 0, 0 })
    let sleep = [
        0x08, b'_', b'S', b'5', b'_', 0x12, 0x08, 0x04, 0x0a, 5, 0x0a, 5, 0, 0,
    ];
    assert!(dsdt.windows(sleep.len()).any(|bytes| bytes == sleep));
}

#[test]
fn empty_apertures_and_absent_ports_are_left_out() {
    let full = build(&platform(&[0]));
    let mut platform = platform(&[0]);
    platform.apertures.mmio64 = 0..0;
    platform.uart = None;
    let lean = build(&platform);
    assert!(lean.bytes.len() < full.bytes.len());
    assert!(!lean.bytes.windows(4).any(|name| name == b"COM1"));
}

/// For a look with `iasl -d`: `NIDO_ACPI_DUMP=directory cargo test -p acpi -- dump`.
#[test]
fn dump_for_a_disassembler() {
    let Some(directory) = std::env::var_os("NIDO_ACPI_DUMP") else {
        return;
    };
    let tables = build(&platform(&[0, 1, 300]));
    let facp = find(&tables, b"FACP").expect("present");
    let dsdt = at(&tables, le(&facp[140..148]));
    let xsdt = at(&tables, le(&tables.bytes[24..32]));
    let others = xsdt[36..].chunks(8).map(|entry| at(&tables, le(entry)));
    for table in [dsdt, xsdt].into_iter().chain(others) {
        let name = format!("{}.dat", String::from_utf8_lossy(&table[..4]));
        std::fs::write(std::path::Path::new(&directory).join(name), table)
            .expect("directory exists");
    }
}
