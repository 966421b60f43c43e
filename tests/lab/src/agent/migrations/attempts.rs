//! Migrations that come to nothing: each time nido says why, and the guest goes on where it was.

mod stopped;

use std::net::TcpListener;
use std::process::Child;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{Journey, SOON};
use crate::agent::control::{self, ask};
use crate::agent::session::last_line;

/// Bytes a second, so that a round takes time.
const RATE: u64 = 8 << 20;
/// Bytes after which something happens.
const AMID: u64 = 4 << 20;
/// More bytes, to see that it goes on.
const FURTHER: u64 = 1 << 20;

/// Makes the attempt of this name. Returns what nido said of it.
pub(super) fn stay(journey: &Journey<'_>, nido: &mut Child, name: &str) -> Result<String> {
    let said = match name {
        "nobody" => nobody(journey),
        "diskless" => diskless(journey),
        "killed" => killed(journey),
        "cancelled" => cancelled(journey),
        "stopped" => stopped::attempt(journey),
        other => bail!("no attempt is called {other}"),
    }?;
    journey.stays(nido)?;
    Ok(said.trim().to_owned())
}

/// `migrate` ends with an error that says so.
fn refused(journey: &Journey<'_>, place: &str, says: &str) -> Result<String> {
    let said = control::request(journey.way.socket, &format!("migrate to={place}"))?;
    is_error(&said, says)?;
    Ok(said)
}

fn is_error(said: &str, says: &str) -> Result<()> {
    ensure!(said.starts_with("error: "), "migrate: {}", said.trim());
    ensure!(said.contains(says), "migrate: {}", said.trim());
    Ok(())
}

/// Nobody listens, by either kind of place; some places cannot be.
fn nobody(journey: &Journey<'_>) -> Result<String> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let tcp = format!("tcp:127.0.0.1:{port}");
    refused(journey, &tcp, &tcp)?;
    refused(journey, "unix:here.sock", "here.sock")?;
    refused(journey, "nowhere", "nowhere")?;
    ask(journey.way.socket, "migrate-cancel", "error: ")?;
    let place = journey.unix("nobody");
    refused(journey, &place, &place)
}

/// The target lacks a disk.
fn diskless(journey: &Journey<'_>) -> Result<String> {
    let place = journey.unix("incoming");
    let disk = "--disk=id=counter,path=/none".to_owned();
    let mut target = journey.target("nido-diskless", &place, &[disk])?;
    let said = refused(journey, &place, "/none")?;
    target.gives_up("/none")?;
    Ok(said)
}

/// The target is killed in the first round.
fn killed(journey: &Journey<'_>) -> Result<String> {
    let mut slow = journey.slowly("nido-killed-target", RATE, AMID, "")?;
    slow.target.kill()?;
    let (_target, said) = slow.answer()?;
    is_error(&said, "")?;
    Ok(said)
}

/// Somebody changes his mind. Meanwhile what would come in the way is refused.
fn cancelled(journey: &Journey<'_>) -> Result<String> {
    let slow = journey.slowly("nido-cancelled", RATE, AMID, "")?;
    let socket = journey.way.socket;
    let status = ask(socket, "status", "vcpus: ")?;
    ensure!(status.contains("state: running"), "{}", status.trim());
    ensure!(status.contains("\nmigration: "), "{}", status.trim());
    let progress = control::request(socket, "migrate-status")?;
    ensure!(!progress.starts_with("error"), "{}", progress.trim());
    let snapshot = format!("snapshot {}", journey.way.snapshot().display());
    for request in [
        &snapshot,
        "device-add virtio-rng-pci,bus=rp0,id=later",
        "device-del rng",
        &format!("migrate to={}", slow.place),
    ] {
        let said = ask(socket, request, "error: ")?;
        let why = said.contains("migrat");
        ensure!(why, "`{request}` is refused so: {}", said.trim());
    }
    let before = slow.proxy.carried();
    slow.proxy.wait_for(before + FURTHER, SOON)?;
    control::request(socket, "migrate-cancel")?;
    let (mut target, said) = slow.answer()?;
    is_error(&said, "given up")?;
    let ended = target.wait_for_end(Duration::from_secs(10))?;
    let last = last_line(&target.messages);
    let given_up = ended.is_some_and(|status| status.code() == Some(1));
    ensure!(given_up, "the target: {ended:?}, {last}");
    Ok(said)
}
