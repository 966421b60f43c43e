//! Host devices, assigned through VFIO's character devices and iommufd.
//!
//! [`VfioCdev`] is the device as the host sees it: opened (or taken over as a file), bound to an iommufd, and attached to page
//! tables by whoever shadows the guest's. [`VfioPci`] is the function that the guest sees: a configuration space of our own,
//! BARs that the guest reaches without the VMM wherever VFIO allows it, and interrupts that go from the host's device to the
//! guest's processor without passing through this process.
//!
//! Not shown to the guest: expansion ROMs, I/O BARs (the machine has no window for them), and the capabilities that
//! `capabilities.rs` leaves out.

mod address;
mod bars;
mod capabilities;
mod cdev;
mod config;
mod direct;
#[cfg(test)]
mod fake;
mod function;
mod host;
mod intx;
mod messages;
mod platform;
mod region_info;
mod requester;
mod shown;
mod sys;
mod sysfs;
mod watcher;

pub use address::{HostAddress, InvalidHostAddress};
pub use cdev::{BindError, FileError, VfioCdev};
pub use function::{VfioPci, VfioPciError, VfioPciParts};
pub use platform::{EndOfInterrupt, GuestMappings, InterruptRoute, InterruptRoutes};
pub use shown::{HostServices, HostState, Pasids, Shown};
pub use sysfs::OpenError;
pub use watcher::{HostEvent, HostListener};
