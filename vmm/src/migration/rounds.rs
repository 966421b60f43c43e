//! Sending memory while the guest runs, round by round, until what is left can be sent while it stands
//! still.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::begin::Begun;
use super::give::{End, Parcel};
use super::holding::Holding;
use super::host;
use super::leave::Here;
use super::pace::{Next, Pace, Round};
use super::progress::Progress;
use super::send;
use super::syncing::Syncing;
use super::wire::PAGE;
use crate::config::MigrateConfig;
use crate::suspension::Wish;

/// How long the target may take to write what is on its way to its memory, and how much longer for each
/// GiB of that.
const WRITING: Duration = Duration::from_secs(30);
const WRITING_MORE: Duration = Duration::from_secs(2);
/// How long to wait for disks before the guest is looked at again.
const LOOK: Duration = Duration::from_millis(50);
/// Most pages that are sent together.
const TOGETHER: usize = 512;
/// How many are, so that each of so many connections has some, but a frame's worth.
pub(super) fn together(streams: u32) -> usize {
    (TOGETHER / usize::try_from(streams).unwrap_or(1).max(1)).max(64)
}

/// How often the guest may turn out to be not as quiet as it seemed, or not stop.
const ENDS: u32 = 5;

/// See the module.
pub(super) struct Rounds<'a> {
    wish: &'a MigrateConfig,
    here: &'a Here,
    progress: &'a Arc<Progress>,
    begun: Begun,
    /// What the main thread takes at the end, and may give back.
    parcel: Arc<Mutex<Parcel>>,
    /// If the target may not see what the guest wrote before it is on storage.
    syncing: Option<Syncing>,
    pace: Pace,
    holding: Option<Holding>,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(
        wish: &'a MigrateConfig,
        here: &'a Here,
        progress: &'a Arc<Progress>,
        begun: Begun,
        saving: Duration,
        sender: send::Sender,
    ) -> Self {
        let place = host::place(&begun.claims, false);
        let syncing = !host::is_told_by_locks(&place, sender.place());
        let parcel = Parcel::new(wish, progress, sender, &place);
        Self {
            wish,
            here,
            progress,
            parcel: Arc::new(Mutex::new(parcel)),
            syncing: syncing.then(|| Syncing::new(&begun.claims)),
            pace: Pace::new(wish.pause, saving * 2, wish.slow_down),
            holding: None,
            begun,
        }
    }

    /// Sends all, and gives the guest away.
    ///
    /// # Errors
    /// Why it stays here.
    pub(super) fn run(mut self) -> Result<String, String> {
        self.parcel.lock().pages = self.begun.touched()?;
        let mut ends = 0;
        loop {
            self.until_little_is_left()?;
            let parcel = Arc::clone(&self.parcel);
            parcel.lock().prepare(self.pace.room());
            let log = Arc::clone(&self.begun.log);
            let give = move |machine: &mut _, paused| parcel.lock().give(machine, &log, paused);
            let answer = self.here.ask(Wish::HandOver(Box::new(give)));
            let Err(why) = answer else {
                return answer;
            };
            let end = self.parcel.lock().end;
            ends += 1;
            if end == End::Final || ends == ENDS || self.progress.is_given_up() {
                return Err(why);
            }
            log::debug!("migration: once more, as {why}");
        }
    }

    /// Sends rounds until the rest fits into the pause.
    fn until_little_is_left(&mut self) -> Result<(), String> {
        loop {
            let round = self.round()?;
            let left = round.left * PAGE as u64;
            let is_ready = self.is_on_storage(Duration::ZERO)?;
            let next = self.pace.next(&round, is_ready);
            self.progress.tell(|figures| {
                figures.rate = self.pace.rate();
                figures.pause = self.pace.pause(left);
                figures.remaining = left;
            })?;
            match next {
                Next::Round => self.not_yet(),
                Next::Wait => drop(self.is_on_storage(LOOK)?),
                Next::Hold(percent) => {
                    self.hold(percent)?;
                    self.not_yet();
                }
                Next::HandOver => {
                    // Should it come back, there is more to be written.
                    self.not_yet();
                    return Ok(());
                }
                Next::Never => return Err(self.never(left)),
            }
        }
    }

    /// Waits for `limit` at most. Whether nothing but the guest has to be waited for.
    fn is_on_storage(&mut self, limit: Duration) -> Result<bool, String> {
        match &mut self.syncing {
            Some(syncing) => syncing.is_done(limit),
            None => Ok(true),
        }
    }

    /// The end is further away: what the guest writes to its disks until then is worth to be written.
    fn not_yet(&mut self) {
        if let Some(syncing) = &mut self.syncing {
            syncing.again();
        }
    }

    /// Sends the pages that are to be sent, and takes those that were written meanwhile.
    fn round(&mut self) -> Result<Round, String> {
        let (to, progress) = (&self.wish.to, self.progress);
        let failed =
            |error: super::error::StreamError| format!("{to}: {error}; the guest stays here");
        if let Some(syncing) = &mut self.syncing {
            syncing.begin()?;
        }
        let mut parcel = self.parcel.lock();
        let Parcel {
            sender,
            pages,
            rounds,
            ..
        } = &mut *parcel;
        let began = Instant::now();
        *rounds += 1;
        let total = pages.count() * PAGE as u64;
        progress.tell(|figures| {
            figures.round = *rounds;
            figures.remaining = total;
        })?;
        let advance = |done| {
            let left = total.saturating_sub(done * PAGE as u64);
            match progress.tell(|figures| figures.remaining = left) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let sent = sender
            .pages(
                &*self.begun.memory,
                pages.runs(together(self.wish.streams)),
                advance,
            )
            .map_err(failed)?;
        let gib = u32::try_from(total >> 30).unwrap_or(u32::MAX);
        let writing = WRITING.saturating_add(WRITING_MORE.saturating_mul(gib));
        sender.round(*rounds, writing).map_err(failed)?;
        log::debug!("migration: round {rounds}");
        progress.tell(|figures| figures.sent = sender.sent())?;
        let took = began.elapsed();
        *pages = self
            .begun
            .log
            .take()
            .map_err(|error| format!("KVM does not tell what the guest writes: {error}"))?;
        Ok(Round {
            data: sent.data,
            zeros: sent.zeros,
            took,
            left: pages.count(),
        })
    }

    /// Has vCPUs be held for more of the time.
    fn hold(&mut self, percent: u32) -> Result<(), String> {
        self.holding = None;
        let holding = Holding::start(percent, &self.begun.brake, &self.here.events);
        let holding = holding.map_err(|error| format!("the host has no thread: {error}"))?;
        self.holding = Some(holding);
        self.progress.tell(|figures| figures.slowed = percent)
    }

    /// Why it leads nowhere.
    fn never(&self, left: u64) -> String {
        let remedy = match self.wish.slow_down {
            true => "allow a longer one (pause=MS)",
            false => {
                "allow a longer one (pause=MS), or have the guest be slowed down (slow-down=on)"
            }
        };
        format!(
            "the guest writes memory faster than {} takes it ({} MiB/s): {} MiB would still be sent while it stands still, which takes {} ms, where {} are the limit; {remedy}",
            self.wish.to,
            self.pace.rate() >> 20,
            left >> 20,
            self.pace.pause(left).as_millis(),
            self.wish.pause.as_millis(),
        )
    }
}
