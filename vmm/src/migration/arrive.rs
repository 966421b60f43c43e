//! The target: a guest arrives from another process.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use state::Sections;

use super::dial::Listener;
use super::error::StreamError;
use super::host;
use super::link::{Link, STALL};
use super::receive::beside::{Side, beside};
use super::receive::{Item, Receiver};
use super::wire::{self, Hello, Others};
use crate::config::{Config, Way};
use crate::endpoint::Endpoint;
use crate::event::Event;
use crate::machine::claims::Claims;
use crate::memory::Memory;
use crate::socket::Places;

/// How long the source may take to say what it has, and to say anything further.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to say what it is. Others wait meanwhile.
const GREETING: Duration = Duration::from_secs(10);
/// How long one that wants to carry memory as well may take to say so. It comes with that.
const JOINING: Duration = Duration::from_secs(1);
/// How long it may take to answer, as its guest stands still.
const SOON: Duration = Duration::from_secs(10);

/// How long to wait for a connection before waiting for it again.
const LOOK: Duration = Duration::from_secs(3600);

/// A guest on its way.
pub(crate) struct Arrival {
    /// Until the source was told that nothing comes of it.
    receiver: Option<Receiver>,
    /// Connections beside that one.
    sides: Vec<Side>,
    /// Whether the source has been told that there is such a machine.
    is_accepted: bool,
    /// Whether the guest was paused, and is to stay so.
    pub(crate) paused: bool,
}

/// Waits at `from` for a source, for as long as it takes, and hears what machine it has: the one that
/// `machine` makes of its options, and the guest that is to come.
///
/// # Errors
/// There is nowhere to wait, or what has come is no guest.
pub(crate) fn wait(
    from: &Endpoint,
    machine: impl FnOnce(&[String]) -> anyhow::Result<Config>,
    places: &Places,
) -> anyhow::Result<(Config, Arrival)> {
    let place = || format!("--incoming {from}");
    let listener = from.listen().with_context(place)?;
    places.lock().extend(listener.place().cloned());
    match listener.port() {
        Some(port) => log::info!("waiting for a machine at {from} (port {port})"),
        None => log::info!("waiting for a machine at {from}"),
    }
    let (receiver, hello) = first_guest(&listener).with_context(place)?;
    log::info!("a machine comes from {}", shown(&hello.writer));
    let mut arrival = Arrival {
        receiver: Some(receiver),
        sides: Vec::new(),
        is_accepted: false,
        paused: false,
    };
    if let Some(others) = &hello.others {
        let joined = join(&listener, others).with_context(place);
        arrival.sides = arrival.told(joined)?;
    }
    // What comes to have that name is somebody else's.
    places
        .lock()
        .retain(|place| Some(place) != listener.place());
    drop(listener);
    let config = machine(&hello.options).and_then(|config| {
        if let Some(why) = config.immovable(Way::Moved) {
            anyhow::bail!("the machine of --incoming: {why}");
        }
        anyhow::ensure!(
            config.all_memory() == hello.memory,
            "the machine of --incoming has {} bytes of memory by its options, and {} by its source",
            config.all_memory(),
            hello.memory
        );
        Ok(Config {
            claimed_later: true,
            ..config
        })
    });
    let config = arrival.told(config)?;
    Ok((config, arrival))
}

/// What the first one has that connects and has anything.
fn first_guest(listener: &Listener) -> anyhow::Result<(Receiver, Hello)> {
    let mut told = false;
    loop {
        let Some(socket) = listener.accept(LOOK)? else {
            continue;
        };
        match Receiver::accept(Link::new(socket, STALL)?, GREETING) {
            Ok(guest) => return Ok(guest),
            // Nobody, or no nido: whoever looks which ports are open. One is told of.
            Err(error @ StreamError::Wrong(_)) if !std::mem::replace(&mut told, true) => {
                log::warn!("no machine came: {}", shown(&error.to_string()));
            }
            Err(error) => log::debug!("no machine came: {}", shown(&error.to_string())),
        }
    }
}

/// The connections beside the first one. Others may come in between.
fn join(listener: &Listener, others: &Others) -> anyhow::Result<Vec<Side>> {
    let limit = GREETING + JOINING * others.count;
    let (mut sides, until) = (Vec::new(), Instant::now() + limit);
    for _ in 0..others.count {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            anyhow::ensure!(
                !left.is_zero(),
                "the source has told of {} connections more, and made {} within {} s",
                others.count,
                sides.len(),
                limit.as_secs()
            );
            let Some(socket) = listener.accept(left)? else {
                continue;
            };
            match Side::join(Link::new(socket, STALL)?, &others.key, left.min(JOINING)) {
                Ok(side) => break sides.push(side),
                Err(error) => log::debug!("not of this machine: {}", shown(&error.to_string())),
            }
        }
    }
    Ok(sides)
}

/// A text that may have words of the other side in it: not too many, and nothing that a terminal obeys.
fn shown(text: &str) -> String {
    wire::decode_text(wire::encode_text(text))
}

impl Arrival {
    /// A guest that is on its way from there.
    #[cfg(test)]
    pub(super) fn of(receiver: Receiver) -> Self {
        Self {
            receiver: Some(receiver),
            sides: Vec::new(),
            is_accepted: true,
            paused: false,
        }
    }

    /// The same outcome. The source is told of a failure: its guest goes on there. What it has sent may
    /// be in the words for it, which are made fit for a terminal here.
    pub(crate) fn told<T>(&mut self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        outcome.map_err(|error| {
            let text = shown(&format!("{error:#}"));
            if let Some(receiver) = self.receiver.take() {
                // It may be why it failed.
                let _ = match self.is_accepted {
                    true => receiver.failed(&text),
                    false => receiver.refused(&text),
                };
            }
            anyhow::Error::msg(text)
        })
    }

    /// Receives all of `memory`, which is that of the machine that was asked for, and what the parts of
    /// the machine are like.
    ///
    /// # Errors
    /// What came is wrong, or there is no more.
    pub(crate) fn receive(&mut self, memory: &Memory, claims: &Claims) -> anyhow::Result<Sections> {
        let receiver = self.receiver()?;
        receiver.accepted(&host::place(claims, claims.are_in_use()))?;
        log::debug!("migration: accepted");
        self.is_accepted = true;
        let sides = std::mem::take(&mut self.sides);
        let receiver = self.receiver()?;
        let (state, paused) = beside(sides, &**memory, PATIENCE, || {
            loop {
                match receiver.next(&**memory, PATIENCE)? {
                    Item::Round(number) => log::debug!("migration: round {number}"),
                    Item::All { state, paused } => return Ok((state, paused)),
                }
            }
        })?;
        self.paused = paused;
        Ok(state::decode(&state)?.sections)
    }

    /// Has the guest be this process's, which has all of it and can run it at once, unless `end` says
    /// that this process is to end.
    ///
    /// # Errors
    /// It is the source's, and stays there.
    pub(crate) fn take_over(
        &mut self,
        claims: &Claims,
        end: impl FnOnce() -> Option<Event>,
    ) -> anyhow::Result<()> {
        let receiver = self.receiver()?;
        receiver.ready()?;
        log::debug!("migration: ready");
        receiver
            .wait_for_yours(SOON)
            .context("the guest stays where it was")?;
        log::debug!("migration: yours");
        // From here on its guest would end with it.
        if let Some(event) = end() {
            anyhow::bail!("this nido is to end before the guest is there: {event}");
        }
        claims.take_over()?;
        let receiver = self.receiver.take().context("the guest was not given")?;
        // Said before the guest runs: a source that does not hear it, and sees this process end, knows that
        // nothing has run.
        if let Err(error) = receiver.running() {
            log::warn!("the source of the guest cannot be told that it runs here: {error}");
        }
        log::debug!("migration: running");
        Ok(())
    }

    fn receiver(&mut self) -> anyhow::Result<&mut Receiver> {
        self.receiver
            .as_mut()
            .context("the connection was given up")
    }
}

#[cfg(test)]
mod arrive_test;
