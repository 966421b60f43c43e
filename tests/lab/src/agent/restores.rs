//! Snapshots that nido must refuse to go on with: each with a message that tells what is wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::moved::Way;
use super::refusal;
use crate::hash::sha256;

/// What is wrong, what is done to the directory for that, what nido is told besides, with `{}` for the
/// directory, and what it says.
type Wrong = (
    &'static str,
    fn(&Path) -> Result<()>,
    &'static [&'static str],
    &'static str,
);

const WRONG: &[Wrong] = &[
    ("a byte", flip, &[], "its checksum is"),
    ("a newer part", age, &[], "ioapic was saved in version 9"),
    ("half a state", truncate, &[], "bytes are announced, and"),
    ("too little memory", shorten, &[], "and the state announces"),
    ("others' permissions", open, &[], "can be written by others"),
    ("no state", empty, &[], "cannot be opened"),
    (
        "another size",
        leave,
        &["--memory=1G"],
        "--memory is part of the machine",
    ),
    (
        "no such disk",
        leave,
        &["--disk=id=other,path=/a"],
        "choose one of id=",
    ),
    (
        "a disk that is missing",
        leave,
        &["--disk=id=counter,path=/none"],
        "/none",
    ),
    (
        "a disk of another size",
        other,
        &["--disk=id=counter,path={}/other"],
        "in the saved machine and",
    ),
];

/// Tries each of them, in a copy of the snapshot of `way`.
pub(super) fn refused(way: &Way<'_>) -> Result<()> {
    let copy = way.scratch.join("wrong");
    for (what, change, arguments, says) in WRONG {
        fs::create_dir_all(&copy)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(way.snapshot())? {
            let entry = entry?;
            let place = copy.join(entry.file_name());
            // Memory is large, and stays as it is.
            match entry.file_name() == "state" {
                true => fs::copy(entry.path(), place).map(drop)?,
                false => fs::hard_link(entry.path(), place)?,
            }
        }
        change(&copy).context(*what)?;
        let said = run(way, &copy, arguments)?;
        fs::remove_dir_all(&copy)?;
        ensure!(said.contains(says), "{what}: `{}`", said.trim());
    }
    Ok(())
}

fn run(way: &Way<'_>, directory: &Path, arguments: &[&str]) -> Result<String> {
    let place = directory.display().to_string();
    let mut command = Command::new(way.program);
    command.arg(format!("--restore={place}")).args(
        arguments
            .iter()
            .map(|argument| argument.replace("{}", &place)),
    );
    let (status, said) = refusal::run(command, &way.scratch.join("refused.log"))?;
    ensure!(matches!(status.code(), Some(1 | 2)), "{status}: {said}");
    Ok(said)
}

fn leave(_: &Path) -> Result<()> {
    Ok(())
}

fn other(directory: &Path) -> Result<()> {
    fs::File::create(directory.join("other"))?.set_len(1 << 16)?;
    Ok(())
}

fn state(directory: &Path) -> Result<(std::path::PathBuf, Vec<u8>)> {
    let path = directory.join("state");
    let bytes = fs::read(&path)?;
    Ok((path, bytes))
}

fn flip(directory: &Path) -> Result<()> {
    let (path, mut bytes) = state(directory)?;
    *bytes.last_mut().context("an empty state")? ^= 1;
    Ok(fs::write(path, bytes)?)
}

fn truncate(directory: &Path) -> Result<()> {
    let (path, mut bytes) = state(directory)?;
    bytes.truncate(bytes.len() / 2);
    Ok(fs::write(path, bytes)?)
}

/// Writes another version of a part, and the checksum that goes with it.
fn age(directory: &Path) -> Result<()> {
    let (path, bytes) = state(directory)?;
    let text = String::from_utf8(bytes)?;
    let (_, body) = text.split_once('\n').context("one line only")?;
    let old = "\"kind\":\"ioapic\",\"version\":1,";
    ensure!(body.contains(old), "there is no {old}");
    let body = body.replace(old, "\"kind\":\"ioapic\",\"version\":9,");
    let (length, hash) = (body.len(), sha256(body.as_bytes()));
    let first = format!("nido-state 1 bytes={length} sha256={hash}\n");
    Ok(fs::write(path, first + &body)?)
}

fn shorten(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name != "state") {
            fs::remove_file(&path)?;
            fs::File::create(path)?.set_len(1 << 20)?;
        }
    }
    Ok(())
}

fn open(directory: &Path) -> Result<()> {
    Ok(fs::set_permissions(
        directory,
        Permissions::from_mode(0o770),
    )?)
}

fn empty(directory: &Path) -> Result<()> {
    Ok(fs::remove_file(directory.join("state"))?)
}
