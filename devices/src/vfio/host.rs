//! The interface of a host's device to its model: regions, interrupts, reset. A trait, so that
//! tests can be the device.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR,
    vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY,
    vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P,
    vfio_device_mig_state_VFIO_DEVICE_STATE_STOP,
    vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY,
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

/// What a device's driver in the host can do to have it migrate (`VFIO_DEVICE_FEATURE_MIGRATION`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MigrationFeatures {
    /// `VFIO_MIGRATION_STOP_COPY`: it can be stopped, saved and restored.
    pub(super) stop_copy: bool,
    /// `VFIO_MIGRATION_P2P`: there is `RUNNING_P2P`.
    pub(super) p2p: bool,
}

/// The state of a device that can be migrated (`enum vfio_device_mig_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MigrationState {
    /// It has failed, until it is reset.
    Error,
    /// Nothing of it changes.
    Stop,
    /// It works.
    Running,
    /// It is stopped, and what it is like can be read.
    StopCopy,
    /// It is stopped, and takes what it is to be like.
    Resuming,
    /// It works, but for DMA to other devices.
    RunningP2p,
    /// It works, and what it is like can be read, and changes.
    PreCopy,
    /// The same without DMA to other devices.
    PreCopyP2p,
}

impl MigrationState {
    /// As VFIO numbers them.
    const ALL: [(Self, u32); 8] = [
        (Self::Error, vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR),
        (Self::Stop, vfio_device_mig_state_VFIO_DEVICE_STATE_STOP),
        (
            Self::Running,
            vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING,
        ),
        (
            Self::StopCopy,
            vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY,
        ),
        (
            Self::Resuming,
            vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING,
        ),
        (
            Self::RunningP2p,
            vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P,
        ),
        (
            Self::PreCopy,
            vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY,
        ),
        (
            Self::PreCopyP2p,
            vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P,
        ),
    ];

    /// Its number.
    pub(super) fn number(self) -> u32 {
        let mut all = Self::ALL.into_iter();
        all.find(|(state, _)| *state == self).map_or(
            vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR,
            |(_, number)| number,
        )
    }

    /// The state with this number, if there is one.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(_, known)| *known == number)
            .map(|(state, _)| state)
    }
}

impl fmt::Display for MigrationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "ERROR",
            Self::Stop => "STOP",
            Self::Running => "RUNNING",
            Self::StopCopy => "STOP_COPY",
            Self::Resuming => "RESUMING",
            Self::RunningP2p => "RUNNING_P2P",
            Self::PreCopy => "PRE_COPY",
            Self::PreCopyP2p => "PRE_COPY_P2P",
        })
    }
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

    /// Resets the function. One that can be migrated is `RUNNING` then, whatever it was.
    fn reset(&self) -> io::Result<()>;

    /// What its driver can do to have it migrate; `None` if that is nothing.
    fn migration(&self) -> io::Result<Option<MigrationFeatures>>;

    /// The state of a device that can be migrated.
    fn migration_state(&self) -> io::Result<MigrationState>;

    /// Brings a device that can be migrated into `state`, by all steps that lead there. If that fails, it
    /// is in one of the states between, or in `ERROR`.
    fn set_migration_state(&self, state: MigrationState) -> io::Result<()>;

    /// Reads on in what a device in `STOP_COPY` is like; nothing is left if that is no byte.
    fn read_migration(&self, data: &mut [u8]) -> io::Result<usize>;

    /// Writes on, to a device in `RESUMING`, what it is to be like.
    fn write_migration(&self, data: &[u8]) -> io::Result<()>;
}
