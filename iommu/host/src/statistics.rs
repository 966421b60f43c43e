//! Counters of what was done for assigned devices.

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
    /// Bytes that were found to be writable but not readable, which the host's page tables may not
    /// be able to express, so that devices can read them; counted each time.
    write_only_bytes,
    /// Bytes that were found to be readable but not writable, which the host does not map below
    /// first-stage tables; counted each time.
    read_only_bytes,
    /// Bytes that were found at addresses which the host does not map for the devices there, as one
    /// of them has them reserved, or the host's IOMMU does not translate them; counted each time.
    outside_bytes,
    /// Shadows that were made.
    shadows_made,
    /// Times that all of a shadow was compared with the guest's tables.
    comparisons,
    /// Nested page tables that were made.
    nested_made,
    /// Calls of the host that invalidated translations of a nested page table.
    invalidation_calls,
    /// Invalidations that it carried out in these.
    invalidations,
    /// Invalidations of everything, as the host rejected one of less.
    full_invalidations,
    /// Devices, and PASIDs of devices, that were blocked because the host did not invalidate what
    /// they had used.
    invalidation_detaches,
    /// Devices that got behind a page table only from a clean state, after the host had refused to
    /// replace one by another.
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
