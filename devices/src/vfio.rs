//! Host devices, assigned through VFIO's character devices and iommufd.
//!
//! [`VfioCdev`] is the device as the host sees it: opened (or taken over as a file), bound to an iommufd, and attached to page
//! tables by whoever shadows the guest's.

mod address;
mod cdev;
mod host;
mod platform;
mod region_info;
mod sys;
mod sysfs;

pub use address::{HostAddress, InvalidHostAddress};
pub use cdev::{BindError, FileError, VfioCdev};
pub use platform::{EndOfInterrupt, GuestMappings, InterruptRoute, InterruptRoutes};
pub use sysfs::OpenError;
