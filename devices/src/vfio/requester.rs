//! Whose requester id the requests of a device of the host carry.
//!
//! A bridge to a conventional PCI bus puts its own id in place of those of the devices behind it (PCI Express to PCI/PCI-X Bridge
//! Specification, section 2.3), so that an IOMMU cannot tell them apart, and finds the entry of the bridge for all of them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::address::HostAddress;
use super::sysfs::{Sysfs, link_name};

/// Offsets in configuration space, PCI Local Bus Specification 3.0, chapter 6.
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CAPABILITIES: usize = 0x34;
/// The PCI Express capability, whose type is in bits 7:4 of its second word.
const PCI_EXPRESS: u8 = 0x10;
const PCI_EXPRESS_FLAGS: usize = 2;
/// As many capabilities as there is room for.
const LINKS: usize = 48;

/// What a bridge leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridge {
    /// More PCI Express: a root port, or a port of a switch.
    Port,
    /// Conventional PCI, from or to it.
    Conventional,
}

impl Sysfs {
    /// The bridge whose requester id stands for the device's own, the one nearest to the root if there are several.
    pub(super) fn requester(&self, address: HostAddress) -> Option<HostAddress> {
        let path = self.device(address).canonicalize().ok()?;
        let bridges = path.ancestors().skip(1).map_while(|directory| {
            let address = directory.file_name()?.to_str()?.parse().ok()?;
            Some((directory, address))
        });
        let conventional = bridges.filter(|(directory, _)| kind(directory) == Bridge::Conventional);
        conventional.last().map(|(_, address)| address)
    }
}

/// Without the privilege to read capabilities, what the kernel shows everybody decides: its driver for ports takes nothing else,
/// and only what is PCI Express has a link.
fn kind(bridge: &Path) -> Bridge {
    if let Some(port) = express_type(bridge) {
        return match port {
            // Root port, upstream and downstream port of a switch.
            4..=6 => Bridge::Port,
            _ => Bridge::Conventional,
        };
    }
    let driver = link_name(&bridge.join("driver"));
    if driver.as_deref() == Some("pcieport") || bridge.join("max_link_speed").exists() {
        Bridge::Port
    } else {
        Bridge::Conventional
    }
}

/// Device/Port Type of the PCI Express capability, if there is one and it can be read.
fn express_type(bridge: &Path) -> Option<u8> {
    let mut config = Vec::new();
    let file = File::open(bridge.join("config")).ok()?;
    file.take(256).read_to_end(&mut config).ok()?;
    if config.get(STATUS)? & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = usize::from(config.get(CAPABILITIES)? & !3);
    for _ in 0..LINKS {
        if at < 0x40 {
            break;
        }
        if *config.get(at)? == PCI_EXPRESS {
            return Some(config.get(at + PCI_EXPRESS_FLAGS)? >> 4);
        }
        at = usize::from(config.get(at + 1)? & !3);
    }
    None
}

#[cfg(test)]
#[path = "requester_test.rs"]
mod tests;
