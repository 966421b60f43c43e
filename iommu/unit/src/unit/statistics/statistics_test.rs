//! The limit on log messages.

use super::*;

#[test]
fn one_message_per_second_passes_and_tells_how_many_did_not() {
    let mut limiter = Limiter::default();
    let start = Instant::now();
    let after = |milliseconds| start + Duration::from_millis(milliseconds);
    assert_eq!(limiter.pass(start), Some(0));
    assert_eq!(limiter.pass(after(1)), None);
    assert_eq!(limiter.pass(after(999)), None);
    assert_eq!(limiter.pass(after(1000)), Some(2));
    assert_eq!(limiter.pass(after(1500)), None);
    assert_eq!(limiter.pass(after(5000)), Some(1));
}
