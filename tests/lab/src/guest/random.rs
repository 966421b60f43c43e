//! The entropy device.

use std::fs::{self, File};
use std::io::Read;

use anyhow::{Context, Result, ensure};

use super::Guest;

/// /dev/hwrng is virtio-rng and gives bytes that are not all alike.
pub(super) fn check(_guest: &Guest, _argument: &str) -> Result<String> {
    let current =
        fs::read_to_string("/sys/class/misc/hw_random/rng_current").context("rng_current")?;
    ensure!(
        current.starts_with("virtio_rng"),
        "the current source is {}",
        current.trim()
    );
    let mut source = File::open("/dev/hwrng").context("/dev/hwrng")?;
    let mut bytes = vec![0; 4096];
    source.read_exact(&mut bytes).context("/dev/hwrng")?;
    let mut seen = [false; 256];
    for byte in &bytes {
        if let Some(seen) = seen.get_mut(usize::from(*byte)) {
            *seen = true;
        }
    }
    // 4096 uniform bytes miss a given value with probability e^-16.
    let distinct = seen.iter().filter(|seen| **seen).count();
    ensure!(distinct > 250, "4096 bytes hold only {distinct} values");
    let (first, second) = bytes.split_at(2048);
    ensure!(first != second, "the second half repeats the first");
    Ok(format!(
        "4096 bytes from {}, {distinct} values",
        current.trim()
    ))
}
