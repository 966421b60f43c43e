//! The new side: a process that was started to have the guest of the one that has started it.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use state::Sections;

use super::handover::Handover;
use super::upgrades::Upgrades;
use super::{descriptors, keeper};
use crate::cli;
use crate::config::{Config, Way};
use crate::entrance::Typed;
use crate::event_loop::{Handle, Subscription};
use crate::host_files::{Given, Role};
use crate::machine::claims::Claims;
use crate::memory::Memory;
use crate::migration::{Item, Link, Receiver};
use crate::socket::Socket;
use crate::{logger, terminal};

/// What the state calls what was typed.
pub(super) const INPUT: &str = "input";
pub(super) const INPUT_VERSION: u32 = 1;

/// How long the old nido may take to say something while the guest runs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same while it stands still.
const SOON: Duration = Duration::from_secs(10);

/// See the module. Whatever fails before it has the guest ends this process at once: nothing of what it was
/// given is its own until then, and must not be given back as if it were.
pub(crate) struct Heir {
    /// Until the guest is this one's, or will never be.
    receiver: Option<Receiver>,
    is_accepted: bool,
    options: Vec<String>,
    memory: u64,
    given: Given,
    handover: Handover,
    paused: bool,
}

/// What has come by the descriptor `number`.
///
/// # Errors
/// Whoever has started this is no nido of the same handover.
pub(crate) fn receive(number: i32) -> anyhow::Result<Heir> {
    let socket =
        UnixStream::from(descriptors::inherited(number).context("nobody hands a guest over")?);
    let (handover, files) = Handover::receive(&socket)?;
    let link = Link::new(socket, SOON)?;
    let (receiver, hello) = Receiver::accept(link, SOON)?;
    Ok(Heir {
        receiver: Some(receiver),
        is_accepted: false,
        options: hello.options,
        memory: hello.memory,
        given: Given::new(files),
        handover,
        paused: false,
    })
}

impl Heir {
    /// How often `-v` was given.
    pub(crate) fn verbosity(&self) -> u8 {
        self.handover.verbosity
    }

    /// When the machine was started.
    pub(crate) fn started(&self) -> Instant {
        let now = Instant::now();
        let uptime = Duration::from_millis(self.handover.uptime);
        now.checked_sub(uptime).unwrap_or(now)
    }

    /// The control socket, which is the old nido's for now.
    pub(crate) fn socket(&self) -> Option<Socket> {
        let (path, device, inode) = self.handover.control.clone()?;
        let listener =
            UnixListener::from(std::os::fd::OwnedFd::from(self.given.take(&Role::Control)?));
        Some(Socket::of_another(listener, path, (device, inode)))
    }

    /// Takes nothing from outside before the guest is this process's.
    pub(crate) fn prepare(&self, upgrades: &Upgrades) {
        upgrades.entrance.close();
        if let Some(keeper) = self.given.take(&Role::Keeper) {
            upgrades.set_keeper(keeper);
        }
    }

    /// The machine.
    pub(crate) fn config(&mut self) -> anyhow::Result<Config> {
        log::debug!("upgrade: a guest comes from {}", self.handover.writer);
        let config = cli::configuration(&self.options, "the machine that is handed over");
        let config = config.map_err(anyhow::Error::from).and_then(|config| {
            if let Some(why) = config.immovable(Way::Upgraded) {
                anyhow::bail!("{why}");
            }
            anyhow::ensure!(
                config.all_memory() == self.memory,
                "its memory has another size"
            );
            Ok(Config {
                // By another process until then.
                claimed_later: true,
                ..config
            })
        });
        self.told(config)
    }

    /// What the machine is to have in place of what it would open.
    pub(crate) fn take_given(&mut self) -> Given {
        std::mem::take(&mut self.given)
    }

    /// The same outcome. Of a failure the old nido is told, and this process ends.
    pub(crate) fn told<T>(&mut self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        let Err(error) = outcome else {
            return outcome;
        };
        // The guest is this one's, and ends in an orderly way.
        let Some(receiver) = self.receiver.take() else {
            return Err(error);
        };
        let text = format!("{error:#}");
        let told = match self.is_accepted {
            true => receiver.failed(&text),
            false => receiver.refused(&text),
        };
        if told.is_err() {
            logger::last_words(format!("nido: error: taking a guest over: {text}\n"));
        }
        log::logger().flush();
        std::process::exit(crate::code::FAILED.into())
    }

    /// Waits until the guest stands still, and hears what the parts of the machine are like.
    ///
    /// # Errors
    /// It does not come, or is not what this nido understands.
    pub(crate) fn receive(
        &mut self,
        memory: &Memory,
        upgrades: &Upgrades,
    ) -> anyhow::Result<Sections> {
        let receiver = self
            .receiver
            .as_mut()
            .context("the old nido was given up")?;
        receiver.accepted("")?;
        self.is_accepted = true;
        let state = match receiver.next(&**memory, PATIENCE)? {
            Item::All { state, paused } => {
                self.paused = paused;
                state
            }
            Item::Round(_) => anyhow::bail!("memory comes, which is here already"),
        };
        log::debug!("upgrade: the state has come");
        let mut sections = state::decode(&state)?.sections;
        let typed = sections.take(INPUT).context(INPUT)?;
        let typed: Typed = typed.read(INPUT, INPUT_VERSION).context(INPUT)?;
        upgrades.entrance.put_typed(typed);
        Ok(sections)
    }

    /// Has the guest be this process's, which can run it at once. Whether it is to stay paused.
    ///
    /// # Errors
    /// It stays with the old nido.
    pub(crate) fn take_over(
        &mut self,
        claims: &Claims,
        upgrades: &Upgrades,
    ) -> anyhow::Result<bool> {
        let receiver = self
            .receiver
            .as_mut()
            .context("the old nido was given up")?;
        receiver.ready()?;
        receiver.wait_for_yours(SOON)?;
        claims.take_given()?;
        let receiver = self.receiver.take().context("the old nido was given up")?;
        // Said before the guest runs: if it cannot be said, the old nido has the guest.
        if let Err(error) = receiver.running() {
            logger::last_words(format!("nido: error: taking a guest over: {error}\n"));
            std::process::exit(crate::code::FAILED.into());
        }
        if let Some(keeper) = upgrades.keeper() {
            keeper::announce(keeper);
        }
        if let Some(saved) = &self.handover.terminal {
            terminal::take_over(saved);
        }
        if let Some((place, _)) = upgrades.control() {
            place.set_ours(true);
        }
        upgrades.entrance.open();
        log::debug!("upgrade: running");
        Ok(self.paused)
    }
}

/// Calls `arrived` with the number of each signal that the process that was started first tells of by `line`, or
/// with none when that has ended.
///
/// # Errors
/// When the host has no descriptor left.
pub(crate) fn watch_keeper(
    event_loop: &Handle,
    line: &File,
    arrived: impl FnMut(Option<i32>) + Send + 'static,
) -> std::io::Result<Subscription> {
    let line = line.try_clone()?;
    let sources = [Events::new(&line, EventSet::IN)];
    event_loop.subscribe(Watcher { line, arrived }, &sources)
}

fn is_passing(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{Interrupted, WouldBlock};
    matches!(kind, Interrupted | WouldBlock)
}

struct Watcher<F> {
    line: File,
    arrived: F,
}

impl<F: FnMut(Option<i32>)> MutEventSubscriber for Watcher<F> {
    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        use std::io::Read as _;
        let mut byte = [0];
        match self.line.read(&mut byte) {
            // Another process has read it, for a moment.
            Err(error) if is_passing(error.kind()) => {}
            Ok(0) | Err(_) => {
                let _ = ops.remove(Events::empty(&self.line));
                (self.arrived)(None);
            }
            Ok(_) => (self.arrived)(Some(byte[0].into())),
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}
