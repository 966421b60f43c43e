//! A nido whose place another one takes, while its guest runs; and those that cannot take it, after which the
//! guest is where it was.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::control::{self, ask};
use super::impostor;
use super::migrations::disks_are_locked;
use super::moved::Way;

/// How long the process that was started first may take to have nothing of the guest any more.
const SOON: Duration = Duration::from_secs(5);

/// What nido says of those that cannot take its place.
const ATTEMPTS: &[(&str, &str)] = &[
    // The agent itself, which is another program.
    ("not-nido", "it is no nido"),
    ("dies", "it ended with exit status: 7"),
    ("hangs", "did nothing for 10000 ms"),
    ("refuses", "STATE with a wrong checksum"),
    ("crashes", "signal: 6"),
    ("stalls", "did nothing for 3000 ms"),
];

/// Has another nido take the place of `nido`, or fail to do so in the way of this name. Returns what was
/// said of it.
pub(super) fn go(way: &Way<'_>, nido: &mut Child, how: &str) -> Result<String> {
    let said = match how {
        "" => replace(way, nido)?,
        name => attempt(way, name)?,
    };
    let ended = nido.try_wait()?;
    ensure!(ended.is_none(), "nido ended: {ended:?}");
    // The one that has the guest says so before that runs, so that nobody else has it go on.
    let until = Instant::now() + SOON;
    loop {
        let status = ask(way.socket, "status", "vcpus: ")?;
        if status.contains("state: running") {
            break;
        }
        ensure!(Instant::now() < until, "{}", status.trim());
    }
    disks_are_locked(way.scratch)?;
    Ok(said.trim().to_owned())
}

fn request(way: &Way<'_>, program: &Path) -> Result<String> {
    control::request(way.socket, &format!("upgrade exec={}", program.display()))
}

/// By the same program.
fn replace(way: &Way<'_>, nido: &Child) -> Result<String> {
    let said = request(way, way.program)?;
    ensure!(
        said.starts_with("upgraded to nido "),
        "upgrade: {}",
        said.trim()
    );
    // The process that was started first has the same number, and nothing but that.
    let until = Instant::now() + SOON;
    loop {
        let process = PathBuf::from(format!("/proc/{}", nido.id()));
        let words = fs::read(process.join("cmdline"))?;
        let words = String::from_utf8_lossy(&words).into_owned();
        let files = fs::read_dir(process.join("fd"))?.count();
        if words.contains("--internal-keep") && files <= 4 {
            return Ok(said);
        }
        ensure!(
            Instant::now() < until,
            "the process that was started first has {files} files: {:?}",
            words.chars().take(60).collect::<String>()
        );
    }
}

fn attempt(way: &Way<'_>, name: &str) -> Result<String> {
    let Some((_, why)) = ATTEMPTS.iter().find(|(known, _)| *known == name) else {
        bail!("no attempt is called {name}");
    };
    let program = way.scratch.join(format!("{}{name}", impostor::PREFIX));
    if !program.exists() {
        symlink(std::env::current_exe()?, &program)?;
        let real = way.scratch.join(impostor::REAL);
        if !real.exists() {
            symlink(way.program, &real).context("nido")?;
        }
    }
    let began = Instant::now();
    let said = request(way, &program)?;
    ensure!(said.starts_with("error: "), "upgrade: {}", said.trim());
    ensure!(said.contains(why), "upgrade: {}", said.trim());
    ensure!(
        said.contains("the guest goes on with this nido"),
        "upgrade: {}",
        said.trim()
    );
    Ok(format!(
        "{} (after {} ms)",
        said.trim(),
        began.elapsed().as_millis()
    ))
}
