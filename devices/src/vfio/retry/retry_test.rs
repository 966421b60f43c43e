use super::*;

#[test]
fn a_busy_device_is_tried_again_and_a_broken_one_is_not() {
    let busy = || io::Error::from_raw_os_error(libc::EBUSY);
    let mut waited = Waited::new();
    let mut tries = 0;
    let result = retry(
        || waited.may_wait(),
        &[libc::EBUSY],
        || {
            tries += 1;
            if tries < 3 { Err(busy()) } else { Ok(tries) }
        },
    );
    assert_eq!(result.expect("in the end"), 3);
    let mut tries = 0;
    let result: io::Result<()> = retry(
        || waited.may_wait(),
        &[libc::EAGAIN],
        || {
            tries += 1;
            Err(busy())
        },
    );
    assert!(result.is_err());
    assert_eq!(tries, 1);
}

#[test]
fn who_has_waited_much_of_late_does_not_wait_again() {
    let mut waited = Waited {
        since: Instant::now(),
        time: BUSY_LIMIT,
    };
    let mut tries = 0;
    let mut busy = || -> io::Result<()> {
        tries += 1;
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    };
    assert!(retry(|| waited.may_wait(), &[libc::EBUSY], &mut busy).is_err());
    assert!(retry(|| waited.may_wait(), &[libc::EBUSY], &mut busy).is_err());
    assert_eq!(tries, 2);
    let long_ago = Instant::now().checked_sub(Waited::FORGOTTEN + BUSY_PAUSE);
    let mut waited = Waited {
        since: long_ago.expect("the host is up for longer"),
        time: BUSY_LIMIT,
    };
    assert!(waited.may_wait());
}
