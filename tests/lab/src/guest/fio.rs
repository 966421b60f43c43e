//! The check `fio`: fio(1) writes checksummed blocks in random order, and verifies them.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::disk::{self, COPY};
use super::service::output;

/// On the root file system.
const FILE: &str = "/var/tmp/lab.fio";
/// Jobs on each target, each with a part of its own.
const JOBS: &str = "2";
/// Bytes of such a part.
const PART: &str = "4M";

/// Blocks of many sizes, 16 at a time, past the page cache; some of the writes are flushed.
const MANNER: &[&str] = &[
    "--thread",
    "--ioengine=libaio",
    "--direct=1",
    "--iodepth=16",
    "--rw=randrw",
    "--bsrange=4k-128k",
    "--fsync=32",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--group_reporting",
];

/// Two jobs on the disk [`COPY`], whose content is lost, and two on a file of the root file system,
/// all at the same time: each block that was written is read back and has the checksum it was given.
pub(super) fn check(_guest: &Guest, _argument: &str) -> Result<String> {
    let disk = disk::named(COPY)?;
    let disk = disk.to_str().context("a name that is no text")?;
    let mut arguments: Vec<String> = MANNER.iter().map(|word| (*word).to_owned()).collect();
    for (name, target) in [("disk", disk), ("file", FILE)] {
        arguments.extend([
            format!("--name={name}"),
            format!("--filename={target}"),
            format!("--size={PART}"),
            format!("--offset_increment={PART}"),
            format!("--numjobs={JOBS}"),
        ]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = output("fio", &arguments)?;
    fs::remove_file(FILE).context(FILE)?;
    let done: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("READ: ") || line.starts_with("WRITE: "))
        .collect();
    ensure!(
        done.len() >= 2,
        "fio tells of no reads and writes: {}",
        said.trim()
    );
    Ok(done.join("; "))
}
