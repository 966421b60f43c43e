//! The newest QEMU of Debian's backports, unpacked into the cache with its libraries and firmware:
//! it runs by its own dynamic loader, on this machine and in level 1.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::State;
use crate::bench::{copy, copy_firmware};
use crate::{bundle, kernel, paths};

const PACKAGE: &str = "qemu-system-x86";
/// All machines, and microvm alone.
const PROGRAMS: [&str; 2] = ["qemu-system-x86_64", "qemu-system-x86_64-microvm"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The unpacked program.
pub(crate) struct Qemu {
    /// Holds the programs, `lib` with `ld.so`, and `firmware`.
    pub(crate) directory: PathBuf,
    /// As the program says it.
    pub(crate) version: String,
}

/// QEMU, from the cache or fetched now.
pub(crate) fn provide() -> Result<Qemu> {
    let directory = paths::cache()?.join("qemu");
    if !directory.exists() {
        println!(
            "fetching the newest QEMU of {}; this happens once",
            kernel::SUITE
        );
        fetch(&directory)?;
    }
    let version = crate::process::output(bundle::command(&directory).arg("--version"))?;
    let version = version.lines().next().unwrap_or_default();
    let version = version.split_whitespace().nth(3).unwrap_or("?").to_owned();
    Ok(Qemu { directory, version })
}

fn fetch(directory: &Path) -> Result<()> {
    // What backports need is in the release that they are for.
    let release = kernel::SUITE.trim_end_matches("-backports");
    let state = State::of_suites(&[kernel::SUITE, release])?;
    let work = directory.with_extension(format!("{}.partial", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    let (packages, result) = (work.join("packages"), work.join("result"));
    fs::create_dir_all(&work)?;
    state.unpack_all(PACKAGE, &packages)?;
    collect(&packages, &result)?;
    fs::rename(&result, directory).context("cannot put QEMU into the cache")?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

/// Of what the packages hold, takes the programs and what they load.
fn collect(packages: &Path, result: &Path) -> Result<()> {
    fs::create_dir_all(result.join("lib"))?;
    let libraries = packages.join(LIBRARIES);
    let loader = libraries.join("ld-linux-x86-64.so.2");
    copy(&loader, &result.join("lib/ld.so"))?;
    for name in PROGRAMS {
        let program = packages.join("usr/bin").join(name);
        copy(&program, &result.join(name))?;
        for library in bundle::libraries_of(&loader, &libraries, &program)? {
            let name = bundle::name(&library)?;
            if !name.starts_with("ld-linux") {
                copy(&libraries.join(&name), &result.join("lib").join(name))?;
            }
        }
    }
    copy_firmware(packages, &result.join("firmware"))
}
