//! An independent check of the remapping unit, written from the VT-d specification and sharing no
//! arithmetic with it.
//!
//! * [`driver`] is a fake operating system: registers, tables, invalidations, the fault log;
//! * [`walker`] says what a DMA request may give, from the bytes of guest memory and what they were
//!   before;
//! * [`interrupt`] says the same of interrupt requests;
//! * [`machine`] makes both meet: it drives a unit, and compares every address, fault record and
//!   byte of memory.

pub mod background;
pub mod bystanders;
pub mod driver;
pub mod facts;
pub mod faultlog;
pub mod flushes;
pub mod image;
pub mod interrupt;
pub mod machine;
pub mod ram;
pub mod rng;
pub mod walker;

/// A `u64` that is an index or a length.
///
/// # Panics
/// When it exceeds the address space.
pub fn index(value: u64) -> usize {
    usize::try_from(value).expect("a small number")
}

/// How many steps a test is to run: `ORACLE_STEPS`, or `default`.
///
/// # Panics
/// When the variable is no number.
pub fn steps(default: u64) -> u64 {
    std::env::var("ORACLE_STEPS").map_or(default, |text| text.parse().expect("ORACLE_STEPS"))
}

/// Where a test's random sequence starts: `ORACLE_SEED`, or the time. It is printed.
///
/// # Panics
/// When the variable is no number.
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var("ORACLE_SEED").map_or_else(
        |_| {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            now.as_secs() << 20 ^ u64::from(now.subsec_nanos())
        },
        |text| text.parse().expect("ORACLE_SEED"),
    );
    println!("{test}: ORACLE_SEED={seed}");
    seed
}
