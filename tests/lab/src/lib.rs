//! The lab: real kernels in front of nido, judged by machine.
//!
//! * [`scenario`] is the table of what is run: a nido command line, a kernel and a [`plan`] for the
//!   guest.
//! * [`guest`] is the guest's init: it carries out the plan and reports each check as a line
//!   ([`protocol`]).
//! * [`agent`] runs one scenario: tap, disks, nido, time limit; it is init of level 1, or a part of
//!   xtask where the machine's own KVM runs Linux.
//! * [`judge`] decides from the lines and the exit status.

pub mod agent;
pub mod cpio;
pub mod guest;
pub mod hash;
pub mod judge;
pub(crate) mod kernel_log;
pub(crate) mod pci;
pub mod plan;
pub mod protocol;
pub mod scenario;
pub mod sys;
