//! The machine's ACPI tables: what they are to describe.

use devices::power;

use crate::config::Config;
use crate::irq::IOAPIC_REQUESTER;
use crate::layout;

/// The ACPI tables that describe this machine.
pub(super) fn tables(config: &Config, physical_bits: u8) -> acpi::Tables {
    let [ioapic_devfn, ioapic_bus] = IOAPIC_REQUESTER.to_le_bytes();
    let low = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    acpi::build(&acpi::Platform {
        base: layout::ACPI_TABLES.start,
        cpu_apic_ids: &(0..u32::from(config.cpus)).collect::<Vec<_>>(),
        local_apic: low(layout::LOCAL_APIC.start),
        ioapic: acpi::IoApic {
            id: 0,
            address: low(layout::IOAPIC.start),
            gsi_base: 0,
        },
        ecam: acpi::Ecam {
            base: layout::PCI_ECAM,
            last_bus: config.last_bus(),
        },
        apertures: acpi::Apertures {
            mmio32: layout::PCI_MMIO32,
            mmio64: layout::pci_mmio64(physical_bits),
        },
        dmar: config.iommu.map(|unit| acpi::Dmar {
            base: layout::VTD.start,
            haw: physical_bits,
            interrupt_remapping: unit.intremap,
            x2apic: unit.intremap,
            ioapic_scope: (ioapic_bus, ioapic_devfn >> 3, ioapic_devfn & 7),
            ats_behind_ports: unit.device_iotlb,
        }),
        power: acpi::Power {
            sleep_control: power::SLEEP_CONTROL_PORT,
            sleep_status: power::SLEEP_STATUS_PORT,
            sleep_type_off: power::SLEEP_TYPE_OFF,
            reset: power::RESET_PORT,
            reset_value: power::RESET_VALUE,
        },
        uart: Some(acpi::Uart {
            port: layout::COM1,
            gsi: u32::from(layout::COM1_IRQ),
        }),
    })
}
