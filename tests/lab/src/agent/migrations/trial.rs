//! One migration of a guest that was saved, in which something is lost: afterwards it runs on one side, or
//! on none if the side that had it was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::nido::Nido;
use super::proxy::{Event, Gate, Keeper, Place, Proxy};
use super::{Journey, LOOK, SOON, disks_are_locked, start};
use crate::agent::log::{Line, Log, read_lines};
use crate::agent::moved::{copy_disks, outcome_of};
use crate::agent::session::{last_line, type_line};
use crate::judge::is_fatal_line;
use crate::protocol::GuestLine;

/// Time until it is clear who has the guest: each side may wait for the other for a while.
const SETTLED: Duration = Duration::from_secs(60);
/// Time for a target to hear what was sent to it.
const HEARING: Duration = Duration::from_millis(500);
/// Time for a source to end whose guest is away.
const FAREWELL: Duration = Duration::from_secs(4);
/// Time for the rest of the guest's plan.
const FINISHED: Duration = Duration::from_secs(90);

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Target,
}

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    /// When nido says that it has got so far.
    Step(&'static str),
    /// When this frame is on its way. It arrives afterwards.
    Frame(Place),
    /// So long after it was asked for.
    After(Duration),
}

/// What is lost.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    Nothing,
    Killed(Side, Moment),
    /// It ends before this frame, or in the middle of it.
    Connection(Place, bool),
}

impl Loss {
    /// In words, for people and names of directories.
    pub(super) fn name(self) -> String {
        match self {
            Self::Nothing => "undisturbed".to_owned(),
            Self::Killed(side, moment) => {
                let side = format!("{side:?}").to_lowercase();
                match moment {
                    Moment::Step(step) => format!("{side}-at-{}", step.replace(' ', "-")),
                    Moment::Frame(Place { kind, .. }) => format!("{side}-at-{kind:#04x}"),
                    Moment::After(time) => format!("{side}-after-{}us", time.as_micros()),
                }
            }
            Self::Connection(Place { kind, .. }, amid) => {
                let place = if amid { "amid" } else { "before" };
                format!("cut-{place}-{kind:#04x}")
            }
        }
    }

    /// What happens to a connection for that, and who keeps it if it is held.
    fn event(self) -> Option<(Place, Event, Option<Keeper>)> {
        match self {
            Self::Connection(place, amid) => Some((place, Event::Cut { amid }, None)),
            Self::Killed(_, Moment::Frame(place)) => {
                let (gate, keeper) = Gate::new();
                Some((place, Event::Held(gate), Some(keeper)))
            }
            Self::Nothing | Self::Killed(..) => None,
        }
    }

    /// Who is to have the guest, as far as that is certain.
    fn fate(self) -> Option<Fate> {
        let settled = |place: Place| place.kind == RUNNING;
        match self {
            Self::Nothing => Some(Some(Side::Target)),
            // Who is first to have the locks has it.
            Self::Connection(place, _) if settled(place) => None,
            Self::Connection(..) => Some(Some(Side::Source)),
            Self::Killed(Side::Source, Moment::Frame(place)) => {
                let given = settled(place) || place.kind == YOURS;
                Some(given.then_some(Side::Target))
            }
            Self::Killed(Side::Target, Moment::Frame(place)) => {
                Some((!settled(place)).then_some(Side::Source))
            }
            Self::Killed(_, Moment::Step(_) | Moment::After(_)) => None,
        }
    }
}

/// Who has the guest when all is over.
pub(super) type Fate = Option<Side>;

/// A nido and what its guest says.
struct Party {
    nido: Nido,
    keyboard: ChildStdin,
    lines: Receiver<Line>,
}

impl Party {
    fn of(mut nido: Nido) -> Result<Self> {
        let (keyboard, screen) = nido.terminal()?;
        let (sender, lines) = mpsc::channel();
        read_lines(screen, sender);
        Ok(Self {
            nido,
            keyboard,
            lines,
        })
    }

    /// Has the guest end what it is at, and all of its plan.
    fn finish(&mut self, console: &Path) -> Result<()> {
        let mut log = Log::create(console)?;
        type_line(&mut self.keyboard, "ok");
        let until = Instant::now() + FINISHED;
        let (mut outcomes, mut ended) = (Vec::new(), false);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    log.write(&line);
                    let broken = is_fatal_line(&line.text);
                    ensure!(!broken, "the guest's console: {}", line.text);
                    let said = GuestLine::parse(&line.text);
                    ended |= matches!(said, Some(GuestLine::End(_)));
                    outcomes.extend(said.and_then(|said| outcome_of(&said)));
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!("the guest does not end: {outcomes:?}"),
            }
        }
        let status = self.nido.wait_for_end(SOON)?.context("nido goes on")?;
        let right = outcomes.iter().all(|outcome| outcome.ends_with(": true"));
        ensure!(
            right && ended && !outcomes.is_empty() && status.success(),
            "the guest: {outcomes:?}, nido: {status}: {}",
            last_line(&self.nido.messages)
        );
        Ok(())
    }
}

/// What trials have in common.
pub(super) struct Trials<'a> {
    pub(super) journey: &'a Journey<'a>,
    /// For the logs of one trial.
    pub(super) directory: PathBuf,
}

impl Trials<'_> {
    /// One trial with the guest that was saved. Returns who had it at last, and how long the migration took.
    pub(super) fn run(&self, loss: Loss) -> Result<(Fate, Duration)> {
        let (journey, way) = (self.journey, self.journey.way);
        copy_disks(&way.copies(), way.scratch)?;
        fs::create_dir_all(&self.directory)?;
        let restore = vec![format!("--restore={}", way.snapshot().display())];
        let log = |name: &str| self.directory.join(name);
        let source = Nido::start(
            way.program,
            restore,
            journey.path("source"),
            log("source.log"),
            None,
        )?;
        let mut source = Party::of(source)?;
        source.nido.wait_to_run(SOON)?;
        let target = self.target(journey, log("target.log"))?;
        let mut target = Party::of(target)?;
        let (mut place, mut _proxy, mut keeper) = (journey.unix("incoming"), None, None);
        if let Some((at, event, kept)) = loss.event() {
            let (here, there) = (journey.path("proxy"), journey.path("incoming"));
            _proxy = Some(Proxy::start(&here, &there, None, Some((at, event)))?);
            place = journey.unix("proxy");
            keeper = kept;
        }
        let began = Instant::now();
        let migrating = start(&source.nido.socket, format!("migrate to={place}"));
        if let Loss::Killed(side, moment) = loss {
            match moment {
                Moment::After(time) => thread::sleep(time),
                Moment::Frame(_) => keeper.as_ref().context("no keeper")?.wait(SOON)?,
                Moment::Step(step) => {
                    let words = format!("migration: {step}");
                    let says =
                        || [&source, &target].map(|party| party.nido.said().contains(&words));
                    while !migrating.is_finished() && !says().contains(&true) {
                        ensure!(began.elapsed() < SOON, "nobody says `{words}`");
                        thread::sleep(LOOK);
                    }
                }
            }
            match side {
                Side::Source => source.nido.kill()?,
                Side::Target => target.nido.kill()?,
            }
            if let Some(keeper) = keeper {
                keeper.release();
            }
        }
        let ends = settle(&mut source.nido, &mut target.nido, &|| {
            migrating.is_finished()
        })?;
        let took = began.elapsed();
        let answer = migrating.join().map_err(|_| anyhow!("a thread panicked"))?;
        let answer = answer.unwrap_or_else(|error| format!("no answer: {error:#}"));
        fs::write(log("answer.txt"), &answer)?;
        let fate = match ends {
            [None, Some(_)] => Some(Side::Source),
            [Some(_), None] => Some(Side::Target),
            _ => None,
        };
        let logs = || {
            format!(
                "`migrate`: {}; the source ({:?}): {}; the target ({:?}): {}",
                answer.trim(),
                ends[0],
                last_line(&source.nido.messages),
                ends[1],
                last_line(&target.nido.messages)
            )
        };
        right(loss, fate, ends, &answer, &target.nido.said()).with_context(logs)?;
        if let Some(side) = fate {
            disks_are_locked(way.scratch)?;
            let party = match side {
                Side::Source => &mut source,
                Side::Target => &mut target,
            };
            let finished = party.finish(&log("guest.log"));
            finished.with_context(|| format!("{side:?} has the guest"))?;
        }
        Ok((fate, took))
    }

    fn target(&self, journey: &Journey<'_>, messages: PathBuf) -> Result<Nido> {
        let name = messages.with_extension("");
        // An absolute path takes the place of the directory that it is joined to.
        journey.target(&name.display().to_string(), &journey.unix("incoming"), &[])
    }
}

/// Waits until at most one of the two is there, and it runs. Returns how they ended.
fn settle(
    source: &mut Nido,
    target: &mut Nido,
    is_answered: &dyn Fn() -> bool,
) -> Result<[Option<ExitStatus>; 2]> {
    let until = Instant::now() + SETTLED;
    loop {
        let answered = is_answered();
        // Nobody who has let go of the guest gets it back while the other runs it, so the order tells that
        // both run at the same time.
        let runs = [source.runs(), target.runs(), source.runs()];
        ensure!(runs != [true; 3], "the guest runs on both sides");
        let mut ends = [source.ended()?, target.ended()?];
        if answered && ends[1].is_none() && target.waits() {
            // Whoever has heard of no machine goes on waiting for one.
            thread::sleep(HEARING);
            if target.waits() {
                target.kill()?;
                ends[1] = target.wait_for_end(SOON)?;
            }
        }
        if answered && ends == [None, None] && runs == [false, true, false] {
            // One that knows that the guest is away ends a little later.
            ends[0] = source.wait_for_end(FAREWELL)?;
            if ends[0].is_none() {
                stands_still(source)?;
                ends[0] = source.wait_for_end(SOON)?;
            }
        }
        let settled = match ends {
            [Some(_), Some(_)] => true,
            [None, Some(_)] => runs[0] && runs[2],
            [Some(_), None] => runs[1],
            [None, None] => false,
        };
        if answered && settled {
            return Ok(ends);
        }
        ensure!(
            Instant::now() < until,
            "it stays open who has the guest: source {:?}, target {:?}, running {runs:?}; {}; {}",
            ends[0],
            ends[1],
            last_line(&source.messages),
            last_line(&target.messages)
        );
        thread::sleep(LOOK);
    }
}

/// A source that does not know whether the target has the guest stands still, and cannot have it go on while
/// the other has its disks; somebody ends it.
fn stands_still(source: &Nido) -> Result<()> {
    let status = source.ask("status")?;
    ensure!(status.contains("state: paused"), "{}", status.trim());
    let resumed = source.ask("resume")?;
    let refused = resumed.starts_with("error: ") && resumed.contains("in use");
    ensure!(
        refused,
        "`resume` of a guest that runs elsewhere: {}",
        resumed.trim()
    );
    source.ask("quit")?;
    Ok(())
}

/// Whether it is the right one who has the guest.
fn right(
    loss: Loss,
    fate: Fate,
    [source, target]: [Option<ExitStatus>; 2],
    answer: &str,
    target_said: &str,
) -> Result<()> {
    let code = |status: Option<ExitStatus>| status.and_then(|status| status.code());
    let handed_over = answer.starts_with("the guest runs at ");
    if let Some(certain) = loss.fate() {
        ensure!(fate == certain, "{fate:?} has the guest, not {certain:?}");
    }
    match (loss, fate) {
        (Loss::Nothing, _) => ensure!(handed_over && code(source) == Some(0), "not as it is to be"),
        (Loss::Connection(..), None) => bail!("nobody has the guest"),
        (Loss::Connection(..) | Loss::Killed(Side::Target, _), Some(Side::Source)) => {
            ensure!(answer.starts_with("error: "), "no error");
        }
        (Loss::Connection(..) | Loss::Killed(Side::Source, _), Some(Side::Target)) => {}
        // It had the guest already, as it has told.
        (Loss::Killed(Side::Target, _), None) => ensure!(
            handed_over && code(source) == Some(0),
            "the source does not go on"
        ),
        (Loss::Killed(Side::Source, _), None) => {
            // One that has heard of no machine was killed by us.
            let heard = code(target).is_some();
            let had_it = target_said.contains("migration: running");
            let right = !heard || code(target) == Some(1);
            ensure!(right && !had_it, "the target lost the guest");
            let told = target_said.lines().last().unwrap_or_default();
            let tells = told.contains("error") || !heard;
            ensure!(tells, "the target does not say why");
        }
        (Loss::Killed(dead, _), Some(other)) => {
            ensure!(dead != other, "the dead have the guest");
        }
    }
    Ok(())
}

/// The frame by which the guest is given, and the one that tells that it has been taken.
const YOURS: u8 = 0x07;
const RUNNING: u8 = 0x86;
