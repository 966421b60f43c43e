//! Running a machine: threads for its vCPUs, and what happens when the guest or the user wants
//! something of the whole.

mod beginning;
pub(crate) mod suspend;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use vmm_sys_util::signal::Killable;

use crate::config::Config;
use crate::control::{Control, Monitor, Workers};
use crate::event::{Event, Outcome};
use crate::event_loop::{EventLoop, Handle, Subscription};
use crate::machine::{Machine, plug_later};
use crate::migration::Migrations;
use crate::socket::{Place, Places, Socket};
use crate::suspension::Suspension;
use crate::upgrade::{self, Upgrades};
use crate::vcpu::Vcpu;
use crate::{console, signals, terminal};
pub(crate) use beginning::Beginning;
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
            let watching = watch_keeper(event_loop.handle(), line, sender.clone());
            keeper = Some(watching.context("waiting for the process that was started first")?);
        }
        let event = suspend::attend(&mut guest, &events, &suspension)?;
        if let Some(successor) = upgrades.take_successor() {
            // None is lost: those that come from here on wait for whoever stays.
            drop(signals);
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

/// Has the machine end when the process that was started first does, or is told to.
fn watch_keeper(
    event_loop: &Handle,
    line: &File,
    events: Sender<Event>,
) -> io::Result<Subscription> {
    upgrade::watch_keeper(event_loop, line, move |signal| {
        let gone = || {
            "the process that was started first, and waits for this one since an upgrade, is gone"
                .to_owned()
        };
        let event = signal.map_or_else(|| Event::Failed(gone()), Event::Signal);
        // Nobody waits for it any more only when the process ends anyway.
        let _ = events.send(event);
    })
}

/// What a signal does that asks the process to end: an event once vCPUs have started. Before that
/// nobody waits for events, and whatever opens, pins or loads something may take as long as a user
/// has chosen a slow file: the process ends at once. Nothing runs then that would have to stop
/// first.
fn end_by_signal(
    started: Arc<AtomicBool>,
    places: Places,
    migrations: Arc<Migrations>,
    events: Sender<Event>,
) -> impl FnMut(i32) + Send {
    move |signal| {
        if started.load(Ordering::Acquire) {
            // The main thread may be at it, if it is under way.
            let _ = migrations.cancel();
            // Nobody waits for it any more only when the process ends anyway.
            let _ = events.send(Event::Signal(signal));
            return;
        }
        terminal::restore();
        places.lock().iter().for_each(Place::remove);
        log::logger().flush();
        std::process::exit(crate::signal_code(signal).into());
    }
}

/// What the key does that ends the machine.
fn end_by_key(migrations: Arc<Migrations>, events: Sender<Event>) -> impl FnMut() + Send {
    move || {
        // As for a signal.
        let _ = migrations.cancel();
        let _ = events.send(Event::Quit);
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

/// The process's end comes before whatever else was reported while the vCPUs stopped; the rest
/// concerned a machine that no longer runs.
fn most_urgent(first: Event, events: &Receiver<Event>) -> Event {
    let ends = |event: &Event| matches!(event, Event::Quit | Event::Signal(_));
    let later = events.try_iter().find(ends);
    if ends(&first) {
        first
    } else {
        later.unwrap_or(first)
    }
}

/// Waits as long as `busy` says. Returns the end of the process if that comes before. There is nothing
/// to be paused meanwhile.
///
/// A disk's file may be on a server that does not answer. Memory that it is to fill is not given to
/// the next guest meanwhile.
fn ended_while(
    events: &Receiver<Event>,
    suspension: &Suspension,
    busy: impl Fn() -> bool,
) -> Option<Outcome> {
    let mut told = false;
    while busy() {
        suspension.refuse(
            "the guest restarts, and waits for a device's file that does not answer; try again when it runs",
        );
        if !std::mem::replace(&mut told, true) {
            log::warn!("a device's file does not answer: the guest restarts when it does");
        }
        match events.recv_timeout(Duration::from_millis(10)) {
            Ok(Event::Quit) => return Some(Outcome::Off),
            Ok(Event::Signal(signal)) => return Some(Outcome::Signal(signal)),
            // No vCPU is running.
            Ok(_) | Err(_) => {}
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suspension::Wish;

    #[test]
    fn a_signal_outranks_what_the_guest_reported_first() {
        let (sender, events) = channel();
        sender.send(Event::Reset).expect("receiver");
        sender.send(Event::Signal(15)).expect("receiver");
        assert_eq!(most_urgent(Event::PowerOff, &events), Event::Signal(15));
        assert!(
            events.try_recv().is_err(),
            "nothing stale is left for the next run"
        );
    }

    #[test]
    fn a_message_of_several_lines_is_shown_as_it_is() {
        let event = Event::Failed("vCPU 0 cannot go on\n  rip 0x10\n".to_owned());
        assert_eq!(event.to_string(), "vCPU 0 cannot go on\n  rip 0x10");
    }

    #[test]
    fn a_restart_waits_for_busy_devices_and_the_end_of_the_process_for_none() {
        let (sender, events) = channel();
        let suspension = Suspension::default();
        assert_eq!(ended_while(&events, &suspension, || false), None);
        let looks = std::cell::Cell::new(3);
        let busy = || looks.replace(looks.get() - 1) != 0;
        assert_eq!(ended_while(&events, &suspension, busy), None);
        for (event, outcome) in [
            (Event::Quit, Outcome::Off),
            (Event::Signal(15), Outcome::Signal(15)),
        ] {
            sender.send(Event::Reset).expect("receiver");
            sender.send(event).expect("receiver");
            assert_eq!(ended_while(&events, &suspension, || true), Some(outcome));
        }
    }

    #[test]
    fn who_wants_a_pause_hears_at_once_that_the_guest_restarts() {
        let (sender, events) = channel();
        let suspension = Suspension::default();
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let client = Arc::new(());
                suspension.ask(Wish::Pause, Arc::downgrade(&client), &sender)
            });
            let busy = || !asking.is_finished();
            assert_eq!(ended_while(&events, &suspension, busy), None);
            let why = asking.join().expect("no panic").expect_err("refused");
            assert!(why.contains("restarts"), "{why}");
        });
    }

    #[test]
    fn what_the_guest_reported_first_counts() {
        let (sender, events) = channel();
        sender.send(Event::PowerOff).expect("receiver");
        assert_eq!(most_urgent(Event::Reset, &events), Event::Reset);
    }
}
