//! Slowing vCPUs down: whenever one is kicked out of the guest, it stays out for a while.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a vCPU that stays out looks whether it is wanted elsewhere.
const LOOK: Duration = Duration::from_millis(2);

/// What all vCPUs of a machine look at.
#[derive(Default)]
pub(crate) struct Brake {
    /// How long each stays out when it is kicked, in microseconds.
    hold: AtomicU32,
}

impl Brake {
    /// Has vCPUs stay out of the guest for `hold` from their next kick on. Zero has those go on that are
    /// out.
    pub(crate) fn set(&self, hold: Duration) {
        let hold = u32::try_from(hold.as_micros()).unwrap_or(u32::MAX);
        self.hold.store(hold, Ordering::Relaxed);
    }

    /// Stays for as long as is wanted, but no longer than until `is_wanted_elsewhere`.
    pub(super) fn stay(&self, is_wanted_elsewhere: impl Fn() -> bool) {
        let began = Instant::now();
        loop {
            let hold = Duration::from_micros(self.hold.load(Ordering::Relaxed).into());
            let left = hold.saturating_sub(began.elapsed());
            if left.is_zero() || is_wanted_elsewhere() {
                return;
            }
            thread::sleep(left.min(LOOK));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn who_is_not_slowed_down_does_not_ask_whether_it_is_wanted() {
        Brake::default().stay(|| unreachable!("there is nothing to wait for"));
    }

    #[test]
    fn a_stay_ends_when_its_time_is_over() {
        let brake = Brake::default();
        let began = Instant::now();
        brake.set(Duration::from_millis(20));
        brake.stay(|| false);
        assert!(began.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_stay_ends_when_the_vcpu_is_wanted_and_when_nobody_is_slowed_down_any_more() {
        let (brake, wanted) = (Brake::default(), AtomicBool::new(false));
        let hour = Duration::from_secs(3600);
        thread::scope(|scope| {
            brake.set(hour);
            let stay = scope.spawn(|| brake.stay(|| wanted.load(Ordering::Relaxed)));
            wanted.store(true, Ordering::Relaxed);
            stay.join().expect("it ends");
            let stay = scope.spawn(|| brake.stay(|| false));
            brake.set(Duration::ZERO);
            stay.join().expect("it ends");
        });
    }
}
