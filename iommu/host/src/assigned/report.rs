//! What there is to say about assigned devices.

use std::fmt;
use std::sync::Arc;

use super::target::Blocked;
use intel_vtd::spec::ids::{Pasid, SourceId};
use intel_vtd::translate::{FirstStage, SecondStage};

macro_rules! statistics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was done for assigned devices since the machine was made. Counters never go back.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct AssignedStatistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AssignedStatistics {
            /// Every counter with its name, in the order of the fields.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

statistics! {
    /// Calls of the host that mapped a run of pages into a shadow.
    maps,
    /// Calls of the host that unmapped areas of a shadow.
    unmaps,
    /// Areas of which the guest changed a part, so that the rest was mapped again.
    splits,
    /// Runs of pages that the host did not map.
    map_failures,
    /// Bytes that were found to be writable but not readable, which the host's page tables cannot express; counted each time.
    write_only_bytes,
    /// Bytes that were found to be readable but not writable, which the host does not map below first-stage tables; counted each
    /// time.
    read_only_bytes,
    /// Shadows that were made.
    shadows_made,
    /// Nested page tables that were made.
    nested_made,
    /// Calls of the host that invalidated translations of a nested page table.
    invalidation_calls,
    /// Invalidations that it carried out in these.
    invalidations,
    /// Invalidations of everything, as the host rejected one of less.
    full_invalidations,
    /// Devices, and PASIDs of devices, that were blocked because the host did not invalidate what they had used.
    invalidation_detaches,
    /// Devices that got behind a page table only from a clean state, after the host had refused to replace one by another.
    recoveries,
    /// Devices that were put behind a page table.
    attaches,
    /// PASIDs of devices that were put behind a page table.
    pasid_attaches,
    /// Devices that were blocked because the guest's tables say so.
    blocks,
    /// PASIDs of devices that were.
    pasid_blocks,
    /// Devices that were blocked for a limit, or because the host refused.
    failures,
    /// PASIDs of devices that were.
    pasid_failures,
}

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
