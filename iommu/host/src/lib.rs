//! Assigned devices: what the guest's tables say about them is made true in the host's IOMMU.
//!
//! An emulated device walks the guest's tables when it makes a request. The requests of an assigned
//! device go past the VMM, so what translates them is prepared in the host: nothing (blocked),
//! guest-physical memory (pass-through, and while translation is off), or a shadow of the guest's
//! second-stage tables.
//!
//! [`HostIommu`] is what this takes from the host, one object for each iommufd; [`Attachment`] is
//! how one device is put behind a page table, which is VFIO's part.

pub mod assigned;
pub mod capabilities;
#[cfg(any(test, feature = "fake-host"))]
pub mod fake;
pub mod iommufd;
pub mod page_requests;

mod attach;
mod blocked;
mod budget;
mod dirty;
mod host_iommu;
mod ioas;
mod nested;
mod ram;
mod resources;
mod run;
mod shadow;
mod statistics;

pub use host_iommu::*;
