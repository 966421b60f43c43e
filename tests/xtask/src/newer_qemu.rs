//! The newest QEMU of Debian's backports, with its firmware.

use std::path::PathBuf;

use anyhow::Result;

use crate::bench::copy_firmware;
use crate::newer::Wanted;
use crate::{bundle, kernel};

/// The unpacked program.
pub(crate) struct Qemu {
    /// Holds the programs, `lib` with `ld.so`, and `firmware`.
    pub(crate) directory: PathBuf,
    /// As the program says it.
    pub(crate) version: String,
}

/// QEMU, from the cache or fetched now.
pub(crate) fn provide() -> Result<Qemu> {
    let wanted = Wanted {
        package: "qemu-system-x86",
        // All machines, and microvm alone.
        programs: &["qemu-system-x86_64", "qemu-system-x86_64-microvm"],
        suites: &[kernel::SUITE, kernel::RELEASE],
    };
    let directory = wanted.provide("qemu", |packages, result| {
        copy_firmware(packages, &result.join("firmware"))
    })?;
    let version = crate::process::output(bundle::command(&directory).arg("--version"))?;
    let version = version.lines().next().unwrap_or_default();
    let version = version.split_whitespace().nth(3).unwrap_or("?").to_owned();
    Ok(Qemu { directory, version })
}
