//! `cargo xtask bench boot`.

use anyhow::{Result, bail};

use crate::Where;

/// The benchmark.
pub(crate) fn boot(_wanted: Where, _rounds: u32) -> Result<bool> {
    bail!("not yet");
}
