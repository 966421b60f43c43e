//! PASID, ATS and PRI of an assigned device: what the host has of them, and what the guest is
//! shown.
//!
//! The host's kernel alone enables PASID, ATS and PRI in the device; vfio-pci hides the first
//! capability and shows the others read-only. The guest gets capabilities with control registers of
//! our own, which are state and do nothing to the device:
//!
//! * **PASID.** The device uses PASIDs that are attached to page tables, whatever the guest's
//!   enable bit says; the guest's tables decide which ones are.
//! * **ATS.** Where the host has it enabled, the device keeps translations, whatever the guest's
//!   enable bit says. It keeps none that the guest has taken away: what the host invalidates for an
//!   invalidation of the guest's tables, it invalidates in the device as well. So a guest that has
//!   not enabled ATS, and sends no invalidations to the device, misses none, and those of a guest
//!   that has come on top. Where the host has it disabled, the device keeps nothing, and the
//!   capability is not shown.
//! * **PRI.** Where the host has it enabled, the device asks for pages, whatever the guest's enable
//!   bit says; those of tables with a queue come to us, and the host answers the others.

/// The capabilities that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// PASID (PCI Express 7.8.9).
    pub pasids: Option<Pasids>,
    /// ATS (10.5.1), as far as the device has it.
    pub ats: bool,
    /// PRI (10.5.2), as far as the device has it.
    pub pri: bool,
}

/// What a PASID capability says. Execute requests are never shown: no unit of ours takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pasids {
    /// Width, 1 to 20.
    pub bits: u8,
    /// Requests can be privileged.
    pub privileged: bool,
}

/// A capability, as the host has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// The device does not have it.
    Absent,
    /// The host's kernel has not enabled it.
    Disabled,
    /// It is in use.
    Enabled,
}

/// ATS and PRI, as the host has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostServices {
    /// ATS: the device may keep translations.
    pub ats: HostState,
    /// PRI: the device may ask for pages.
    pub pri: HostState,
}
