//! QEMU, by its machine protocol (QMP).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::cases::Case;
use super::clients::Client;
use super::watched::Watched;
use super::{LIMIT, Mover, Place, Told};
use crate::bench::PROGRAM;

/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(10);
/// For an answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Bytes in a second: no limit.
const FAST: u64 = 1 << 40;

/// QEMU.
pub(super) struct Qemu;

fn control(place: &Place, which: &str) -> PathBuf {
    place.directory.join(format!("qemu-{which}"))
}

fn meeting(place: &Place) -> String {
    format!("unix:{}", place.directory.join("qemu-link").display())
}

fn start(place: &Place, case: &Case, which: &str, incoming: &[&str]) -> Result<Watched> {
    let socket = control(place, which);
    let _ = fs::remove_file(&socket);
    let mut command = Command::new(PROGRAM);
    command
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        // qboot: firmware that takes no seconds where each instruction is emulated.
        .args(["-machine", "q35,accel=kvm", "-bios", "qboot.rom"])
        // A KVM may refuse what it said of that itself.
        .args(["-cpu", "host,-arch-capabilities", "-smp", "2", "-m", "512"])
        .args(["-serial", "stdio", "-append", &case.command_line()])
        .arg("-kernel")
        .arg(&place.payload)
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .args(incoming);
    let log = place.directory.join(format!("qemu-{which}.log"));
    Watched::start(&mut command, &log)
}

/// A client that may say commands.
struct Qmp(Client);

impl Qmp {
    fn new(place: &Place, which: &str) -> Result<Self> {
        let mut client = Client::new(&control(place, which), ANSWER)?;
        client.hear()?;
        let mut qmp = Self(client);
        qmp.run("qmp_capabilities", "")?;
        Ok(qmp)
    }

    /// What a command returns.
    fn run(&mut self, command: &str, arguments: &str) -> Result<String> {
        let text = format!(r#"{{"execute": "{command}", "arguments": {{{arguments}}}}}"#);
        self.0.say(&text)?;
        loop {
            let line = self.0.hear()?;
            ensure!(
                !line.starts_with(r#"{"error""#),
                "{command}: {}",
                line.trim()
            );
            // All else is events.
            if line.starts_with(r#"{"return""#) {
                return Ok(line);
            }
        }
    }
}

impl Mover for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn source(&self, place: &Place, case: &Case) -> Result<Watched> {
        start(place, case, "source", &[])
    }

    fn target(&self, place: &Place, case: &Case) -> Result<Watched> {
        let target = start(place, case, "target", &["-incoming", &meeting(place)])?;
        // It listens before it speaks.
        Qmp::new(place, "target")?;
        Ok(target)
    }

    fn go(&self, place: &Place, case: &Case) -> Result<Told> {
        let mut qmp = Qmp::new(place, "source")?;
        let pause = case.pause.as_millis();
        qmp.run(
            "migrate-set-parameters",
            &format!(r#""downtime-limit": {pause}, "max-bandwidth": {FAST}"#),
        )?;
        qmp.run(
            "migrate-set-capabilities",
            r#""capabilities": [{"capability": "auto-converge", "state": true}]"#,
        )?;
        qmp.run("migrate", &format!(r#""uri": "{}""#, meeting(place)))?;
        let until = Instant::now() + LIMIT;
        loop {
            let answer = qmp.run("query-migrate", "")?;
            match text(&answer, "status") {
                Some("completed") => return told(&answer),
                Some("failed" | "cancelled") => bail!("{}", answer.trim()),
                _ if Instant::now() > until => bail!("not over within {} s", LIMIT.as_secs()),
                _ => thread::sleep(LOOK),
            }
        }
    }
}

/// What `query-migrate` says at the end.
fn told(answer: &str) -> Result<Told> {
    let number = |key: &str| {
        let number = field(answer, key).and_then(|value| value.parse::<u64>().ok());
        number.with_context(|| format!("no {key} in {}", answer.trim()))
    };
    Ok(Told {
        still: Duration::from_millis(number("downtime")?),
        kibibytes: number("transferred")? / 1024,
    })
}

/// The number or word that the first field of this name has.
fn field<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{key}\": "))?;
    rest.split([',', '}', ' ']).next()
}

/// The same of a field that has a text.
fn text<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    field(json, key)?.strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"return": {"status": "completed", "setup-time": 12, "downtime": 11, "total-time": 1665, "ram": {"total": 537206784, "transferred": 286549000, "skipped": 0}}}"#;

    #[test]
    fn the_end_of_a_migration_is_understood() {
        assert_eq!(text(ANSWER, "status"), Some("completed"));
        let told = told(ANSWER).expect("understood");
        assert_eq!(told.still, Duration::from_millis(11));
        assert_eq!(told.kibibytes, 279_833);
    }

    #[test]
    fn what_is_not_there_is_told() {
        assert_eq!(field(r#"{"return": {"a": 1}}"#, "a"), Some("1"));
        assert_eq!(text(r#"{"return": {"a": 1}}"#, "a"), None);
        let error = told(r#"{"return": {"status": "active"}}"#).err();
        assert!(error.expect("refused").to_string().contains("no downtime"));
    }
}
