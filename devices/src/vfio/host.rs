//! The interface of a host's device to its model: regions, interrupts, reset. A trait, so that
//! tests can be the device.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

/// The region that is configuration space. BARs are the regions 0 to 5.
pub(super) const CONFIG_REGION: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// Kinds of interrupt, as VFIO numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum IrqKind {
    /// The interrupt pin.
    Intx,
    /// Message-signalled interrupts from configuration space.
    Msi,
    /// Message-signalled interrupts from a table.
    Msix,
    /// The host saw an uncorrectable error of the device.
    Error,
    /// The host wants the device back.
    Request,
}

impl IrqKind {
    pub(super) const fn index(self) -> u32 {
        match self {
            Self::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Error => VFIO_PCI_ERR_IRQ_INDEX,
            Self::Request => VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

/// A region of the device's file (`struct vfio_region_info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Region {
    /// Bytes; 0 when there is no such region.
    pub(super) size: u64,
    /// Parts that can be mapped, as VFIO says.
    pub(super) mappable: Vec<Range<u64>>,
}

/// Interrupts of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Irqs {
    /// How many there are.
    pub(super) count: u32,
    /// They can be armed one after the other; otherwise no more than the first call named.
    pub(super) dynamic: bool,
}

/// What came of arming interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Armed {
    /// They are signalled from now on.
    All,
    /// Nothing was done: the host has only this many vectors for the device.
    Only(u32),
}

/// A device that is bound to an iommufd.
pub(super) trait HostDevice: Send + Sync {
    /// Names the device, for messages.
    fn name(&self) -> String;

    /// Reads `region` at `offset`.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `region` at `offset`.
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Describes `region`.
    fn region(&self, region: u32) -> io::Result<Region>;

    /// Maps `part`, page-aligned, of `region` into this process.
    fn map(&self, region: u32, part: Range<u64>) -> io::Result<Arc<MmapRegion>>;

    /// The interrupts of that kind that the device has.
    fn irqs(&self, kind: IrqKind) -> io::Result<Irqs>;

    /// Signals `events` for the interrupts from `start` on; `None` stops one.
    fn arm(&self, kind: IrqKind, start: u32, events: &[Option<&EventFd>]) -> io::Result<Armed>;

    /// Turns all interrupts of that kind off.
    fn disarm(&self, kind: IrqKind) -> io::Result<()>;

    /// Lets the interrupt pin's interrupt come again: each one masks it.
    fn unmask_intx(&self) -> io::Result<()>;

    /// Whether [`reset`](Self::reset) can work.
    fn has_reset(&self) -> io::Result<bool>;

    /// Resets the function.
    fn reset(&self) -> io::Result<()>;
}
