//! Running a machine: threads for its vCPUs, and what happens when the guest or the user wants
//! something of the whole.

mod beginning;
mod endings;
pub(crate) mod suspend;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::Context as _;
use vmm_sys_util::signal::Killable;

use crate::config::Config;
use crate::control::{Control, Monitor, Workers};
use crate::event::{Event, Outcome};
use crate::event_loop::EventLoop;
use crate::machine::{Machine, plug_later};
use crate::migration::Migrations;
use crate::socket::{Places, Socket};
use crate::suspension::Suspension;
use crate::upgrade::Upgrades;
use crate::vcpu::Vcpu;
use crate::{console, signals};
pub(crate) use beginning::Beginning;
use endings::{end_by_key, end_by_signal, ended_while, most_urgent, watch_keeper};
use suspend::{Guest, Pausable as _};

/// Where clients come in, if they can.
pub(crate) enum Door {
    /// At a socket that is to be made.
    At(Option<PathBuf>),
    /// At one that there is.
    Given(Option<Socket>),
}

impl Door {
    fn socket(self) -> anyhow::Result<Option<Socket>> {
        match self {
            Self::Given(socket) => Ok(socket),
            Self::At(None) => Ok(None),
            Self::At(Some(path)) => Socket::bind(&path)
                .map(Some)
                .with_context(|| format!("--control path={}", path.display())),
        }
    }
}

/// Creates the machine that `choose` says and runs it to its end, with clients at `door`. The ending
/// signals are blocked.
pub(crate) fn run(
    door: Door,
    choose: impl FnOnce(&Places) -> anyhow::Result<(Config, Beginning)>,
) -> anyhow::Result<Outcome> {
    signals::install_kick().context("installing a signal handler")?;
    signals::reset().context("choosing what signals do")?;
    let (sender, events) = channel();
    let socket = door.socket()?;
    let event_loop = EventLoop::start(sender.clone()).context("starting the event loop")?;
    let started = Arc::<AtomicBool>::default();
    let places = Places::default();
    let place = socket.as_ref().map(|socket| socket.place().clone());
    places.lock().extend(place);
    let migrations = Arc::<Migrations>::default();
    let upgrades = Arc::<Upgrades>::default();
    upgrades.set_event_loop(event_loop.handle());
    if let Some(socket) = &socket {
        let outcome = upgrades.set_control(socket);
        outcome.context("the control socket")?;
    }
    let ending = end_by_signal(
        Arc::clone(&started),
        Arc::clone(&places),
        Arc::clone(&migrations),
        sender.clone(),
    );
    let signals =
        signals::watch_ending(event_loop.handle(), ending).context("waiting for signals")?;
    let (config, mut beginning) = choose(&places)?;
    beginning.prepare(&upgrades);
    let config = &config;
    let given = beginning.given();
    let made = Machine::new(
        config,
        beginning.memory(),
        given,
        &sender,
        event_loop.handle(),
    );
    let mut machine = beginning.told(made)?;
    let begun = beginning.begin(&mut machine, &upgrades);
    beginning.told(begun)?;
    let raw = beginning.make_raw();
    beginning.told(raw)?;
    let input = console::standard_input()
        .and_then(|input| {
            let quit = end_by_key(Arc::clone(&migrations), sender.clone());
            let entrance = Arc::clone(&upgrades.entrance);
            console::start(event_loop.handle(), input, quit, entrance, machine.input())
        })
        .context("standard input cannot be read");
    let _input = beginning.told(input)?;
    let suspension = Arc::<Suspension>::default();
    // Until the guest is this process's, it does not run here.
    suspension.set_paused(beginning.is_anothers());
    // Dropped before the machine: no client sees it half gone.
    let control = socket
        .map(|socket| {
            let monitor = Monitor {
                started: beginning.started(),
                upgrades: Arc::clone(&upgrades),
                ..monitor(config, &machine, &sender, &suspension, &migrations)?
            };
            Control::start(socket, monitor, event_loop.handle())
        })
        .transpose()
        .context("--control: serving clients");
    let _control = beginning.told(control)?;
    let mut keeper = None;
    loop {
        let running = start(&mut machine, &sender);
        let mut running = beginning.told(running)?;
        let restored = beginning.take_over(&machine, &events, &upgrades);
        let restored = beginning.told(restored)?;
        started.store(true, Ordering::Release);
        let hotplug = Arc::clone(machine.hotplug());
        let mut guest = Guest::new(&mut machine, &mut running, &sender);
        if let Some(paused) = restored {
            guest.is_restored();
            suspension.set_paused(paused);
            if !paused {
                guest.resume();
            }
            plug_later(&hotplug, config.plugged_later.clone());
        }
        beginning = Beginning::Boot;
        if let (None, Some(line)) = (&keeper, upgrades.keeper()) {
            let migrations = Arc::clone(&migrations);
            match watch_keeper(event_loop.handle(), line, migrations, sender.clone()) {
                Ok(watching) => keeper = Some(watching),
                // The guest is this process's, and nobody else's.
                Err(error) => log::error!(
                    "signals to the process that was started first are not heard of: {error}"
                ),
            }
        }
        let event = suspend::attend(&mut guest, &events, &suspension)?;
        if let Some(successor) = upgrades.take_successor() {
            // None is lost: those that come from here on wait for whoever stays.
            drop(signals);
            drop(keeper);
            let signal = |event| match event {
                Event::Signal(signal) => Some(signal),
                _ => None,
            };
            successor.leave(signal(event).or_else(|| events.try_iter().find_map(signal)));
        }
        stop(&mut machine, running)?;
        let event = most_urgent(event, &events);
        log::info!("the guest has stopped: {event}");
        if matches!(event, Event::Signal(_)) && log::log_enabled!(log::Level::Debug) {
            machine
                .vcpus
                .iter()
                .for_each(|vcpu| log::debug!("{}", vcpu.describe()));
        }
        let outcome = match event {
            Event::PowerOff | Event::Quit => Ok(Outcome::Off),
            Event::Reset if config.reboot => {
                machine.reset_devices();
                let is_busy = || !machine.is_quiet();
                let Some(outcome) = ended_while(&events, &suspension, is_busy) else {
                    machine.boot().context("restarting the guest")?;
                    continue;
                };
                suspension.close();
                return Ok(outcome);
            }
            Event::Reset => Ok(Outcome::Reset),
            Event::TripleFault { vcpu } => {
                log::error!("the guest crashed vCPU {vcpu} (triple fault)");
                Ok(Outcome::TripleFault)
            }
            Event::Signal(signal) => Ok(Outcome::Signal(signal)),
            // Some of these are the guest's choice, such as to execute what lies in a BAR: devices
            // stop as at any other end.
            Event::Failed(message) => Err(anyhow::anyhow!(message)),
            // It was attended to.
            Event::Attend | Event::Kick => continue,
        };
        suspension.close();
        machine.reset_devices();
        return outcome;
    }
}

/// What clients of the control socket look at.
fn monitor(
    config: &Config,
    machine: &Machine,
    events: &Sender<Event>,
    suspension: &Arc<Suspension>,
    migrations: &Arc<Migrations>,
) -> io::Result<Monitor> {
    Ok(Monitor {
        cpus: config.cpus,
        memory: config.memory.size,
        all_memory: config.all_memory(),
        private_memory: machine.has_private_memory(),
        started: Instant::now(),
        root: Arc::clone(machine.root()),
        unit: machine.unit().cloned(),
        accesses: Arc::clone(&machine.shared.accesses),
        assigner: machine.assigner().cloned(),
        writers: Arc::new(machine.writers()),
        hotplug: Arc::clone(machine.hotplug()),
        balloon: Arc::clone(machine.balloon()),
        plugged: machine.plugged_memory().cloned(),
        workers: Workers::new()?,
        suspension: Arc::clone(suspension),
        turns: Arc::default(),
        snapshots: Arc::default(),
        migrations: Arc::clone(migrations),
        upgrades: Arc::default(),
        events: events.clone(),
    })
}

fn start(machine: &mut Machine, events: &Sender<Event>) -> anyhow::Result<Vec<JoinHandle<Vcpu>>> {
    machine.shared.stop.store(false, Ordering::Release);
    let mut running = Vec::new();
    for (id, vcpu) in std::mem::take(&mut machine.vcpus).into_iter().enumerate() {
        let (shared, events) = (Arc::clone(&machine.shared), events.clone());
        let thread = thread::Builder::new().name(format!("vcpu{id}"));
        let parkable = machine.shared.park.enter();
        let body = move || {
            let vcpu = vcpu.run(&shared, &events);
            drop(parkable);
            vcpu
        };
        running.push(thread.spawn(body).context("starting a vCPU thread")?);
    }
    Ok(running)
}

/// Stops the vCPUs and takes them back.
fn stop(machine: &mut Machine, running: Vec<JoinHandle<Vcpu>>) -> anyhow::Result<()> {
    machine.shared.stop.store(true, Ordering::SeqCst);
    machine.shared.park.look();
    kick(&running);
    for thread in running {
        let vcpu = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a vCPU thread panicked"))?;
        machine.vcpus.push(vcpu);
    }
    Ok(())
}

/// Has the vCPUs look at what they were told by flags.
fn kick(running: &[JoinHandle<Vcpu>]) {
    for thread in running {
        // Fails only for a thread that has ended, which needs no kick.
        let _ = thread.kill(signals::kick_signal());
    }
}
