//! Accessed and dirty bits that a walk has to set before its result may be used.
//!
//! A walk only notes them. They are set when everything else about the request is known to be
//! permitted, each by compare-and-swap: when an entry is no longer what the walk saw, the walk is
//! repeated.

use crate::memory::TableMemory;
use crate::spec::fault_reason::FaultReason;

/// One entry in which bits have to be set.
#[derive(Clone, Copy, Debug)]
struct Update {
    address: u64,
    seen: u64,
    set: u64,
    /// All accessed and dirty bits of the kind of entry: these may change without repeating the
    /// walk.
    volatile: u64,
    /// The fault when the entry cannot be written.
    failure: FaultReason,
}

/// The entries to update, in the order in which to do so.
///
/// Empty in the usual case, which then costs no allocation. At most 35 entries: a nested walk of 5
/// by 5 levels.
#[derive(Debug, Default)]
pub(super) struct Updates(Vec<Update>);

/// How applying updates ended.
pub(super) enum Applied {
    Done,
    /// An entry has changed. The walk is void.
    Changed,
    /// An entry cannot be written.
    Failed(FaultReason),
}

impl Updates {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn push(
        &mut self,
        address: u64,
        seen: u64,
        set: u64,
        volatile: u64,
        failure: FaultReason,
    ) {
        self.0.push(Update {
            address,
            seen,
            set,
            volatile,
            failure,
        });
    }

    pub(super) fn first_failure(&self) -> Option<FaultReason> {
        self.0.first().map(|update| update.failure)
    }

    pub(super) fn apply<T: TableMemory>(&self, memory: &T) -> Applied {
        for update in &self.0 {
            let mut current = update.seen;
            // Another walk may set bits in between, and each of the few bits once. More rounds mean
            // that the guest plays with them.
            let mut rounds = 0;
            loop {
                if current | update.set == current {
                    break;
                }
                match memory.compare_exchange_u64(update.address, current, current | update.set) {
                    Err(_) => return Applied::Failed(update.failure),
                    Ok(Ok(_)) => break,
                    Ok(Err(found)) => current = found,
                }
                rounds += 1;
                if (current ^ update.seen) & !update.volatile != 0 || rounds == 8 {
                    return Applied::Changed;
                }
            }
        }
        Applied::Done
    }
}
