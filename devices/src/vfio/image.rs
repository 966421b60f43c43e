//! The image of a configuration space: its bytes, the bits that the model of an assigned device
//! knows besides those of `pci`, and where its capabilities lie.

use std::io;

use pci::CONFIG_SPACE_SIZE;

use super::host::{CONFIG_REGION, HostDevice};

/// Power management: control and status, and its state field (PCI Express 7.5.2.2).
pub(super) const PM_CONTROL: u16 = 4;
pub(super) const PM_STATE: u16 = 3;

/// The image of a configuration space.
pub(super) type Image = [u8; CONFIG_SPACE_SIZE];

/// An MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiLayout {
    pub(super) offset: u16,
    /// The message address has 64 bits.
    pub(super) wide: bool,
    /// There are mask and pending bits.
    pub(super) maskable: bool,
}

impl MsiLayout {
    /// Where the message data lies.
    pub(super) const fn data(self) -> u16 {
        self.offset + if self.wide { 0x0c } else { 0x08 }
    }

    /// Where the mask bits lie; the pending bits follow.
    pub(super) const fn mask(self) -> u16 {
        self.offset + if self.wide { 0x10 } else { 0x0c }
    }

    /// Bytes of the capability.
    pub(super) const fn size(self) -> u16 {
        match (self.wide, self.maskable) {
            (false, false) => 0x0a,
            (true, false) => 0x0e,
            (false, true) => 0x14,
            (true, true) => 0x18,
        }
    }
}

/// An MSI-X capability: where its table and pending bits lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixLayout {
    pub(super) offset: u16,
    pub(super) vectors: u16,
    pub(super) table_bar: usize,
    pub(super) table: u64,
    pub(super) pba_bar: usize,
    pub(super) pba: u64,
}

impl MsixLayout {
    /// Bytes of the table.
    pub(super) fn table_size(&self) -> u64 {
        u64::from(self.vectors) * 16
    }

    /// Bytes of the pending bits.
    pub(super) fn pba_size(&self) -> u64 {
        u64::from(self.vectors.div_ceil(64)) * 8
    }
}

/// Where the capabilities are whose registers do something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) power: Option<u16>,
    pub(super) pcie: Option<u16>,
    pub(super) msi: Option<MsiLayout>,
    pub(super) msix: Option<MsixLayout>,
    pub(super) pri: Option<u16>,
}

/// Bytes of an image; zeroes beyond its end.
pub(super) fn chunk<const N: usize>(image: &[u8], offset: u16) -> [u8; N] {
    let at = usize::from(offset);
    image
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .unwrap_or([0; N])
}

/// Replaces bytes of an image; what lies beyond its end is dropped.
pub(super) fn put(image: &mut [u8], offset: u16, data: &[u8]) {
    image
        .iter_mut()
        .skip(usize::from(offset))
        .zip(data)
        .for_each(|(byte, value)| *byte = *value);
}

/// The host's configuration space; zero beyond its end, where a conventional device has none.
pub(super) fn read_image(host: &dyn HostDevice) -> io::Result<Box<Image>> {
    let size = host.region(CONFIG_REGION)?.size;
    let length =
        usize::try_from(size).map_or(CONFIG_SPACE_SIZE, |size| size.min(CONFIG_SPACE_SIZE));
    let mut image = Box::new([0; CONFIG_SPACE_SIZE]);
    host.read(
        CONFIG_REGION,
        0,
        image.get_mut(..length).unwrap_or_default(),
    )?;
    Ok(image)
}
