//! Fixed ACPI Description Table (section 5.2.9) of a hardware-reduced platform.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use crate::platform::Platform;
use crate::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// IA-PC boot architecture flags: no VGA (bit 2), no CMOS clock (bit 5); and neither ISA devices
/// nor a keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

pub(crate) fn table(platform: &Platform<'_>, dsdt: u64) -> FADT {
    let power = &platform.power;
    let mut builder = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set means: not a fixed-hardware button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    builder.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    builder.reset_reg = port(power.reset);
    builder.reset_value = power.reset_value;
    builder.sleep_control_reg = port(power.sleep_control);
    builder.sleep_status_reg = port(power.sleep_status);
    builder.finalize()
}

fn port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}
