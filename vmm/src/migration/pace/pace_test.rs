//! When a guest is handed over, by rounds that are told.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// Pages of a MiB.
const MIB: u64 = 256;

fn pace(limit: u64, fixed: u64, slow_down: bool) -> Pace {
    let [limit, fixed] = [limit, fixed].map(Duration::from_millis);
    Pace::new(limit, fixed, slow_down)
}

/// A round that has sent so many pages in so long, and leaves so many.
fn round(data: u64, took: Duration, left: u64) -> Round {
    Round {
        data,
        zeros: 0,
        took,
        left,
    }
}

#[test]
fn it_ends_when_what_is_left_fits_into_the_pause() {
    let mut pace = pace(100, 20, true);
    // 100 MiB a second: 8 MiB take the 80 ms that are left of the pause.
    let first = round(100 * MIB, SECOND, 40 * MIB);
    assert_eq!(pace.next(&first, true), Next::Round);
    assert_eq!((pace.rate(), pace.room()), (100 << 20, 8 << 20));
    assert_eq!(pace.pause(5 << 20), Duration::from_millis(70));
    let second = round(40 * MIB, Duration::from_millis(400), 9 * MIB);
    assert_eq!(pace.next(&second, true), Next::Round);
    let third = round(9 * MIB, Duration::from_millis(90), 8 * MIB);
    assert_eq!(pace.next(&third, false), Next::Wait);
    assert_eq!(pace.next(&third, true), Next::HandOver);
}

#[test]
fn what_no_round_can_shorten_does_not_keep_it_from_ending() {
    let mut pace = pace(100, 500, true);
    let three = round(100 * MIB, SECOND, 3 * MIB);
    assert_eq!(pace.next(&three, true), Next::Round);
    let two = round(100 * MIB, SECOND, 2 * MIB);
    assert_eq!(pace.next(&two, true), Next::HandOver);
}

#[test]
fn a_small_round_makes_a_connection_faster_but_not_slower() {
    let mut pace = pace(100, 0, true);
    let first = round(100 * MIB, SECOND, 40 * MIB);
    assert_eq!(pace.next(&first, true), Next::Round);
    let slow = round(1, Duration::from_millis(50), 10 * MIB);
    assert_eq!(pace.next(&slow, true), Next::HandOver);
    let fast = round(100, Duration::from_millis(1), 0);
    assert_eq!(pace.next(&fast, true), Next::HandOver);
    assert_eq!(pace.rate(), 409_600_000);
}

/// A round that has sent so many pages with data, and so many of zeros.
fn mixed(data: u64, zeros: u64, took: Duration, left: u64) -> Round {
    Round {
        data,
        zeros,
        took,
        left,
    }
}

#[test]
fn what_a_guest_has_ever_touched_says_little_of_what_it_writes() {
    for (data, zeros, took, left) in [
        // Looking takes as long as sending does, and longer.
        (1024 * MIB, 63 << 18, 22 * SECOND, 400 * MIB),
        (1000, 8000 * MIB, SECOND, 50 * MIB),
    ] {
        let mut pace = pace(100, 0, true);
        let first = mixed(data, zeros, took, left);
        assert_eq!(pace.next(&first, true), Next::Round);
        // The next one tells.
        let second = mixed(40 * MIB, 0, Duration::from_millis(400), 9 * MIB);
        assert_eq!(pace.next(&second, true), Next::HandOver);
        assert_eq!(pace.rate(), 100 << 20);
    }
}

#[test]
fn a_guest_that_writes_zeros_is_handed_over() {
    let mut pace = pace(100, 0, false);
    // 800 MiB/s are looked at, an eighth of which would be sent.
    let zeros = |left| mixed(0, 80 * MIB, Duration::from_millis(100), left);
    assert_eq!(pace.next(&zeros(60 * MIB), true), Next::Round);
    assert_eq!(pace.rate(), 100 << 20);
    assert_eq!(pace.next(&zeros(41 * MIB), true), Next::Round);
    assert_eq!(pace.next(&zeros(40 * MIB), true), Next::HandOver);
}

#[test]
fn zeros_do_not_make_a_slow_connection_a_fast_one() {
    let mut pace = pace(100, 0, true);
    // 63 GiB of zeros are looked at in 12 s; 100 MiB take 80 s.
    let first = mixed(100 * MIB, 63 << 18, 92 * SECOND, 9 * MIB);
    assert_ne!(pace.next(&first, true), Next::HandOver);
    assert_eq!(pace.rate(), (100 << 20) / 92);
    assert!(pace.room() < 1 << 20, "{}", pace.room());
    let few = mixed(0, 255, Duration::from_millis(1), 9 * MIB);
    assert_ne!(pace.next(&few, true), Next::HandOver);
    assert_eq!(pace.rate(), (100 << 20) / 92);
}

#[test]
fn a_guest_that_writes_faster_than_is_sent_is_held_more_and_more() {
    let mut pace = pace(100, 0, true);
    let futile = round(100 * MIB, SECOND, 90 * MIB);
    let mut holds = Vec::new();
    for _ in 0..9 {
        match pace.next(&futile, true) {
            Next::Hold(percent) => holds.push(percent),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(holds, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
    for _ in 1..PATIENCE {
        assert_eq!(pace.next(&futile, true), Next::Round);
    }
    assert_eq!(pace.next(&futile, true), Next::Never);
}

#[test]
fn without_slowing_down_it_is_given_up_after_rounds_that_bring_nothing() {
    let mut pace = pace(100, 0, false);
    let (futile, good) = (
        round(100 * MIB, SECOND, 90 * MIB),
        round(100 * MIB, SECOND, 50 * MIB),
    );
    for _ in 1..PATIENCE {
        assert_eq!(pace.next(&futile, true), Next::Round);
    }
    // One that helps has it go on.
    assert_eq!(pace.next(&good, true), Next::Round);
    for _ in 1..PATIENCE {
        assert_eq!(pace.next(&futile, true), Next::Round);
    }
    assert_eq!(pace.next(&futile, true), Next::Never);
}

#[test]
fn a_guest_that_is_quiet_now_and_then_is_not_followed_for_ever() {
    let mut pace = pace(100, 0, true);
    let (futile, good) = (
        round(100 * MIB, SECOND, 90 * MIB),
        round(100 * MIB, SECOND, 50 * MIB),
    );
    let turns = [&futile, &good].into_iter().cycle().take(1000);
    let ends = turns.map(|round| pace.next(round, true));
    let never = ends.take_while(|next| *next != Next::Never).count();
    assert_eq!(never, 299);
}

#[test]
fn nothing_at_all_to_send_is_no_reason_to_wait() {
    let mut pace = pace(1, 0, true);
    assert_eq!(
        pace.next(&round(0, Duration::ZERO, 0), true),
        Next::HandOver
    );
}
