//! PCI Express for an emulated machine: configuration space, base address registers, capabilities,
//! and a root complex that decodes ECAM and memory accesses.
//!
//! Nothing here knows KVM, VT-d or a device model: a device implements [`PciFunction`], and the
//! machine hands it an [`MsiSink`] for its interrupts. Section numbers refer to the PCI Express
//! Base Specification 6.0 unless said otherwise.

#![forbid(unsafe_code)]

mod bar;
mod bar_assignment;
mod bdf;
mod bridge;
mod builder;
pub mod capability;
mod command;
mod config;
mod config_layout;
#[cfg(test)]
mod config_test;
mod decode;
mod endpoint;
mod extended;
mod function;
pub mod header;
mod host_bridge;
mod hotplug;
#[cfg(test)]
mod hotplug_test;
mod msi;
#[cfg(test)]
mod msi_test;
mod msix;
#[cfg(test)]
mod msix_test;
mod park;
mod pcie;
mod port;
#[cfg(test)]
mod port_test;
mod port_windows;
#[cfg(test)]
mod probe;
mod root;
#[cfg(test)]
mod root_test;
mod slot;

pub use bar::{BarKind, BarWindow};
pub use bar_assignment::AssignError;
pub use bdf::Bdf;
pub use builder::{ConfigBuilder, Identity};
pub use command::Command;
pub use config::{ConfigChange, ConfigSpace, ConfigState};
pub use config_layout::CONFIG_SPACE_SIZE;
pub use extended::{
    ACS_EXTENDED_ID, ATS_EXTENDED_ID, ExtendedRegisters, PASID_EXTENDED_ID, PRI_EXTENDED_ID,
};
pub use function::{IntxSink, MsiSink, PciFunction};
pub use hotplug::{PlugError, RemovalOutcome, SlotState, UnplugError};
pub use msi::MsiMessage;
pub use msix::{MSIX_ENTRY_SIZE, MsixEntry, MsixState, MsixTable};
pub use port::RootPort;
pub use root::{AddError, Apertures, ECAM_FUNCTION_SHIFT, RootComplex};
pub use slot::Indicator;
