//! Fuzz targets: the accesses of a guest and its devices to a remapping unit, and states of machines,
//! decoded from bytes.
//!
//! Each target is a function of bytes that panics when an invariant breaks. libFuzzer looks for
//! such bytes (`cargo xtask fuzz`); a test tries the inputs in `seeds/` and some thousand random
//! ones (`cargo test -p fuzz`).
//!
//! # Invariants of the unit's targets
//! * Nothing panics, and arithmetic does not overflow.
//! * Nothing at or beyond the host address width is looked up, be it for tables, for queues or for
//!   a device.
//! * The work of an operation is bounded by what it was asked for: lookups of memory are counted.
//! * Counters go up by what was done; events and calls of observers are as few.
//! * A page request that was taken is in the memory of the queue, where there is any; PQT moves by
//!   as many as were taken.
//! * A device-TLB hears of every invalidation and response that the queue executes, or the queue
//!   stops with a time-out.
//! * Who looks changes nothing: neither memory nor registers nor counters.
//! * A unit that continues the work of another reads and translates as that one.

mod device;
mod guest;
mod machine;
mod tables;
mod word;

pub mod irte;
pub mod queue;
pub mod state;
pub mod unit;

/// Name, body, and the inputs to begin with, a line of hexadecimal digits each.
pub type Target = (&'static str, fn(&[u8]), &'static str);

/// All targets.
pub const TARGETS: &[Target] = &[
    ("unit", unit::run, include_str!("../seeds/unit.hex")),
    ("queue", queue::run, include_str!("../seeds/queue.hex")),
    ("irte", irte::run, include_str!("../seeds/irte.hex")),
    ("state", state::run, include_str!("../seeds/state.hex")),
];

/// The bytes of each line; `None` stands for a line that is not hexadecimal.
pub fn seeds(text: &str) -> impl Iterator<Item = Option<Vec<u8>>> + '_ {
    text.lines().map(|line| {
        let digits: Option<Vec<u8>> = line
            .chars()
            .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
            .collect();
        let digits = digits?;
        digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(high << 4 | low),
                _ => None,
            })
            .collect()
    })
}
