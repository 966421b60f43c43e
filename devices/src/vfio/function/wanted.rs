//! The kind of interrupt that a configuration space asks for, and the messages of MSI.

use pci::capability::{msi, msix};
use pci::{Command, MsiMessage};

use crate::vfio::config::VirtualConfig;
use crate::vfio::image::MsiLayout;

/// How a device is to interrupt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Not at all.
    Off,
    /// By its pin.
    Intx,
    /// By messages from configuration space: what the vectors that software enabled send; `None`
    /// for those that it masked.
    Msi(Vec<Option<MsiMessage>>),
    /// By messages from the table.
    Msix,
}

/// What `config` asks for. Software enables one of MSI and MSI-X at most (PCI Express 6.1.4); if it
/// does enable both, MSI-X comes first. Without either it is the pin, if the device `has_pin`.
pub(super) fn wanted(config: &VirtualConfig, has_pin: bool) -> Wanted {
    let layout = &config.layout;
    if let Some(msix) = layout.msix
        && config.u16(msix.offset + msix::CONTROL) & msix::ENABLE != 0
    {
        return Wanted::Msix;
    }
    if let Some(msi) = layout.msi
        && config.u16(msi.offset + msi::CONTROL) & msi::ENABLE != 0
    {
        return Wanted::Msi(msi_messages(config, msi));
    }
    // Drivers that use the pin switch the device's memory on first; a device without driver needs
    // no interrupt.
    if has_pin && config.command() & Command::MEMORY != 0 {
        return Wanted::Intx;
    }
    Wanted::Off
}

fn msi_messages(config: &VirtualConfig, msi: MsiLayout) -> Vec<Option<MsiMessage>> {
    let control = config.u16(msi.offset + msi::CONTROL);
    let (offered, enabled) = (control >> 1 & 7, control >> 4 & 7);
    let count = 1_u32 << u32::from(enabled.min(offered));
    let mut address = u64::from(config.u32(msi.offset + 4));
    if msi.wide {
        address |= u64::from(config.u32(msi.offset + 8)) << 32;
    }
    let data = u32::from(config.u16(msi.data()));
    let mask = if msi.maskable {
        config.u32(msi.mask())
    } else {
        0
    };
    let low = count - 1;
    (0..count)
        .map(|vector| {
            let data = data & !low | vector;
            (mask >> vector & 1 == 0).then_some(MsiMessage { address, data })
        })
        .collect()
}

#[cfg(test)]
mod wanted_test;
