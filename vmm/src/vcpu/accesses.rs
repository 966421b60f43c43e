//! How long the vCPUs' accesses to devices took, as far as the kernel's coarse clock tells.
//!
//! CLOCK_MONOTONIC_COARSE moves with the kernel's timer, every 1 to 10 ms, and to read it is a load
//! from memory, so the time of every access can be taken. One during which it moves once may have
//! taken no time at all; one during which it moves more often took all of that but one tick at
//! least, and is counted with that time.

use std::array;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_getres, clock_gettime};
use parking_lot::Mutex;

/// One bucket for each power of two of milliseconds up to four seconds, and one for what took
/// longer.
const BUCKETS: usize = 14;

const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC_COARSE;

/// What an access is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A port is read or written.
    Port(u16),
    /// Memory that is not RAM is read.
    Read(u64),
    /// It is written.
    Write(u64),
    /// A local APIC tells of the end of an interrupt of this vector.
    EndOfInterrupt(u8),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port:#x}"),
            Self::Read(address) => write!(f, "read of {address:#x}"),
            Self::Write(address) => write!(f, "write of {address:#x}"),
            Self::EndOfInterrupt(vector) => write!(f, "end of interrupt {vector:#x}"),
        }
    }
}

impl Target {
    /// Where in memory it is.
    pub(crate) fn address(self) -> Option<u64> {
        match self {
            Self::Read(address) | Self::Write(address) => Some(address),
            Self::Port(_) | Self::EndOfInterrupt(_) => None,
        }
    }

    /// As a number other than 0. Guests have no address of more than 52 bits.
    fn encode(self) -> u64 {
        let (kind, value) = match self {
            Self::Port(port) => (1, u64::from(port)),
            Self::Read(address) => (2, address),
            Self::Write(address) => (3, address),
            Self::EndOfInterrupt(vector) => (4, u64::from(vector)),
        };
        kind << KIND_SHIFT | value & VALUE
    }

    fn decode(code: u64) -> Option<Self> {
        let value = code & VALUE;
        match code >> KIND_SHIFT {
            1 => u16::try_from(value).ok().map(Self::Port),
            2 => Some(Self::Read(value)),
            3 => Some(Self::Write(value)),
            4 => u8::try_from(value).ok().map(Self::EndOfInterrupt),
            _ => None,
        }
    }
}

const KIND_SHIFT: u32 = 60;
const VALUE: u64 = (1 << KIND_SHIFT) - 1;

/// What one vCPU does at the moment.
#[derive(Default)]
pub(crate) struct Current {
    access: AtomicU64,
    rests: AtomicBool,
}

impl Current {
    /// The access, if there is one.
    pub(crate) fn target(&self) -> Option<Target> {
        Target::decode(self.access.load(Ordering::Relaxed))
    }

    /// Whether it does nothing of the guest's.
    pub(crate) fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    pub(super) fn set_rests(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }
}

/// One vCPU's accesses.
pub(super) struct Accesses<'a> {
    pub(super) times: &'a AccessTimes,
    pub(super) current: Option<&'a Current>,
}

impl Accesses<'_> {
    /// Carries out `access`, takes its time, and lets others see it meanwhile.
    pub(super) fn take<R>(&self, target: Target, access: impl FnOnce() -> R) -> R {
        let show = |code| {
            if let Some(current) = self.current {
                current.access.store(code, Ordering::Relaxed);
            }
        };
        show(target.encode());
        let result = self.times.take(target, access);
        show(0);
        result
    }
}

/// The times of all vCPUs' accesses since the start.
pub(crate) struct AccessTimes {
    /// How far the clock moves each time.
    tick: Duration,
    counts: [AtomicU64; BUCKETS],
    /// Leaf lock.
    longest: Mutex<Option<(Duration, Target)>>,
}

impl Default for AccessTimes {
    fn default() -> Self {
        Self {
            tick: clock_getres(CLOCK).map_or(Duration::MAX, Duration::from),
            counts: Default::default(),
            longest: Mutex::default(),
        }
    }
}

impl AccessTimes {
    /// Carries out `access`, and takes its time.
    fn take<R>(&self, target: Target, access: impl FnOnce() -> R) -> R {
        let begin = now();
        let result = access();
        let time = now().saturating_sub(begin).saturating_sub(self.tick);
        if !time.is_zero() {
            self.count(target, time);
        }
        result
    }

    #[cold]
    fn count(&self, target: Target, time: Duration) {
        let bits = u128::BITS - time.as_millis().leading_zeros();
        let index = usize::try_from(bits).unwrap_or(BUCKETS);
        if let Some(bucket) = self.counts.get(index.min(BUCKETS - 1)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let mut longest = self.longest.lock();
        if longest.is_none_or(|(other, _)| other < time) {
            *longest = Some((time, target));
        }
    }

    /// The bound of each bucket with the number of accesses whose times were shorter, but not
    /// shorter than the bound before: 1 ms, 2 ms and so on. The last has no bound.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let counts: [u64; BUCKETS] = array::from_fn(|index| {
            let bucket = self.counts.get(index);
            bucket.map_or(0, |bucket| bucket.load(Ordering::Relaxed))
        });
        let bounds = (0..).map(|power| {
            let bound = Duration::from_millis(1 << power);
            (power < BUCKETS - 1).then_some(bound)
        });
        bounds.zip(counts)
    }

    /// The one that took longest, if any was counted.
    pub(crate) fn longest(&self) -> Option<(Duration, Target)> {
        *self.longest.lock()
    }
}

/// Time since some moment. Linux has this clock since 2.6.32; without it, no time passes.
fn now() -> Duration {
    clock_gettime(CLOCK).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_clock_does_not_see_is_not_counted_and_the_longest_is_kept() {
        let times = AccessTimes::default();
        assert_eq!(times.longest(), None);
        for (milliseconds, target) in [
            (4, Target::Read(1)),
            (7, Target::Port(2)),
            (8, Target::Write(3)),
            (8, Target::Write(4)),
            (90_000, Target::EndOfInterrupt(5)),
            (1, Target::Read(6)),
        ] {
            times.count(target, Duration::from_millis(milliseconds));
        }
        let ms = Duration::from_millis;
        let counted: Vec<_> = times.entries().filter(|(_, count)| *count != 0).collect();
        let expected = [
            (Some(ms(2)), 1),
            (Some(ms(8)), 2),
            (Some(ms(16)), 2),
            (None, 1),
        ];
        assert_eq!(counted, expected);
        let longest = (ms(90_000), Target::EndOfInterrupt(5));
        assert_eq!(times.longest(), Some(longest));
    }

    #[test]
    fn an_access_shows_while_it_is_under_way() {
        let (times, current) = (AccessTimes::default(), Current::default());
        let accesses = Accesses {
            times: &times,
            current: Some(&current),
        };
        for target in [
            Target::Port(0xffff),
            Target::Read(0xf_ffff_ffff_ffff),
            Target::Write(0),
            Target::EndOfInterrupt(0xff),
        ] {
            assert_eq!(current.target(), None);
            accesses.take(target, || assert_eq!(current.target(), Some(target)));
        }
        assert_eq!(current.target(), None);
    }

    #[test]
    fn an_access_during_which_the_clock_moves_three_times_is_counted() {
        let times = AccessTimes::default();
        let result = times.take(Target::Read(0x1000), || {
            for _ in 0..3 {
                let begin = now();
                while now() == begin {
                    std::thread::yield_now();
                }
            }
            7
        });
        assert_eq!(result, 7);
        assert_eq!(times.entries().map(|(_, count)| count).sum::<u64>(), 1);
        assert!(matches!(times.longest(), Some((_, Target::Read(0x1000)))));
    }
}
