//! Reports on assigned devices: where each is, for people and for tests.

use std::fmt;
use std::sync::Arc;

use crate::blocked::Blocked;
use intel_vtd::{FirstStage, Pasid, SecondStage, SourceId};

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceBinding {
    /// It reaches nothing.
    Blocked(Blocked),
    /// It reaches all guest memory.
    GuestPhysical,
    /// It reaches what a shadow maps.
    Shadow {
        /// The guest's tables.
        stage: SecondStage,
        /// DID.
        domain: u16,
        /// Areas of the shadow.
        areas: usize,
        /// Bytes that it maps.
        bytes: u64,
    },
    /// It reaches what the guest's first-stage tables map, which the host's IOMMU walks.
    Nested {
        /// The tables.
        first: FirstStage,
        /// The guest's second-stage tables on whose shadow they are; `None` for guest memory.
        below: Option<SecondStage>,
        /// DID.
        domain: u16,
        /// PASID under which they are invalidated; that of the context entry, for requests without.
        pasid: u32,
    },
}

/// A device, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// Who the requests come from.
    pub source: SourceId,
    /// What the user calls it.
    pub name: Arc<str>,
    /// Where its requests without PASID are.
    pub binding: DeviceBinding,
    /// Where its requests with PASIDs are, in ascending order; those that are not listed are blocked, as the guest has no entry
    /// for them.
    pub pasids: Vec<(Pasid, DeviceBinding)>,
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.source, self.name, self.binding)?;
        self.pasids
            .iter()
            .try_for_each(|(pasid, binding)| write!(f, "\n  PASID {pasid}: {binding}"))
    }
}

impl fmt::Display for DeviceBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked(why) => write!(f, "blocked: {why}"),
            Self::GuestPhysical => write!(f, "guest-physical memory"),
            Self::Shadow {
                stage,
                domain,
                areas,
                bytes,
            } => {
                let kib = bytes / 1024;
                write!(
                    f,
                    "shadow of {stage}, domain {domain}: {kib} KiB in {areas} areas"
                )
            }
            Self::Nested {
                first,
                below: None,
                domain,
                ..
            } => write!(f, "nested {first} on guest memory, domain {domain}"),
            Self::Nested {
                first,
                below: Some(below),
                domain,
                ..
            } => write!(f, "nested {first} on a shadow of {below}, domain {domain}"),
        }
    }
}
