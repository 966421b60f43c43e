//! Counters, and the limit on what a guest can make the unit log.

mod durations;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::dma::DmaCounts;
pub use durations::Durations;
pub(crate) use durations::Histogram;

macro_rules! counters {
    (
        by views { $($(#[$view_doc:meta])* $of_views:ident,)* }
        here { $($(#[$doc:meta])* $name:ident,)* }
    ) => {
        /// What a unit has done since it was made. Counters never go back, not even at reset.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Statistics {
            $($(#[$view_doc])* pub $of_views: u64,)*
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Statistics {
            /// Every counter with its name, in the order of the fields.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [
                    $((stringify!($of_views), self.$of_views),)*
                    $((stringify!($name), self.$name),)*
                ]
                .into_iter()
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            /// With what views have counted.
            pub(crate) fn snapshot(&self, views: DmaCounts) -> Statistics {
                Statistics {
                    $($of_views: views.$of_views,)*
                    $($name: self.$name.get(),)*
                }
            }
        }
    };
}

counters! {
    by views {
        /// Accesses that found their translation in the cache of their device thread.
        translation_hits,
        /// Accesses for which tables were walked, if only the last of them.
        table_walks,
        /// Those of them through a first stage nested on a second one.
        nested_walks,
        /// Accesses that an option to keep translations until they are invalidated had an answer for.
        kept_hits,
        /// Accesses whose answer came of what is kept, and was not what the tables said by then.
        kept_stale,
    }
    here {
        /// Context cache invalidations, queued.
        context_invalidations,
        /// IOTLB invalidations, queued.
        iotlb_invalidations,
        /// PASID cache invalidations.
        pasid_cache_invalidations,
        /// PASID-based IOTLB invalidations.
        pasid_iotlb_invalidations,
        /// Invalidations of device-TLBs.
        device_tlb_invalidations,
        /// Device-TLB invalidations that timed out, because there is no such device.
        device_tlb_timeouts,
        /// Interrupt entry cache invalidations.
        interrupt_invalidations,
        /// Invalidation waits.
        waits,
        /// Waits whose status could not be written, because there is no memory.
        lost_statuses,
        /// Invalidations through the context command or IOTLB registers.
        register_invalidations,
        /// Register writes that left some of what they asked for to the background.
        left_to_background,
        /// Invalidation queue errors.
        queue_errors,
        /// Faults that went into a record.
        faults_recorded,
        /// Faults that found no record free.
        faults_lost,
        /// Faults that a Fault Processing Disable bit suppressed.
        faults_suppressed,
        /// Translations that devices asked for (ATS).
        translation_requests,
        /// Page requests that went into the queue.
        page_requests,
        /// Those of them that software never sees, because there is no memory in their place of the queue.
        page_requests_lost,
        /// Page requests that were dropped.
        page_requests_refused,
        /// Answers to page requests.
        page_responses,
        /// Interrupts that were remapped.
        interrupts_remapped,
        /// Interrupts that passed unchanged.
        interrupts_passed,
        /// Interrupts that were blocked.
        interrupts_blocked,
    }
}

/// A number that grows; no order with anything else.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters and the log limit: what all parts of a unit share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    pub(crate) register_accesses: Histogram,
    /// Leaf lock.
    warnings: Mutex<Limiter>,
    /// Leaf lock. Apart from the other, so that common events do not hide rare ones.
    details: Mutex<Limiter>,
}

impl Shared {
    /// Logs something odd that the guest did, at most once per second.
    pub(crate) fn warn(&self, message: impl FnOnce() -> String) {
        log(&self.warnings, log::Level::Warn, message);
    }

    /// Logs something ordinary that the guest did, at most once per second.
    pub(crate) fn debug(&self, message: impl FnOnce() -> String) {
        log(&self.details, log::Level::Debug, message);
    }
}

fn log(limiter: &Mutex<Limiter>, level: log::Level, message: impl FnOnce() -> String) {
    if !log::log_enabled!(level) {
        return;
    }
    let passed = {
        let mut limiter = limiter.lock();
        limiter.pass(Instant::now())
    };
    match passed {
        Some(0) => log::log!(level, "{}", message()),
        Some(more) => log::log!(level, "{} ({more} more messages were held back)", message()),
        None => {}
    }
}

/// Lets one message pass per second, and counts the ones it held back.
#[derive(Debug, Default)]
pub struct Limiter {
    last: Option<Instant>,
    held_back: u64,
}

impl Limiter {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// How many messages were held back since the last one, if one may pass at `now`.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if self
            .last
            .is_some_and(|last| now.duration_since(last) < Self::INTERVAL)
        {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod statistics_test;
