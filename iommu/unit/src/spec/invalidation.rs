//! One invalidation of the guest: by a descriptor of the queue (section 6.5.2) or by a register (section 11.4.8).

use super::descriptors::{ContextScope, Descriptor, IotlbScope, PasidCacheScope, PasidIotlbScope};
use super::device_tlb::DeviceTlbInvalidation;
use super::ids::SourceId;

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

impl Invalidation {
    /// What `descriptor` invalidates of the unit's own caches of translations and of the entries that lead to them.
    pub(crate) const fn of(descriptor: &Descriptor) -> Option<Self> {
        match *descriptor {
            Descriptor::Context(scope) => Some(Self::Context(scope)),
            Descriptor::Iotlb(scope) => Some(Self::Iotlb(scope)),
            Descriptor::PasidCache(scope) => Some(Self::PasidCache(scope)),
            Descriptor::PasidIotlb {
                domain,
                pasid,
                scope,
            } => Some(Self::PasidIotlb {
                domain,
                pasid,
                scope,
            }),
            Descriptor::DeviceTlb { .. }
            | Descriptor::Interrupt(_)
            | Descriptor::Wait(_)
            | Descriptor::PageResponse { .. } => None,
        }
    }
}
