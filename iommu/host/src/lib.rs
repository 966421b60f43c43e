//! Assigned devices: what the guest's tables say about them is made true in the host's IOMMU.
//!
//! An emulated device walks the guest's tables when it makes a request. The requests of an assigned
//! device go past the VMM, so what translates them is prepared in the host: nothing (blocked),
//! guest-physical memory (pass-through, and while translation is off), or a shadow of the guest's
//! second-stage tables.
//!
//! [`HostIommu`] is what this takes from the host, one object for each iommufd; [`Attachment`] is
//! how one device is put behind a page table, which is VFIO's part.
//!
//! | purpose | names |
//! |---|---|
//! | the devices of a machine | [`AssignedDevices`], [`AssignedDevice`], [`RamPiece`], [`Limits`], [`AddError`], [`PlugError`] |
//! | what the host can follow | [`HostCapabilities`], [`TableReach`], [`Incompatible`], [`NoNesting`] |
//! | where devices are | [`Placement`], [`Blocked`], [`DeviceReport`], [`PlacementReport`], [`AssignedStatistics`], [`DirtyTrackingError`] |
//! | iommufd | [`Iommufd`], [`IOMMUFD_PATH`], [`FaultQueue`], [`IoctlCounts`], [`IoctlKind`], [`IOCTL_KINDS`] |
//! | page requests | [`PageRequestRelay`], [`PageRequestPath`], [`HostPageRequest`], [`HostPageRequests`], [`PageResponses`] |
//! | the interfaces to the host | [`HostIommu`], [`Attachment`], and the types that they take |

mod assigned;
mod attach;
mod blocked;
mod budget;
mod capabilities;
mod dirty;
#[cfg(any(test, feature = "fake-host"))]
pub mod fake;
mod footprint;
mod host_iommu;
mod index;
mod ioas;
mod iommufd;
mod nested;
mod page_requests;
mod ram;
mod resources;
mod run;
mod shadow;
mod statistics;

pub use assigned::{
    AddError, AssignedDevice, AssignedDevices, AssignedStatistics, Blocked, DeviceReport,
    DirtyTrackingError, Limits, Placement, PlacementReport, PlugError, RamPiece,
};
pub use capabilities::{HostCapabilities, Incompatible, NoNesting, TableReach};
pub use host_iommu::{
    Attachment, FaultQueueId, HardwareInfo, HostDeviceId, HostGroupId, HostIommu, HostMemory,
    HwptId, HwptOptions, IntelInfo, IoasId, NestedInvalidation, NestedOptions, NestedTable,
    ObjectId, Rights, SharedMapping,
};
pub use iommufd::{FaultQueue, IOCTL_KINDS, IOMMUFD_PATH, IoctlCounts, IoctlKind, Iommufd};
pub use page_requests::{
    HostPageRequest, HostPageRequests, PageRequestPath, PageRequestRelay, PageResponses,
};
