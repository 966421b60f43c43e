//! nido.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cases::Case;
use super::clients::Client;
use super::watched::Watched;
use super::{LIMIT, Mover, Place, Told};

/// How long a process may take to end that was killed.
const END: Duration = Duration::from_secs(10);

pub(super) const NAME: &str = "nido";

/// nido.
pub(super) struct Nido;

/// The control socket of one of the two.
fn control(place: &Place, which: &str) -> PathBuf {
    place.directory.join(format!("nido-{which}"))
}

fn start(place: &Place, which: &str, arguments: &[String]) -> Result<Watched> {
    let socket = control(place, which);
    let _ = fs::remove_file(&socket);
    let mut command = Command::new(&place.nido);
    command
        .args(arguments)
        .arg(format!("--control=path={}", socket.display()));
    let log = place.directory.join(format!("nido-{which}.log"));
    Watched::start(&mut command, &log)
}

/// What it says to a request.
fn ask(place: &Place, which: &str, request: &str, begin: &str) -> Result<String> {
    let mut client = Client::new(&control(place, which), LIMIT)?;
    client.say(request)?;
    let answer = client.hear()?;
    ensure!(answer.starts_with(begin), "`{request}`: {}", answer.trim());
    Ok(answer)
}

fn meeting(place: &Place) -> String {
    format!("unix:{}", place.directory.join("nido-link").display())
}

impl Mover for Nido {
    fn name(&self) -> &'static str {
        NAME
    }

    fn source(&self, place: &Place, case: &Case) -> Result<Watched> {
        let arguments = [
            format!("--kernel={}", place.payload.display()),
            format!("--cmdline={}", case.command_line()),
            "--cpus=2".to_owned(),
            "--memory=512M".to_owned(),
        ];
        start(place, "source", &arguments)
    }

    fn target(&self, place: &Place, _: &Case) -> Result<Watched> {
        let target = start(place, "target", &[format!("--incoming={}", meeting(place))])?;
        // It listens when the socket is there.
        let socket = place.directory.join("nido-link");
        for _ in 0..1000 {
            if socket.exists() {
                return Ok(target);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        anyhow::bail!("nido --incoming does not listen")
    }

    fn go(&self, place: &Place, case: &Case) -> Result<Told> {
        let (to, pause) = (meeting(place), case.pause.as_millis());
        let wish = format!("migrate to={to},pause={pause}");
        told(&ask(place, "source", &wish, "the guest runs at ")?)
    }
}

/// What the answer to `migrate` says.
fn told(answer: &str) -> Result<Told> {
    let number = |before: &str, after: &str| number(answer, before, after);
    Ok(Told {
        still: Duration::from_millis(number("it stood still for ", " ms")?),
        kibibytes: number(" rounds, ", " MiB")? * 1024,
    })
}

/// The number that stands between two texts.
fn number(answer: &str, before: &str, after: &str) -> Result<u64> {
    let rest = answer.split_once(before).map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split_once(after));
    number
        .and_then(|(number, _)| number.parse().ok())
        .with_context(|| format!("no number after `{before}` in `{}`", answer.trim()))
}

/// Saves a guest of a nido that it came to, ends that, and has it go on once more. What came of it.
pub(super) fn snapshot(place: &Place, nido: Watched) -> Result<String> {
    let directory = place.directory.join("snapshot");
    let wish = format!("snapshot {}", directory.display());
    let answer = ask(place, "target", &wish, "the snapshot is in ")?;
    let still = number(&answer, "the guest stood still for ", " ms")?;
    let memory = number(&answer, &format!("{}: ", directory.display()), " KiB of")?;
    let state = number(&answer, " of memory and ", " KiB of")?;
    nido.end(END)?;
    let restore = [format!("--restore={}", directory.display())];
    let restored = start(place, "restored", &restore)?;
    restored
        .wait(LIMIT, |signs| signs.first().is_some())
        .context("nothing is heard of the guest after --restore")?;
    let first = restored.signs().first().context("no sign")?;
    let _ = fs::remove_dir_all(&directory);
    Ok(format!(
        "vmm={NAME}/snapshot still_ns={} restore_ns={} memory_kib={memory} state_kib={state}",
        still * 1_000_000,
        (first - restored.started).as_nanos()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_migrate_is_understood() {
        let told = told(
            "the guest runs at unix:/run/9: it stood still for 23 ms; 5 rounds, 130 MiB in 1.9 s\n",
        )
        .expect("understood");
        assert_eq!(told.still, Duration::from_millis(23));
        assert_eq!(told.kibibytes, 130 * 1024);
    }

    #[test]
    fn another_answer_is_shown() {
        let error = told("the guest runs at home\n").err().expect("refused");
        assert!(error.to_string().contains("at home"), "{error}");
    }
}
