//! Tags of what a view remembers: by them, nothing is found that is of another generation, PASID or
//! privilege.

use crate::spec::ids::Pasid;

/// For which requests something that is remembered holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tag {
    /// When it was found; 0 for never.
    pub(crate) generation: u64,
    /// The PASID with the privilege above it, or all ones without a PASID.
    requester: u32,
}

impl Tag {
    /// Of what is remembered nowhere.
    pub(crate) const NOTHING: Self = Self {
        generation: 0,
        requester: 0,
    };

    /// Requests with `pasid`, be it as supervisor, or without one, under `generation`.
    #[inline]
    pub(crate) fn new(generation: u64, pasid: Option<Pasid>, privileged: bool) -> Self {
        let requester = match pasid {
            Some(pasid) => pasid.get() | u32::from(privileged) << 20,
            None => u32::MAX,
        };
        Self {
            generation,
            requester,
        }
    }

    /// Who asks, as one number.
    pub(crate) const fn requester(self) -> u32 {
        self.requester
    }

    /// What to mix into the index of an entry, so that the same address of several PASIDs finds
    /// room.
    #[inline]
    pub(crate) fn spread(self) -> u64 {
        u64::from(self.requester).wrapping_mul(0x9e37_79b9) >> 8
    }
}
