//! A guest that goes to another nido while it runs, as often as it is asked for; attempts after which it
//! has to be where it was; and what happens to it when one side or the connection is lost.

mod attempts;
mod busy;
mod kills;
mod nido;
mod proxy;
mod trial;
mod unplug;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::control::{self, ask};
use super::disks;
use super::moved::{Moved, Way};
use nido::Nido;
use proxy::Proxy;

/// The id of the guest's network device.
pub(super) const NET: &str = "net";

/// Time for what nobody has to wait for.
const SOON: Duration = Duration::from_secs(15);
/// How often to look whether something has happened.
const LOOK: Duration = Duration::from_millis(2);
/// What a target says when it can be connected to.
const WAITING: &str = "waiting for a machine at ";

/// The ways of a guest from one nido to another.
pub(super) struct Journey<'a> {
    /// The nido that has it, by the control socket, which is always at the same place.
    pub(super) way: &'a Way<'a>,
    /// Directory for logs.
    pub(super) output: &'a Path,
    /// Taps of one network: it has the first, then the second, and so on in turn.
    pub(super) taps: &'a [String],
    /// Devices that it has in turn in the same way, if any is assigned to it.
    pub(super) moving: &'a [String],
    /// How often it has gone so far.
    pub(super) turns: &'a mut u32,
    /// Puts addresses of devices of this host in place of their names.
    pub(super) substitute: &'a dyn Fn(&str) -> String,
}

impl Journey<'_> {
    /// Has the guest of `nido` go elsewhere, unless `how` tells that it stays. Returns whoever has it then,
    /// if it is another one, and what is to be said of it.
    pub(super) fn go(&mut self, nido: &mut Child, how: &str) -> Result<(Option<Moved>, String)> {
        let (moved, said) = match how {
            "" => self.elsewhere(nido, false)?,
            "far" => self.elsewhere(nido, true)?,
            "busy" => busy::go(self, nido)?,
            "kills" => kills::go(self, nido)?,
            "unplug" => unplug::go(self, nido)?,
            "unplug-in-vain" => return Ok((None, unplug::stay(self, nido)?)),
            name => return Ok((None, attempts::stay(self, nido, name)?)),
        };
        Ok((Some(moved), said))
    }

    /// By a unix socket and by TCP in turn; to what seems to be another host, and by several connections, if it is `far`.
    fn elsewhere(&mut self, nido: &mut Child, far: bool) -> Result<(Moved, String)> {
        let place = match self.turns.is_multiple_of(2) {
            true => self.unix("incoming"),
            false => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                format!("tcp:{}", listener.local_addr()?)
            }
        };
        let boot_id = self.way.scratch.join(format!("boot-id-{}", self.turns));
        fs::write(&boot_id, format!("another-host-{}\n", self.turns))?;
        let host = far.then_some(&*boot_id);
        let name = format!("nido-{}", *self.turns + 1);
        let target = self.target_on(host, &name, &place, &[])?;
        let streams = if far { 4 } else { 1 };
        let wish = format!("migrate to={place},streams={streams}");
        let answer = control::request(self.way.socket, &wish)?;
        self.arrived(nido, target, &place, &answer)
    }

    /// The guest is at `target`, as the `answer` of its old nido says, which has ended: the new one
    /// has its locks, and takes the place of the old one's control socket.
    fn arrived(
        &mut self,
        nido: &mut Child,
        target: Nido,
        place: &str,
        answer: &str,
    ) -> Result<(Moved, String)> {
        let begin = format!("the guest runs at {place}: it stood still for ");
        ensure!(answer.starts_with(&begin), "migrate: {}", answer.trim());
        let status = wait_for_end(nido, SOON)?.context("the source does not end")?;
        ensure!(status.code() == Some(0), "the source ended with {status}");
        target.wait_to_run(SOON)?;
        disks_are_locked(self.way.scratch)?;
        fs::rename(&target.socket, self.way.socket)?;
        *self.turns += 1;
        Ok((target.into_moved()?, answer.trim().to_owned()))
    }

    /// A place to be connected to, named so.
    fn unix(&self, name: &str) -> String {
        format!("unix:{}", self.path(name).display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.way.scratch.join(format!("{name}.sock"))
    }

    /// A nido that waits at `place`, with the tap that is not in use. Its messages are in a log of this
    /// name.
    fn target(&self, name: &str, place: &str, further: &[String]) -> Result<Nido> {
        self.target_on(None, name, place, further)
    }

    /// As [`target`](Self::target), [on that host](Nido::start).
    fn target_on(
        &self,
        host: Option<&Path>,
        name: &str,
        place: &str,
        further: &[String],
    ) -> Result<Nido> {
        let mut arguments = vec![format!("--incoming={place}")];
        let next = |all: &[String]| {
            let mut all = all.iter().cycle();
            all.nth(*self.turns as usize + 1).cloned()
        };
        arguments.extend(next(self.taps).map(|tap| format!("--net=id={NET},tap={tap}")));
        let device = |host| format!("--device=vfio-pci,id=edu,host={host},iommufd=iommufd0");
        arguments.extend(next(self.moving).map(device));
        arguments.extend_from_slice(further);
        let messages = self.output.join(format!("{name}.log"));
        let target = Nido::start(
            self.way.program,
            arguments,
            self.path("target"),
            messages,
            host,
        )?;
        target.wait_to_say(&format!("{WAITING}{place}"), SOON)?;
        Ok(target)
    }

    /// A migration that is under way, over a link of `rate` bytes a second, when `bytes` of it have passed.
    fn slowly(&self, name: &str, rate: u64, bytes: u64, options: &str) -> Result<Slow> {
        let target = self.target(name, &self.unix("incoming"), &[])?;
        let proxy = Proxy::start(
            &self.path("proxy"),
            &self.path("incoming"),
            Some(rate),
            None,
        )?;
        let place = self.unix("proxy");
        let migrating = start(self.way.socket, format!("migrate to={place}{options}"));
        let slow = Slow {
            target,
            proxy,
            place,
            migrating,
        };
        let until = Instant::now() + 2 * SOON;
        while slow.proxy.carried() < bytes {
            if slow.migrating.is_finished() {
                bail!("migrate: {}", slow.answer()?.1.trim());
            }
            ensure!(Instant::now() < until, "{bytes} bytes are not sent in time");
            thread::sleep(LOOK);
        }
        Ok(slow)
    }

    /// The guest runs where it was, with its disks, and nothing is under way.
    fn stays(&self, nido: &mut Child) -> Result<()> {
        let ended = nido.try_wait()?;
        ensure!(ended.is_none(), "the source ended: {ended:?}");
        let said = ask(self.way.socket, "status", "vcpus: ")?;
        ensure!(said.contains("state: running"), "{}", said.trim());
        ensure!(!said.contains("migration:"), "{}", said.trim());
        disks_are_locked(self.way.scratch)
    }
}

/// A migration over a slow link.
struct Slow {
    target: Nido,
    proxy: Proxy,
    place: String,
    migrating: JoinHandle<Result<String>>,
}

impl Slow {
    /// Waits for the end of it.
    fn answer(self) -> Result<(Nido, String)> {
        let answer = self.migrating.join();
        Ok((
            self.target,
            answer.map_err(|_| anyhow!("a thread panicked"))??,
        ))
    }
}

/// Asks in a thread.
fn start(socket: &Path, request: String) -> JoinHandle<Result<String>> {
    let socket = socket.to_owned();
    thread::spawn(move || control::request(&socket, &request))
}

/// How a process ended, if it does within `limit`.
fn wait_for_end(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > until {
            return Ok(ended);
        }
        thread::sleep(LOOK);
    }
}

/// Nobody else can open the disks of the guest now: what `flock` tells of files is what nido asks for.
pub(super) fn disks_are_locked(scratch: &Path) -> Result<()> {
    for name in disks::NAMES {
        let path = scratch.join(name).with_extension(super::moved::DISK);
        let file = fs::File::open(&path).with_context(|| path.display().to_string())?;
        let taken = file.try_lock().is_ok();
        ensure!(!taken, "{}: nobody holds its lock", path.display());
    }
    Ok(())
}
