//! Who keeps the translations of assigned devices in the host hears what the guest changes.

use crate::spec::descriptors::{ContextScope, IotlbScope, PasidCacheScope, PasidIotlbScope};
use crate::spec::device_tlb::DeviceTlbInvalidation;
use crate::spec::ids::SourceId;

/// Something that the guest invalidated: what was read from the tables that it names may be out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Context entries, and what follows from them.
    Context(ContextScope),
    /// PASID entries, and what follows from them.
    PasidCache(PasidCacheScope),
    /// Translations.
    Iotlb(IotlbScope),
    /// Translations of a domain and PASID.
    PasidIotlb {
        /// DID.
        domain: u16,
        /// PASID.
        pasid: u32,
        /// All of them, or a block.
        scope: PasidIotlbScope,
    },
    /// Translations that a device keeps itself. Observers hear of those of devices that have a
    /// [device-TLB](crate::Unit::attach_device_tlb), which was told already.
    DeviceTlb {
        /// The device.
        source: SourceId,
        /// Which.
        invalidation: DeviceTlbInvalidation,
    },
    /// Everything: stands for invalidations too many to list, too.
    All,
}

/// Keeps translations outside of the unit, and brings them up to date when the guest says so.
///
/// Calls come one at a time and in the order of the guest's commands, under the unit's command mutex: an implementation must
/// not access registers. They may take as long as the host needs; the guest waits.
pub trait TranslationObserver: Send + Sync {
    /// The guest latched a root table, or turned translation on or off, or the unit was reset. The unit's
    /// [`DmaState`](crate::dma::DmaState) has the new state already; GSTS shows it when this returns.
    fn translation_changed(&self);

    /// A run of the invalidation queue, or a register-based invalidation, begins: all calls of
    /// [`invalidated`](Self::invalidated) until the next run are one exit of the guest. For limits on the work of one exit.
    fn run_begins(&self) {}

    /// When this returns, nothing that was read from the named tables before the call is in use any more. A wait completes
    /// after it.
    fn invalidated(&self, invalidations: &[Invalidation]);
}

#[cfg(test)]
#[path = "translation_observer_test.rs"]
mod translation_observer_test;
