//! Random guests: every address, permission, fault record and byte of memory agrees with the
//! oracle.

use std::time::{Duration, Instant};

use oracle::machine::Tally;
use oracle::machine::guest::Guest;
use oracle::rng::Rng;

#[test]
fn a_random_guest_gets_what_the_specification_permits() {
    let seed = oracle::seed("translation");
    let steps = oracle::steps(60_000);
    // Without ORACLE_STEPS, a loaded machine runs fewer.
    let limit = std::env::var("ORACLE_STEPS")
        .is_err()
        .then(|| Instant::now() + Duration::from_secs(8));
    let mut tally = Tally::new();
    let mut done = 0;
    let mut number = 0;
    while done < steps && limit.is_none_or(|limit| Instant::now() < limit) {
        let case = seed.wrapping_add(number);
        let mut guest = Guest::new(Rng::new(case))
            .unwrap_or_else(|message| panic!("ORACLE_SEED={case}: {message}"));
        for step in 0..400 {
            if let Err(message) = guest.step() {
                panic!(
                    "ORACLE_SEED={case}, step {step}: {message}\n{:x?}",
                    guest.machine.facts
                );
            }
            done += 1;
        }
        for (what, count) in &guest.machine.tally {
            *tally.entry(what.clone()).or_default() += count;
        }
        number += 1;
        if number % 500 == 0 {
            println!("translation: {done} steps so far");
        }
    }
    println!("translation: {done} steps of {number} guests");
    for (what, count) in tally {
        println!("{count:8} {what}");
    }
}
