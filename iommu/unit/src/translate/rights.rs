//! The rights that a request needs, checked against those that a walk finds (sec. 3.6 and 3.7).

use super::request::{Access, Request, RequestKind};
use crate::spec::fault_reason::FaultReason;
use crate::spec::gates::Gates;

/// The rights that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    read: bool,
    write: bool,
    zero_length: bool,
    /// Dirty bits are to be set, if writing is permitted.
    dirties: bool,
}

impl Demand {
    /// Nothing is needed, and nothing is written.
    pub(super) const PROBE: Self = Self {
        read: false,
        write: false,
        zero_length: false,
        dirties: false,
    };

    pub(super) fn of(request: &Request, gates: &Gates) -> Self {
        match request.kind {
            RequestKind::TranslationRequest { no_write } => {
                let read_only = no_write && gates.caps.ecap.nwfs();
                Self {
                    dirties: !read_only,
                    ..Self::PROBE
                }
            }
            _ => {
                let writes = request.access.writes();
                let zero_length = request.access == Access::ZeroLengthRead;
                Self {
                    read: request.access.reads() && !zero_length,
                    write: writes,
                    zero_length,
                    dirties: writes,
                }
            }
        }
    }

    /// Whether the request leads to a write, given that it is permitted to write.
    pub(super) const fn dirties(self, writable: bool) -> bool {
        writable && self.dirties
    }

    /// Scalable mode: at the end of the walk, first the right to write.
    pub(super) fn check(self, gates: &Gates, read: bool, write: bool) -> Result<(), FaultReason> {
        if self.write && !write {
            return Err(FaultReason::ScalableWriteDenied);
        }
        if self.lacks_read(gates, read, write) {
            return Err(FaultReason::ScalableReadDenied);
        }
        Ok(())
    }

    /// Legacy mode: at each level. A walk that needs nothing ends where nothing is left.
    pub(super) fn denied_legacy(
        self,
        gates: &Gates,
        read: bool,
        write: bool,
    ) -> Option<FaultReason> {
        if self.write && !write {
            Some(FaultReason::WriteDenied)
        } else if self.lacks_read(gates, read, write) || !read && !write {
            Some(FaultReason::ReadDenied)
        } else {
            None
        }
    }

    /// Zero-length reads pass on pages that can only be written, if CAP.ZLR.
    fn lacks_read(self, gates: &Gates, read: bool, write: bool) -> bool {
        if self.zero_length {
            let passes = write && gates.caps.cap.zlr();
            !read && !passes
        } else {
            self.read && !read
        }
    }
}
