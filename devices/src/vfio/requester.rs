//! The requester id of a host's device that is behind a bridge to conventional PCI.
//!
//! A bridge to a conventional PCI bus puts its own id in place of those of the devices behind it
//! (PCI Express to PCI/PCI-X Bridge Specification, section 2.3), so that an IOMMU cannot tell them
//! apart, and finds the entry of the bridge for all of them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pci::CONFIG_SPACE_SIZE;

use super::address::HostAddress;
use super::capabilities;
use super::image::put;
use super::sysfs::{Sysfs, link_name};

/// What a bridge leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridge {
    /// More PCI Express: a root port, or a port of a switch.
    Port,
    /// Conventional PCI, from or to it.
    Conventional,
}

impl Sysfs {
    /// The bridge whose requester id stands for the device's own, the one nearest to the root if
    /// there are several.
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

/// Without the privilege to read capabilities, what the kernel shows everybody decides: its driver
/// for ports takes nothing else, and only what is PCI Express has a link.
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
    let mut bytes = Vec::new();
    let file = File::open(bridge.join("config")).ok()?;
    // All that is not extended.
    file.take(256).read_to_end(&mut bytes).ok()?;
    let mut image = [0; CONFIG_SPACE_SIZE];
    put(&mut image, 0, &bytes);
    capabilities::express_type(&image)
}

#[cfg(test)]
mod requester_test;
