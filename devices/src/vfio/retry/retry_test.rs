use super::*;

#[test]
fn a_busy_device_is_tried_again_and_a_broken_one_is_not() {
    let busy = || io::Error::from_raw_os_error(libc::EBUSY);
    let mut tries = 0;
    let result = retry(PAUSES, &[libc::EBUSY], || {
        tries += 1;
        if tries < 3 { Err(busy()) } else { Ok(tries) }
    });
    assert_eq!(result.expect("in the end"), 3);
    let mut tries = 0;
    let result: io::Result<()> = retry(PAUSES, &[libc::EAGAIN], || {
        tries += 1;
        Err(busy())
    });
    assert!(result.is_err());
    assert_eq!(tries, 1);
}

#[test]
fn who_may_not_wait_tries_once_and_who_may_wait_a_bounded_number_of_times() {
    for pauses in [0, 3] {
        let mut tries = 0;
        let result: io::Result<()> = retry(pauses, &[libc::EBUSY], || {
            tries += 1;
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        });
        assert!(result.is_err());
        assert_eq!(tries, pauses + 1);
    }
}
