//! Host devices, assigned through VFIO's character devices and iommufd.
//!
//! [`VfioNode`] is the device as the host sees it: opened, or taken over as a file. Bound to an
//! iommufd it is a [`VfioCdev`], attached to page tables by whoever shadows the guest's.
//! [`VfioPci`] is the function that the guest sees: a configuration space of our own, BARs that the
//! guest reaches without the VMM wherever VFIO allows it, and interrupts that go from the host's
//! device to the guest's processor without passing through this process.
//!
//! Not shown to the guest: expansion ROMs, I/O BARs (the machine has no window for them), and the
//! capabilities that `capabilities.rs` leaves out.

mod address;
mod bars;
mod bind;
mod capabilities;
mod cdev;
mod config;
mod direct;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_loop;
#[cfg(test)]
mod fake_migration;
mod function;
mod host;
mod image;
mod intx;
mod messages;
mod migration;
mod node;
mod platform;
mod requester;
mod retry;
mod services;
mod sys;
mod sysfs;
mod watcher;

pub use address::{HostAddress, InvalidHostAddress};
pub use bind::{BindError, share_iommufd};
pub use cdev::VfioCdev;
pub use function::{VfioPci, VfioPciError, VfioPciParts};
pub use node::{FileError, VfioNode};
pub use platform::GuestMappings;
pub use services::{HostServices, HostState, Pasids, Shown};
pub use sysfs::OpenError;
pub use vfio_ioctls::VfioIommufd;
pub use watcher::{EventLoop, HostEvent, HostListener};
