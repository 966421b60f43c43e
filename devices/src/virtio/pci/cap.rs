//! The capabilities that tell a driver where the structures are (section 4.1.4), among them the one
//! through which configuration accesses reach the BAR (section 4.1.4.9).

use pci::capability::id;
use pci::{ConfigBuilder, ConfigSpace};

use super::bar::{self, BAR, BAR_SIZE};
use super::common::COMMON_SIZE;

/// `VIRTIO_PCI_CAP_*` of <linux/virtio_pci.h>, which virtio-bindings lacks (section 4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Offsets in `struct virtio_pci_cap` and `struct virtio_pci_cfg_cap`.
const CAP_BAR: u16 = 4;
const CAP_OFFSET: u16 = 8;
const CAP_LENGTH: u16 = 12;
const CAP_DATA: u16 = 16;

/// Adds all virtio capabilities; the result is the place of the access capability.
pub(super) fn add(
    builder: &mut ConfigBuilder,
    queues: usize,
    device_config: bool,
) -> AccessCapability {
    let notify_size = u32::try_from(queues)
        .unwrap_or(u32::MAX)
        .saturating_mul(bar::NOTIFY_MULTIPLIER);
    add_one(builder, COMMON_CFG, bar::COMMON, COMMON_SIZE, None);
    add_one(
        builder,
        NOTIFY_CFG,
        bar::NOTIFY,
        notify_size,
        Some(bar::NOTIFY_MULTIPLIER),
    );
    add_one(builder, ISR_CFG, bar::ISR, 1, None);
    if device_config {
        add_one(builder, DEVICE_CFG, bar::DEVICE, bar::DEVICE_SIZE, None);
    }
    let offset = add_one(builder, PCI_CFG, 0, 0, Some(0));
    builder.set_writable(offset + CAP_BAR, &[0xff]);
    // Offset, length and data.
    builder.set_writable(offset + CAP_OFFSET, &[0xff; 12]);
    AccessCapability { offset }
}

/// One `struct virtio_pci_cap`, with a word behind it where the type has one.
fn add_one(
    builder: &mut ConfigBuilder,
    kind: u8,
    offset: u32,
    length: u32,
    extra: Option<u32>,
) -> u16 {
    let size = if extra.is_some() { 20 } else { 16 };
    let mut body = vec![size, kind, BAR, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&length.to_le_bytes());
    body.extend(extra.into_iter().flat_map(u32::to_le_bytes));
    builder.add_capability(id::VENDOR, &body, &[])
}

/// `VIRTIO_PCI_CAP_PCI_CFG`: a window into the BAR for software that cannot reach memory space.
#[derive(Clone, Copy, Debug)]
pub(super) struct AccessCapability {
    offset: u16,
}

/// An access to the BAR that the capability asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BarAccess {
    pub(super) offset: u64,
    pub(super) length: usize,
}

impl AccessCapability {
    /// Where the data field is in configuration space.
    pub(super) fn data(self) -> u16 {
        self.offset + CAP_DATA
    }

    /// The access that reading or writing `length` bytes at `offset` of configuration space causes,
    /// if it touches the data field and the driver has set the other fields to something valid.
    pub(super) fn access(
        self,
        config: &ConfigSpace,
        offset: u16,
        length: usize,
    ) -> Option<BarAccess> {
        let (start, end) = (usize::from(offset), usize::from(offset) + length);
        let data = usize::from(self.data());
        if start >= data + 4 || end <= data {
            return None;
        }
        if config.read_u8(self.offset + CAP_BAR) != BAR {
            return None;
        }
        let at = u64::from(config.read_u32(self.offset + CAP_OFFSET));
        let size = config.read_u32(self.offset + CAP_LENGTH);
        let valid = matches!(size, 1 | 2 | 4)
            && at % u64::from(size) == 0
            && at + u64::from(size) <= BAR_SIZE;
        valid.then(|| BarAccess {
            offset: at,
            length: usize::try_from(size).unwrap_or(0),
        })
    }
}
