//! Remedies for a unit, or guest memory, that the host's IOMMU cannot serve: which option to write
//! instead.

use std::fmt;

use intel_vtd_host::Incompatible;

/// What `aw-bits` takes, and the least width that a unit can have.
const WIDTHS: [u8; 3] = [39, 48, 57];
const LEAST: u8 = 31;

/// What is in the way of a device, with the option that asks for it and the one that does not.
#[derive(Debug)]
pub(crate) struct Remedied {
    /// The obstacle.
    pub(super) why: Incompatible,
    /// Whether the unit shows first-stage translation.
    pub(super) first_stage: bool,
}

impl fmt::Display for Remedied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Incompatible::AddressWidth { host, asked, .. } => write!(
                f,
                "the host's IOMMU translates {host} bits of address for this device, and the remapping unit {asked}; {}",
                narrower(*host, *asked, self.first_stage)
            ),
            Incompatible::Memory { end, host, .. } => write!(
                f,
                "guest memory ends at {end:#x}, and the host's IOMMU translates {host} bits of address for this device; write a \
                 smaller --memory"
            ),
            Incompatible::NoNesting(why) => write!(
                f,
                "x-flts=on gives the guest first-stage translation, which needs nested translation in the host for an assigned \
                 device, and {why}; write x-flts=off"
            ),
            Incompatible::FiveLevels => f.write_str(
                "aw-bits=57 gives the guest first-stage tables of five levels (x-flts=on), which the host's IOMMU cannot walk \
                 (CAP.FS5LP is clear); write aw-bits=48, or x-flts=off",
            ),
            Incompatible::Walks(what) => write!(
                f,
                "the remapping unit promises the guest {what} in first-stage tables, which the host's IOMMU does not have for \
                 this device; assign it when the machine is started, and the unit will not promise it"
            ),
            Incompatible::CachingMode => f.write_str(
                "caching mode was turned off (caching-mode=off), and without it a guest does not announce new mappings, so an \
                 assigned device would never get them; write caching-mode=auto",
            ),
            Incompatible::SnoopControl => f.write_str(
                "the remapping unit promises the guest that devices snoop caches (snoop control), and the host's IOMMU does not \
                 have this one do so; assign it when the machine is started, and the unit will not promise it",
            ),
            // No option is of help.
            other => other.fmt(f),
        }
    }
}

impl std::error::Error for Remedied {}

/// What to do where the host translates `host` bits of address, and the unit `asked`.
fn narrower(host: u8, asked: u8, first_stage: bool) -> String {
    match WIDTHS.into_iter().find(|bits| *bits >= host) {
        Some(bits) if host >= LEAST && bits >= asked => {
            "assign it when the machine is started, and the unit will be as narrow".to_owned()
        }
        // No first-stage tables are as narrow.
        Some(39) if host >= LEAST && first_stage => "write aw-bits=39,x-flts=off".to_owned(),
        Some(bits) if host >= LEAST => format!("write aw-bits={bits}"),
        _ => "drop intel-iommu, as no unit is as narrow".to_owned(),
    }
}

#[cfg(test)]
mod remedy_test;
