//! The old side: the guest goes to another nido, or stays.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::virtio::blk::BlockError;
use parking_lot::Mutex;
use state::Section;

use super::candidate;
use super::handover::Handover;
use super::heir::{INPUT, INPUT_VERSION};
use super::successor::Successor;
use super::upgrades::Upgrades;
use crate::config::Way;
use crate::described::{WRITER, as_options, describe};
use crate::host_files::Role;
use crate::machine::{Handed, HotPlugHold, Machine};
use crate::migration::{Fate, Hello, Here, Link, Sender, StreamError};
use crate::suspension::Wish;
use crate::terminal;

/// How long the new nido may take to make the machine, while the guest runs.
const MAKING: Duration = Duration::from_secs(10);
/// How long the guest stands still at the most until the new nido is ready, and then until it has said that it
/// runs the guest, before it goes on here.
const LIMIT: Duration = Duration::from_secs(3);

/// Has the guest go on in the nido at `path`. `started` is when the machine was. Returns what to tell the client.
///
/// # Errors
/// Why not. The guest is this process's, as before.
pub(crate) fn replace(
    path: &Path,
    here: &Here,
    upgrades: &Arc<Upgrades>,
    started: Instant,
) -> Result<String, String> {
    let replaced = run(path, here, upgrades, started);
    replaced
        .inspect(|text| log::info!("{}", text.trim_end()))
        .map_err(|why| format!("{why}; the guest goes on with this nido"))
        .inspect_err(|why| log::warn!("upgrade: {why}"))
}

fn run(
    path: &Path,
    here: &Here,
    upgrades: &Arc<Upgrades>,
    started: Instant,
) -> Result<String, String> {
    let name = candidate::look_at(path)?;
    let begun = here.work(|machine| begin(machine))?;
    let shown = path.display();
    let failed = |error: std::io::Error| format!("exec={shown}: it cannot be started: {error}");
    let has_keeper = upgrades.keeper().is_some();
    let (successor, socket, end) = Successor::start(path, has_keeper).map_err(failed)?;
    let mut files = begun.files;
    files.extend(upgrades.files().map_err(failed)?);
    files.extend(end.map(|end| (Role::Keeper, end)));
    let (roles, files): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let handover = Handover {
        writer: WRITER.to_owned(),
        verbosity: verbosity(),
        uptime: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        control: upgrades.control().map(|(place, _)| {
            let (path, (device, inode)) = place.identity();
            (path.to_owned(), device, inode)
        }),
        terminal: terminal::saved(),
        roles,
    };
    let successor = Arc::new(Mutex::new(Some(successor)));
    let handed = handover
        .send(&socket, &files)
        .map_err(|error| format!("the handover: {error:#}"))
        .and_then(|()| {
            // The other process has them.
            drop(files);
            let link = Link::new(socket, LIMIT).map_err(|error| error.to_string())?;
            let mut sender = Sender::offer(link, &begun.hello).map_err(words)?;
            sender.accepted(MAKING).map_err(words)?;
            log::debug!("upgrade: the machine is made");
            let going = Going {
                sender,
                name,
                successor: Arc::clone(&successor),
                upgrades: Arc::clone(upgrades),
            };
            let asked = Instant::now();
            let give = move |machine: &mut Machine, paused| going.give(machine, paused, asked);
            here.ask(Wish::HandOver(Box::new(give)))
        });
    handed.map_err(|why| {
        let mut successor = successor.lock();
        let ended = successor.as_mut().and_then(Successor::ended);
        match ended.filter(|status| !status.success()) {
            Some(status) => format!("exec={shown}: {why}; it ended with {status}"),
            None => format!("exec={shown}: {why}"),
        }
    })
}

/// What an upgrade needs of the machine.
struct Begun {
    hello: Hello,
    files: Vec<(Role, File)>,
    /// Nothing is plugged or removed meanwhile.
    _hold: HotPlugHold,
}

fn begin(machine: &Machine) -> Result<Begun, String> {
    machine.claims().are_known()?;
    let (config, options) = as_options(machine, Way::Upgraded)?;
    let files = machine.open_files();
    let files = files.map_err(|error| {
        format!("the host has no descriptors for it: {error}; raise the limit `ulimit -n`")
    })?;
    if !files.iter().any(|(role, _)| *role == Role::Memory) {
        return Err(
            "guest memory is this process's alone, and cannot go along: move the guest by `migrate` to another nido of this host, or start it with --memory SIZE,shared=on"
                .to_owned(),
        );
    }
    Ok(Begun {
        hello: Hello {
            writer: WRITER.to_owned(),
            options,
            memory: config.all_memory(),
            others: None,
        },
        files,
        _hold: machine.hotplug().hold(),
    })
}

/// What went wrong, of a process that is this one's own.
fn words(error: StreamError) -> String {
    match error {
        StreamError::Closed | StreamError::Lost(_) => "it ended before it had the guest".to_owned(),
        StreamError::Silent(limit) => format!("it did nothing for {} ms", limit.as_millis()),
        StreamError::Refused(why) => format!("it cannot take the guest over: {why}"),
        error => error.to_string(),
    }
}

fn verbosity() -> u8 {
    match log::max_level() {
        log::LevelFilter::Trace => 3,
        log::LevelFilter::Debug => 2,
        log::LevelFilter::Info => 1,
        _ => 0,
    }
}

/// A guest that is to go to a process that has made the machine.
struct Going {
    sender: Sender,
    /// What that process calls itself.
    name: String,
    successor: Arc<Mutex<Option<Successor>>>,
    upgrades: Arc<Upgrades>,
}

impl Going {
    /// Gives the guest of `machine`, which stands still, and is to stay so if it was `paused`.
    fn give(mut self, machine: &mut Machine, paused: bool, asked: Instant) -> Handed {
        log::debug!("upgrade: paused");
        self.upgrades.close();
        let handed = match self.send(machine, paused) {
            Ok(()) => {
                log::debug!("upgrade: ready");
                self.hand(machine, asked)
            }
            Err(why) => Handed::Back(why),
        };
        if !matches!(handed, Handed::Away(_)) {
            self.upgrades.entrance.open();
        }
        handed
    }

    /// Sends what the machine is like, and waits until the new nido could go on with it.
    fn send(&mut self, machine: &Machine, paused: bool) -> Result<(), String> {
        let mut state = describe(machine, "")?;
        let typed = self.upgrades.entrance.typed();
        let typed = Section::new(INPUT, INPUT_VERSION, &typed);
        let typed = typed.map_err(|error| error.to_string())?;
        state.sections.add(INPUT, typed);
        let state = state::encode(&state).map_err(|error| error.to_string())?;
        self.sender.state(&state).map_err(words)?;
        log::debug!("upgrade: state sent");
        self.sender.last(paused, LIMIT).map_err(words)
    }

    /// Has it go on there.
    fn hand(&mut self, machine: &Machine, asked: Instant) -> Handed {
        let claims = machine.claims();
        let given = claims
            .give_up_addresses()
            .map_err(|error| format!("{error:#}"))
            .and_then(|()| match self.sender.yours_or_never(LIMIT) {
                Fate::Running => Ok(()),
                Fate::Refused(why) | Fate::Lost(why) => Err(why),
            });
        let mut successor = self.successor.lock();
        let Err(why) = given else {
            if let Some(successor) = successor.take() {
                self.upgrades.succeed(successor);
            }
            return Handed::Away(format!(
                "upgraded to {}: the guest stood still for {} ms\n",
                self.name,
                asked.elapsed().as_millis()
            ));
        };
        // It does not run, but may have addresses still.
        if let Some(successor) = successor.as_mut() {
            successor.stop();
        }
        match claims.take_all() {
            Ok(_) => Handed::Back(why),
            Err(error) if error.downcast_ref::<BlockError>().is_some() => Handed::Unknown(format!(
                "{why}; and its disks cannot be had back ({error:#}), so the guest stands still: end whoever has them, and write `resume`"
            )),
            Err(error) => {
                log::error!("the guest goes on without its address for sockets: {error:#}");
                Handed::Back(why)
            }
        }
    }
}
