//! The end at the source: the guest stands still, what is left of it is sent, and it is given away, or is
//! not.
//!
//! Until the target is [told that the guest is its own](super::send::Sender::yours) it is this process's:
//! whatever fails, it goes on here. From then on it is the target's, if that says that it runs. Should the
//! connection be lost in between, [the locks of the disks tell](super::arbiter).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arbiter::hand;
use super::error::StreamError;
use super::host;
use super::progress::Progress;
use super::rounds::together;
use super::send;
use super::syncing::Syncing;
use super::time_limit::TimeLimit;
use super::wire::PAGE;
use crate::config::MigrateConfig;
use crate::described::describe;
use crate::endpoint::Endpoint;
use crate::machine::claims::Addresses;
use crate::machine::{Handed, Machine};
use crate::memory::dirty::DirtyLog;
use crate::memory::pages::Pages;

/// The guest stands still for no longer than this, or than so many times the pause that is wanted, until
/// the target is ready.
const LONGEST: Duration = Duration::from_secs(10);
const TIMES: u32 = 20;
/// Storage may take no longer than this of it. The target hears nothing meanwhile, and waits for longer.
const STORAGE: Duration = Duration::from_secs(40);
/// How long to wait for it before looking whether the guest is to go anywhere.
const LOOK: Duration = Duration::from_millis(10);
/// What is left may be so many times what seemed to be, and so much more.
const MORE: u64 = 4;
const SLACK: u64 = 16 << 20;

/// What is to be given, and by what. The client's thread has it while the guest runs, the main thread at
/// the end.
pub(super) struct Parcel {
    to: Endpoint,
    pub(super) sender: send::Sender,
    /// Pages that are still to be sent, besides what the log has.
    pub(super) pages: Pages,
    pub(super) rounds: u32,
    /// Most pages that are sent together.
    together: usize,
    pub(super) end: End,
    progress: Arc<Progress>,
    /// Whether one of both alone can have the locks of the disks. Then both see the same files, too.
    is_told_by_locks: bool,
    addresses: Addresses,
    /// How long the guest may stand still until the target is ready.
    limit: Duration,
    /// Most bytes that may be left.
    most: u64,
    /// When the guest was asked to stand still.
    asked: Instant,
}

/// How an attempt to give the guest away has ended, if it is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The guest did not stop, or has written more than it seemed: it may be tried again.
    Early,
    /// There is nothing more to be tried.
    Final,
}

impl Parcel {
    /// For a target that `sender` reaches, from this `place`.
    pub(super) fn new(
        wish: &MigrateConfig,
        progress: &Arc<Progress>,
        sender: send::Sender,
        place: &str,
    ) -> Self {
        Self {
            to: wish.to.clone(),
            addresses: match host::is_same_host(place, sender.place()) {
                true => Addresses::GiveUp,
                false => Addresses::Keep,
            },
            is_told_by_locks: host::is_told_by_locks(place, sender.place()),
            sender,
            pages: Pages::default(),
            rounds: 0,
            together: together(wish.streams),
            end: End::Early,
            progress: Arc::clone(progress),
            limit: LONGEST.max(wish.pause * TIMES),
            most: 0,
            asked: Instant::now(),
        }
    }

    /// The guest is about to be asked to stand still: `room` bytes are expected to be left at the most.
    pub(super) fn prepare(&mut self, room: u64) {
        // The guest may not even stop.
        self.end = End::Early;
        self.most = room.saturating_mul(MORE).saturating_add(SLACK);
        self.asked = Instant::now();
    }

    /// Gives the guest of `machine`, which stands still, and is to stay so if it was `paused`.
    pub(super) fn give(&mut self, machine: &mut Machine, log: &DirtyLog, paused: bool) -> Handed {
        log::debug!("migration: paused");
        self.end = End::Final;
        if let Err(why) = self.send_rest(machine, log, paused) {
            return Handed::Back(format!("{why}; the guest stays here"));
        }
        log::debug!("migration: ready");
        // Too late to be given up from here on.
        if let Err(why) = self.progress.give() {
            return Handed::Back(why);
        }
        let claims = machine.claims();
        let (locks, addresses) = (self.is_told_by_locks, self.addresses);
        match hand(&self.to, &mut self.sender, claims, locks, addresses) {
            Handed::Away(_) => Handed::Away(self.farewell()),
            handed => handed,
        }
    }

    /// Sends what is left, until the target says that it has all.
    fn send_rest(
        &mut self,
        machine: &mut Machine,
        log: &DirtyLog,
        paused: bool,
    ) -> Result<(), String> {
        // It may still write to memory, by the remapping unit.
        let state = describe(machine, "")?;
        let state = state::encode(&state).map_err(|error| error.to_string())?;
        let written = log.take();
        let written = written
            .map_err(|error| format!("KVM does not tell what the guest has written: {error}"))?;
        self.pages.merge(&written);
        let left = self.pages.count() * PAGE as u64;
        if left > self.most {
            // All that was taken is still to be sent, and is.
            self.end = End::Early;
            return Err(format!(
                "{} MiB were written in the moment before the guest stood still, which take too long",
                left >> 20
            ));
        }
        // From here on the stream has an end, which can be no round.
        let limit = TimeLimit::start(self.limit, self.sender.breaker())?;
        let sent = self.send_all(machine, &state, paused);
        match limit.stop() {
            true => Err(format!(
                "{}: the guest stood still for {} s, and the target was not ready",
                self.to,
                self.limit.as_secs()
            )),
            false => sent,
        }
    }

    fn send_all(&mut self, machine: &Machine, state: &[u8], paused: bool) -> Result<(), String> {
        let to = &self.to;
        let failed = |error: StreamError| format!("{to}: {error}");
        // What was written since the last round.
        let mut syncing = Syncing::new(machine.claims());
        if !self.is_told_by_locks {
            syncing.begin()?;
        }
        let until = Instant::now() + self.limit.min(STORAGE);
        let progress = &self.progress;
        let advance = |_| match progress.is_given_up() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let runs = self.pages.runs(self.together);
        self.sender
            .pages(&**machine.memory(), runs, advance)
            .map_err(failed)?;
        self.sender.gather(self.limit).map_err(failed)?;
        self.sender.state(state).map_err(failed)?;
        log::debug!("migration: state sent");
        while !self.is_told_by_locks && !syncing.is_done(LOOK)? {
            if progress.is_given_up() {
                return Err(failed(StreamError::GivenUp));
            }
            if Instant::now() >= until {
                return Err(
                    "the guest's disks do not become stable while it stands still; see whether their storage is busy"
                        .to_owned(),
                );
            }
        }
        self.sender.last(paused, self.limit).map_err(failed)
    }

    /// What there is to tell when it is over.
    fn farewell(&self) -> String {
        format!(
            "the guest runs at {}: it stood still for {} ms; {} rounds, {} MiB in {:.1} s\n",
            self.to,
            self.asked.elapsed().as_millis(),
            self.rounds,
            self.sender.sent() >> 20,
            self.progress.elapsed().as_secs_f64(),
        )
    }
}
