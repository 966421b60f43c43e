//! Who may go on, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::{Budget, Clock, InlineBudget, Later};

const LONG: Duration = Duration::MAX;

#[test]
fn a_register_write_ends_after_its_settles_or_its_time() {
    let claims = Arc::new(AtomicUsize::new(0));
    let inline =
        |settles, time| Budget::inline(&claims, InlineBudget { settles, time }, Clock::default());
    let mut budget = inline(2, LONG);
    assert_eq!(budget.begin(), Ok(()));
    for outcome in [Ok(()), Err(Later), Err(Later)] {
        budget.settled();
        assert_eq!(budget.more(), outcome);
        assert_eq!(budget.patience(), Ok(()), "what has begun may go on");
    }
    let mut budget = inline(2, Duration::ZERO);
    assert_eq!(budget.begin(), Ok(()), "nothing has taken time yet");
    assert_eq!((budget.more(), budget.patience()), (Err(Later), Err(Later)));
    let nothing = Budget::inline(&claims, InlineBudget::NOTHING, Clock::default());
    assert_eq!(nothing.begin(), Err(Later));
}

#[test]
fn all_but_who_is_alone_let_others_in_that_have_a_claim() {
    let claims = Arc::new(AtomicUsize::new(1));
    let inline = InlineBudget {
        settles: 1,
        time: LONG,
    };
    for mut budget in [
        Budget::inline(&claims, inline, Clock::default()),
        Budget::patient(&claims, None, Clock::default()),
    ] {
        assert_eq!(budget.begin(), Err(Later));
        assert_eq!(budget.patience(), Err(Later));
    }
    let mut alone = Budget::to_reset();
    assert_eq!((alone.begin(), alone.more()), (Ok(()), Ok(())));
    claims.store(0, Ordering::SeqCst);
    assert_eq!(
        Budget::patient(&claims, None, Clock::default()).more(),
        Ok(())
    );
}

#[test]
fn a_background_ends_when_it_is_told_to() {
    let claims = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut budget = Budget::patient(&claims, Some(&stop), Clock::default());
    assert_eq!((budget.begin(), budget.more()), (Ok(()), Ok(())));
    stop.store(true, Ordering::SeqCst);
    assert_eq!((budget.begin(), budget.more()), (Err(Later), Err(Later)));
}

#[test]
fn what_takes_no_time_looks_at_no_clock() {
    let claims = Arc::new(AtomicUsize::new(0));
    let budget = Budget::inline(&claims, InlineBudget::default(), Clock::default());
    assert_eq!(budget.begin(), Ok(()));
    assert!(budget.clock.0.is_none());
    assert_eq!(budget.clock.elapsed(), Duration::ZERO);
}
