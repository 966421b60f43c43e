//! The source: a guest leaves for another process.
//!
//! It runs while its memory is sent, and what it has written meanwhile is sent again, [round by
//! round](super::rounds). Then it stands still, and [the rest follows](super::give).

use std::fs;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::begin::{Begun, begin, find};
use super::link::{Link, STALL};
use super::progress::{GIVEN_UP, Migrations, Progress};
use super::rounds::Rounds;
use super::send;
use super::wire::Others;
use crate::config::MigrateConfig;
use crate::endpoint::Endpoint;
use crate::event::Event;
use crate::machine::{HotPlug, Machine, Unplugged};
use crate::suspension::{Suspension, Wish};

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the target may take to make the machine, of which it may allocate all memory.
const MAKING: Duration = Duration::from_secs(60);

/// How often it is tried to begin, once the target has made the machine, and after how long.
const BEGINNINGS: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// Where the kernel gives random texts, each time another one.
const UUID: &str = "/proc/sys/kernel/random/uuid";

/// The guest that is to leave, by the main thread.
pub(crate) struct Here {
    pub(crate) suspension: Arc<Suspension>,
    pub(crate) events: Sender<Event>,
    pub(crate) hotplug: Arc<HotPlug>,
}

impl Here {
    /// Has the main thread do that. A migration outlives its client.
    pub(crate) fn ask(&self, wish: Wish) -> Result<String, String> {
        let here = Arc::new(());
        self.suspension
            .ask(wish, Arc::downgrade(&here), &self.events)
    }

    /// Has the main thread do `what` with the machine, which stands still for it.
    pub(crate) fn work<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Machine) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let here = Arc::new(());
        self.suspension
            .work(what, Arc::downgrade(&here), &self.events)
    }
}

/// Has the guest go on where `wish` says. Returns what to tell the client; the guest is another process's
/// then, and this one ends.
///
/// # Errors
/// Why not. The guest is here, as before, unless it says otherwise.
pub(crate) fn leave(
    wish: &MigrateConfig,
    here: &Here,
    migrations: &Migrations,
) -> Result<String, String> {
    let turn = migrations.begin(&wish.to)?;
    let progress = &turn.progress;
    let left = without_devices(wish, here, progress);
    left.inspect(|text| log::info!("{}", text.trim_end()))
        .inspect_err(|why| log::warn!("migrating to {}: {why}", wish.to))
}

/// Has the guest let go of the devices that are not to come along before it goes, and has it have them again if
/// it stays.
fn without_devices(
    wish: &MigrateConfig,
    here: &Here,
    progress: &Arc<Progress>,
) -> Result<String, String> {
    let mut unplugged = Unplugged::new(&here.hotplug);
    let outcome = take_out(wish, progress, &mut unplugged).and_then(|()| run(wish, here, progress));
    outcome.map_err(|why| {
        let why = match progress.is_given_up() {
            true => GIVEN_UP.to_owned(),
            false => why,
        };
        why + &unplugged.give_back()
    })
}

fn take_out(
    wish: &MigrateConfig,
    progress: &Progress,
    unplugged: &mut Unplugged<'_>,
) -> Result<(), String> {
    if wish.unplug.is_empty() {
        return Ok(());
    }
    // Nobody is disturbed for a place that is not there.
    drop(connect(&wish.to)?);
    unplugged.take_all(&wish.unplug, || progress.tell(|_| {}))
}

/// What is said of a device that is in the way, and can be out of it for a migration.
fn with_remedy(why: String, hotplug: &HotPlug) -> String {
    let mut plugged = hotplug.plugged().into_iter();
    let name = plugged.find_map(|device| {
        let name = device.id.or(device.bus)?;
        let is_named = why.contains(&format!("`device-del {name}`"));
        (is_named && !why.contains("unplug=")).then_some(name)
    });
    match name {
        Some(name) => format!("{why}, or `unplug={name}` behind `migrate`"),
        None => why,
    }
}

fn run(wish: &MigrateConfig, here: &Here, progress: &Arc<Progress>) -> Result<String, String> {
    let to = &wish.to;
    let failed = |error: super::error::StreamError| format!("{to}: {error}; the guest stays here");
    let link = connect(to)?;
    let breaker = link.breaker();
    progress.set_interrupt(Box::new(move || breaker.give_up()));
    let mut found = find(here).map_err(|why| with_remedy(why, &here.hotplug))?;
    found.hello.others = others(wish.streams)?;
    let mut sender = send::Sender::offer(link, &found.hello).map_err(failed)?;
    if let Some(others) = &found.hello.others {
        for _ in 0..others.count {
            // Whoever gives it up meanwhile ends the first connection only.
            progress.tell(|_| ())?;
            sender.join(connect(to)?, &others.key).map_err(failed)?;
        }
        let breaker = sender.breaker();
        progress.set_interrupt(Box::new(move || breaker.give_up()));
    }
    sender.accepted(MAKING).map_err(failed)?;
    log::debug!("migration: accepted");
    let begun = begin_soon(here, progress)?;
    Rounds::new(wish, here, progress, begun, found.saving, sender).run()
}

/// Begins as soon as the guest stands still for a moment, which it may be too busy for.
fn begin_soon(here: &Here, progress: &Progress) -> Result<Begun, String> {
    let mut tries = BEGINNINGS;
    loop {
        match begin(here) {
            Err(why) if tries > 1 && !progress.is_given_up() => {
                log::debug!("migration: once more, as {why}");
                thread::sleep(AGAIN);
                tries -= 1;
            }
            outcome => return outcome,
        }
    }
}

fn connect(to: &Endpoint) -> Result<Link, String> {
    let socket = to.connect(CONNECT).map_err(|error| {
        format!("{to}: {error}; start `nido --incoming` there first, and see whether it can be reached from here")
    })?;
    Link::new(socket, STALL).map_err(|error| format!("{to}: {error}"))
}

/// What the target is told of connections beside the first one.
fn others(streams: u32) -> Result<Option<Others>, String> {
    let Some(count) = streams.checked_sub(1).filter(|count| *count != 0) else {
        return Ok(None);
    };
    let key = fs::read_to_string(UUID)
        .map_err(|error| format!("{UUID}: {error}; mount /proc, or migrate without `streams`"))?;
    let key = key.trim().to_owned();
    Ok(Some(Others { count, key }))
}
