//! One run of a scenario: what it needs, nido in front of the guest, and what is left afterwards.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::back_ends::{Addresses, BackEnds};
use super::disks::{self, Disks};
use super::host::Devices;
use super::inherited::Inherited;
use super::invocation::{Invocation, Surroundings, quoted};
use super::level3::Below;
use super::link::Link;
use super::migrations::NET;
use super::session::{Ending, LOOK, Outcome, Session};
use super::stock::Stock;
use super::{Report, Task, control, echo, level3, refusal, vsock};
use crate::guest::disk::COPY;
use crate::judge::Judge;
use crate::protocol::AgentLine;
use crate::scenario::Kernel;
use crate::{plan, sys};

/// Network of the tap; documentation addresses (RFC 5737), so that no real network is meant.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PREFIX: u8 = 24;

/// Disks that no guest has from its start: this one, and another of the same name with `.2`.
const SPARE: &str = "spare.img";
const SPARE_SIZE: u64 = 4 << 20;

/// The check that needs sockets of level 1.
const SOCKETS: &str = "vsock";

/// The check that needs a tap with several queues.
const QUEUES: &str = "net-queues";

/// What a guest has besides its kernel, for the time of a run.
pub(super) struct Environment {
    disks: Disks,
    stock: Option<Stock>,
    link: Link,
    port: u16,
    vhost: bool,
    /// The guest's AF_VSOCK address, and the servers of level 1, if it has any.
    vsock: Option<(u32, vsock::Servers)>,
    back_ends: Option<BackEnds>,
}

impl Environment {
    pub(super) fn create(task: &Task) -> Result<Self> {
        let disks = Disks::create(&task.scratch)?;
        for name in [SPARE.to_owned(), format!("{SPARE}.2")] {
            File::create(task.scratch.join(name))?.set_len(SPARE_SIZE)?;
        }
        let stock = (task.scenario.kernel == Kernel::Debian).then(|| Stock::create(task));
        let tap = format!("nido{}", std::process::id() % 100_000);
        let several = plan::names(task.scenario.plan, QUEUES);
        let link = match plan::migrates(task.scenario.plan) {
            true => Link::two(&tap, HOST, PREFIX, several),
            false => Link::one(&tap, HOST, PREFIX, several),
        };
        let link = link.with_context(|| format!("cannot make the tap {tap}"))?;
        let port = echo::serve(HOST, 0).context("echo server")?;
        let vsock = if plan::names(task.scenario.plan, SOCKETS) {
            let servers = vsock::serve().context("servers on AF_VSOCK")?;
            Some((1000 + std::process::id(), servers))
        } else {
            None
        };
        let [_, copy, _] = &disks.paths;
        let served = task.scenario.vhost_user;
        let addresses = Addresses {
            guest: GUEST,
            host: HOST,
            prefix: PREFIX,
        };
        let back_ends = served
            .then(|| BackEnds::start(task, copy, task.scenario.cpus, &tap, &addresses))
            .transpose()?;
        Ok(Self {
            disks,
            stock: stock.transpose()?,
            back_ends,
            link,
            port,
            vhost: task.scenario.vhost,
            vsock,
        })
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        let mut arguments = Vec::new();
        for (disk, name) in self.disks.paths.iter().zip(disks::NAMES) {
            // What the guest writes goes through the other process, if there is one.
            let option = match &self.back_ends {
                Some(back_ends) if name == COPY => {
                    format!("vhost-user={}", back_ends.disk.socket.display())
                }
                _ => format!("path={},id={name}", disk.display()),
            };
            arguments.extend(["--disk".to_owned(), option]);
        }
        if let Some(stock) = &self.stock {
            arguments.extend(stock.arguments());
        }
        let mut command_line = format!(
            "lab.disk={} lab.net={GUEST}/{PREFIX},{HOST}:{}",
            self.disks.hash, self.port
        );
        let mut net = match &self.back_ends {
            Some(back_ends) => format!("vhost-user={}", back_ends.network.socket.display()),
            None => {
                let tap = self.link.names.first();
                format!("tap={},id={NET}", tap.map_or("", String::as_str))
            }
        };
        if self.vhost {
            net.push_str(",vhost=on");
        }
        arguments.extend(["--net".to_owned(), net]);
        if let Some((cid, servers)) = &self.vsock {
            arguments.extend(["--vsock".to_owned(), format!("cid={cid}")]);
            command_line.push_str(&format!(" lab.vsock={},{}", servers.echo, servers.call));
        }
        Surroundings {
            arguments,
            command_line,
            taps: self.link.names.clone(),
        }
    }
}

/// Runs the scenario; every reason against it is reported, then [`AgentLine::Done`].
pub fn run(task: &Task, report: &mut Report<'_>) -> Result<()> {
    fs::create_dir_all(&task.output)?;
    let devices = Devices::prepare(&task.scenario.host)?;
    let watched = !task.scenario.host.devices.is_empty();
    if watched {
        fs::write(task.output.join("devices.txt"), devices.describe())?;
    }
    let mut outcome = if task.scenario.refusals.is_empty() {
        run_guests(task, &devices, report)?
    } else {
        refuse(task, &devices)
    };
    if watched {
        if let Err(error) = devices.nothing_left() {
            outcome
                .failures
                .push(format!("after nido's end: {error:#}"));
        }
        outcome.failures.extend(devices.faults()?);
    }
    for failure in outcome.failures {
        report(AgentLine::Failure(failure));
    }
    report(AgentLine::Done {
        milliseconds: u64::try_from(outcome.time.as_millis())?,
        passed: outcome.passed,
    });
    Ok(())
}

fn refuse(task: &Task, devices: &Devices) -> Outcome {
    let mut outcome = Outcome::default();
    let started = Instant::now();
    for refusal in task.scenario.refusals {
        match refusal::check(task, devices, refusal) {
            Ok(_) => outcome.passed += 1,
            Err(error) => outcome
                .failures
                .push(format!("{}: {error:#}", refusal.name)),
        }
    }
    outcome.time = started.elapsed();
    outcome
}

/// The scenario's guest, and the one before it if there is one.
fn run_guests(task: &Task, devices: &Devices, report: &mut Report<'_>) -> Result<Outcome> {
    let linux = task.scenario.kernel != Kernel::Payload;
    let environment = if linux {
        Some(Environment::create(task)?)
    } else {
        None
    };
    let mut surroundings = environment
        .as_ref()
        .map(Environment::surroundings)
        .unwrap_or_default();
    surroundings.command_line.push_str(&devices.command_line());
    let mut outcome = Outcome::default();
    if let Some(plan) = task.scenario.killed {
        let invocation = Invocation::with_plan(task, &surroundings, false, plan);
        outcome = session(task, devices, invocation, Ending::Killed, None, report)?;
        if let Err(error) = devices.nothing_left() {
            outcome.failures.push(format!("after the kill: {error:#}"));
        }
        if !outcome.failures.is_empty() {
            return Ok(outcome);
        }
    }
    let invocation = Invocation::new(task, &surroundings, false);
    let plan = invocation.plan.clone();
    let last = session(task, devices, invocation, Ending::ByItself, None, report)?;
    outcome.passed += last.passed;
    outcome.time += last.time;
    outcome.failures.extend(last.failures);
    if let Some(environment) = &environment
        && outcome.failures.is_empty()
        && (plan::names(&plan, "disk") || plan::names(&plan, level3::CHECK))
        && let Some(reason) = environment.disks.verify()?
    {
        outcome.failures.push(reason);
    }
    if let Some(stock) = environment.and_then(|environment| environment.stock)
        && outcome.failures.is_empty()
        && let Some(reason) = stock.verify()?
    {
        outcome.failures.push(reason);
    }
    Ok(outcome)
}

/// One run of nido. What it is to look at is looked at by `below` as well, the agent of the level
/// below this one.
pub(super) fn session(
    task: &Task,
    devices: &Devices,
    invocation: Invocation,
    ending: Ending,
    below: Option<&Below<'_>>,
    report: &mut Report<'_>,
) -> Result<Outcome> {
    let scenario = &task.scenario;
    let program = task.files.join("nido");
    let arguments = invocation.arguments.iter();
    let mut inherited = Inherited::default();
    let arguments = arguments.map(|word| inherited.substitute(&devices.substitute(word), devices));
    let mut arguments: Vec<String> = arguments.collect::<Result<_>>()?;
    let socket = task.scratch.join("control.sock");
    let has_socket = !scenario.control.is_empty()
        || !scenario.look.is_empty()
        || !scenario.looks.is_empty()
        || plan::names(&invocation.plan, "hot-plug")
        || plan::names(&invocation.plan, "pauses")
        || plan::names(&invocation.plan, "moves")
        || plan::names(&invocation.plan, "dirty-pages")
        || plan::names(&invocation.plan, level3::MOVES)
        || plan::names(&invocation.plan, "virtio-mem");
    if has_socket {
        // Bare metal has no disks there, so nothing else has made it.
        fs::create_dir_all(&task.scratch).with_context(|| task.scratch.display().to_string())?;
        arguments.extend(["--control".to_owned(), format!("path={}", socket.display())]);
    }
    let name = match ending {
        Ending::ByItself => "guest",
        Ending::Killed => "killed",
    };
    fs::write(
        task.output.join("command.txt"),
        quoted(&program, &arguments) + "\n",
    )?;
    let mut judge = Judge::new(&invocation.plan, scenario.faults)?;
    if scenario.kernel == Kernel::Payload {
        judge = judge.without_ends();
    }
    let messages = task.output.join(match ending {
        Ending::ByItself => "nido.log",
        Ending::Killed => "nido-killed.log",
    });
    let session = Session {
        program: &program,
        arguments: &arguments,
        output: &task.output,
        name,
        socket: has_socket.then_some(socket.as_path()),
        control: scenario.control,
        scratch: &task.scratch,
        messages: &messages,
        taps: &invocation.taps,
        moving: &devices.moving(),
        substitute: &|text| {
            let spare = task.scratch.join(SPARE).display().to_string();
            devices.substitute(text).replace("{spare}", &spare)
        },
        look: &|name| {
            let look = scenario.look_at(name);
            let look = look.with_context(|| format!("{} has no look={name}", scenario.name))?;
            let transcript = task.output.join(match name {
                "" => "look.txt".to_owned(),
                name => format!("look-{name}.txt"),
            });
            control::converse(&socket, look, &transcript)?;
            below.map_or(Ok(()), |ask| ask(format!("{LOOK} {name}").trim()))
        },
        limit: scenario.limit,
        ending,
        show_guest: task.show_guest,
    };
    session.run(judge, report)
}

/// Runs the scenario's guest with a shell on this process's terminal.
pub fn interact(task: &Task, terminal: Option<File>) -> Result<i32> {
    let environment = Environment::create(task)?;
    let mut command = Command::new(task.files.join("nido"));
    command.args(Invocation::new(task, &environment.surroundings(), true).arguments);
    if let Some(terminal) = terminal {
        command
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal);
        sys::own_terminal(&mut command);
    }
    sys::die_with_parent(&mut command);
    let status = command.spawn().context("cannot start nido")?.wait()?;
    Ok(status.code().unwrap_or(1))
}
