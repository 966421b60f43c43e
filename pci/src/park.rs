//! Parking of functions: all of them begin nothing any more, and then all are waited for.

use std::thread;
use std::time::{Duration, Instant};

use crate::bdf::Bdf;
use crate::decode::Member;

/// How long to wait before functions are looked at again.
const LOOK: Duration = Duration::from_millis(1);

/// Whether all of `members` can be parked.
pub(crate) fn parkable(members: &[Member]) -> Result<(), (Bdf, String)> {
    let mut all = members.iter();
    all.try_for_each(
        |Member {
             address, function, ..
         }| { function.parkable().map_err(|why| (*address, why)) },
    )
}

/// Parks `members`, until `until` at most. Whoever calls resumes all of them if that fails.
pub(crate) fn park(members: &[Member], until: Instant) -> Result<(), (Bdf, String)> {
    for member in members {
        member.function.park();
    }
    for member in members {
        while let Err(what) = member.function.parked() {
            if Instant::now() >= until {
                return Err((member.address, what));
            }
            thread::sleep(LOOK);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::config::ConfigChange;
    use crate::function::PciFunction;
    use crate::root::{Apertures, RootComplex};

    /// A function that is late, or cannot be parked, and counts.
    #[derive(Default)]
    struct Function {
        refuses: bool,
        /// How often it is still busy when it is asked.
        busy: AtomicU32,
        parked: AtomicU32,
        resumed: AtomicU32,
    }

    impl PciFunction for Function {
        fn read_config(&self, _offset: u16, data: &mut [u8]) {
            data.fill(0);
        }

        fn write_config(&self, _offset: u16, _data: &[u8]) -> ConfigChange {
            ConfigChange::default()
        }

        fn parkable(&self) -> Result<(), String> {
            match self.refuses {
                true => Err("never".to_owned()),
                false => Ok(()),
            }
        }

        fn park(&self) {
            self.parked.fetch_add(1, Ordering::Relaxed);
        }

        fn parked(&self) -> Result<(), String> {
            match self.busy.load(Ordering::Relaxed) {
                0 => Ok(()),
                left => {
                    self.busy.store(left - 1, Ordering::Relaxed);
                    Err("busy".to_owned())
                }
            }
        }

        fn resume(&self) {
            self.resumed.fetch_add(1, Ordering::Relaxed);
        }

        fn reset(&self) {}
    }

    fn bdf(device: u8) -> Bdf {
        Bdf::new(0, device, 0).expect("in range")
    }

    fn root(functions: &[&Arc<Function>]) -> RootComplex {
        let root = RootComplex::new(Apertures {
            ecam_base: 0xe000_0000,
            buses: 1,
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0..0,
        });
        for (function, device) in functions.iter().zip(1..) {
            let function = Arc::clone(function) as Arc<dyn PciFunction>;
            root.add(bdf(device), function).expect("free");
        }
        root
    }

    fn counts(function: &Function) -> (u32, u32) {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (count(&function.parked), count(&function.resumed))
    }

    #[test]
    fn all_are_told_before_one_is_waited_for() {
        let slow = Arc::new(Function {
            busy: AtomicU32::new(3),
            ..Function::default()
        });
        let other = Arc::<Function>::default();
        let root = root(&[&slow, &other]);
        let late = root.park(Instant::now()).expect_err("busy");
        assert_eq!(late, (bdf(1), "busy".to_owned()));
        assert_eq!((counts(&slow), counts(&other)), ((1, 1), (1, 1)));
        let until = Instant::now() + Duration::from_secs(60);
        assert_eq!(root.park(until), Ok(()));
        root.resume();
        assert_eq!((counts(&slow), counts(&other)), ((2, 2), (2, 2)));
    }

    #[test]
    fn one_that_cannot_be_parked_is_known_before_any_is_disturbed() {
        let other = Arc::<Function>::default();
        let never = Arc::new(Function {
            refuses: true,
            ..Function::default()
        });
        assert_eq!(root(&[&other]).parkable(), Ok(()));
        let refused = root(&[&other, &never]).parkable().expect_err("never");
        assert_eq!(refused, (bdf(2), "never".to_owned()));
        assert_eq!((counts(&other), counts(&never)), ((0, 0), (0, 0)));
    }
}
