//! The configuration space of a virtio function (section 4.1.2): identity, BAR and capabilities.

use pci::{BarKind, ConfigBuilder, ConfigSpace, Identity};

use super::bar::{self, BAR, BAR_SIZE};
use super::cap::{self, AccessCapability};
use crate::virtio::device::DeviceKind;

/// Red Hat's vendor id, which virtio uses (section 4.1.2).
const VENDOR: u16 = 0x1af4;
/// Device id of a non-transitional device, less the virtio device id.
const DEVICE_BASE: u16 = 0x1040;
/// Subsystem device id, less the virtio device id: at least 0x40 for a non-transitional device.
const SUBSYSTEM_BASE: u16 = 0x40;

/// The configuration space of a device.
pub(super) fn config_space(
    kind: DeviceKind,
    queues: usize,
    vectors: u16,
    device_config: bool,
) -> (ConfigSpace, AccessCapability) {
    let id = kind as u16;
    let mut builder = ConfigBuilder::endpoint(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + id,
        class: class(kind),
        revision: 1,
        subsystem_vendor: VENDOR,
        subsystem_device: SUBSYSTEM_BASE + id,
    });
    builder.add_bar(
        usize::from(BAR),
        BarKind::Memory64 { prefetchable: true },
        BAR_SIZE,
    );
    builder.add_pcie_endpoint();
    builder.add_msix(vectors, BAR, bar::MSIX_TABLE, bar::MSIX_PBA);
    let access = cap::add(&mut builder, queues, device_config);
    (builder.build(), access)
}

/// Class code: base class, sub-class, interface.
fn class(kind: DeviceKind) -> [u8; 3] {
    match kind {
        DeviceKind::Net => [0x02, 0x00, 0x00],
        DeviceKind::Block => [0x01, 0x80, 0x00],
        DeviceKind::Console => [0x07, 0x80, 0x00],
        DeviceKind::Entropy => [0x10, 0x00, 0x00],
        DeviceKind::Vsock => [0x07, 0x80, 0x00],
        // What fits no class.
        DeviceKind::Balloon | DeviceKind::Memory => [0x00, 0xff, 0x00],
    }
}

/// Start of the thread's name; the function's address follows, and 15 bytes are all that the system
/// keeps.
pub(super) fn thread_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Net => "net",
        DeviceKind::Block => "blk",
        DeviceKind::Console => "con",
        DeviceKind::Entropy => "rng",
        DeviceKind::Vsock => "vsk",
        DeviceKind::Balloon => "bln",
        DeviceKind::Memory => "mem",
    }
}
