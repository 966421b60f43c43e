//! How far a migration has got, for those who look at it, and the wish to give it up.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::endpoint::Endpoint;

/// What is said of a migration that nobody wants any more.
pub(super) const GIVEN_UP: &str = "the migration was given up; the guest goes on here";

/// The migration that is under way, if there is one.
#[derive(Default)]
pub(crate) struct Migrations(Mutex<Option<Arc<Progress>>>);

/// How far a migration has got.
pub(crate) struct Progress {
    to: Endpoint,
    began: Instant,
    /// A leaf lock.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stage: Stage,
    figures: Figures,
    /// Ends what the migration waits for.
    interrupt: Option<Interrupt>,
}

/// Ends what a migration waits for.
pub(super) type Interrupt = Box<dyn Fn() + Send>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Going,
    /// Nobody wants it any more.
    GivenUp,
    /// The guest may be the other process's.
    Given,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// The round that is under way, from 1 on; 0 before.
    pub(super) round: u32,
    /// Bytes that were sent in all.
    pub(super) sent: u64,
    /// Bytes of memory that are to be sent still.
    pub(super) remaining: u64,
    /// Bytes per second that the connection takes.
    pub(super) rate: u64,
    /// How long the guest would stand still if that were now.
    pub(super) pause: Duration,
    /// How much of the time vCPUs are held, in percent.
    pub(super) slowed: u32,
}

/// The only migration at the time, until this is dropped.
pub(super) struct Turn<'a> {
    migrations: &'a Migrations,
    pub(super) progress: Arc<Progress>,
}

impl Migrations {
    /// Begins a migration to `to`.
    ///
    /// # Errors
    /// Another one is under way.
    pub(super) fn begin(&self, to: &Endpoint) -> Result<Turn<'_>, String> {
        let mut current = self.0.lock();
        if let Some(other) = &*current {
            return Err(format!(
                "a migration is under way: {other}; wait for its end, or say `migrate-cancel`"
            ));
        }
        let progress = Arc::new(Progress {
            to: to.clone(),
            began: Instant::now(),
            state: Mutex::default(),
        });
        *current = Some(Arc::clone(&progress));
        Ok(Turn {
            migrations: self,
            progress,
        })
    }

    /// What is under way, in words.
    pub(crate) fn describe(&self) -> Option<String> {
        self.0.lock().as_ref().map(ToString::to_string)
    }

    /// Gives the migration up that is under way.
    ///
    /// # Errors
    /// There is none, or the guest is being handed over.
    pub(crate) fn cancel(&self) -> Result<String, String> {
        let current = self.0.lock().clone();
        let current = current.ok_or("no migration is under way")?;
        current.give_up()?;
        Ok(format!("the migration to {} is given up\n", current.to))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.migrations.0.lock() = None;
    }
}

impl Progress {
    /// Tells how far it is.
    ///
    /// # Errors
    /// Nobody wants the rest.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Figures)) -> Result<(), String> {
        let mut state = self.state.lock();
        change(&mut state.figures);
        match state.stage {
            Stage::GivenUp => Err(GIVEN_UP.to_owned()),
            Stage::Going | Stage::Given => Ok(()),
        }
    }

    /// What was told last.
    pub(super) fn figures(&self) -> Figures {
        self.state.lock().figures
    }

    /// How long it has been under way.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether nobody wants it any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.state.lock().stage == Stage::GivenUp
    }

    /// What ends waiting when it is given up.
    pub(super) fn set_interrupt(&self, interrupt: Interrupt) {
        let mut state = self.state.lock();
        if state.stage == Stage::GivenUp {
            interrupt();
        }
        state.interrupt = Some(interrupt);
    }

    /// It is too late to give it up from now on.
    ///
    /// # Errors
    /// It was given up.
    pub(super) fn give(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        match state.stage {
            Stage::GivenUp => Err(GIVEN_UP.to_owned()),
            Stage::Going | Stage::Given => {
                state.stage = Stage::Given;
                Ok(())
            }
        }
    }

    fn give_up(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        if state.stage == Stage::Given {
            return Err("the guest is being handed over already".to_owned());
        }
        state.stage = Stage::GivenUp;
        if let Some(interrupt) = &state.interrupt {
            interrupt();
        }
        Ok(())
    }
}

/// One line, for people.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures {
            round,
            sent,
            remaining,
            rate,
            pause,
            slowed,
        } = self.figures();
        let seconds = self.elapsed().as_secs_f64();
        let to = &self.to;
        if round == 0 {
            return write!(f, "to {to}: being agreed on, for {seconds:.1} s");
        }
        write!(
            f,
            "to {to}: round {round}, {} MiB sent in {seconds:.1} s at {} MiB/s, {} MiB to go, a pause of {} ms if it were now",
            sent >> 20,
            rate >> 20,
            remaining.div_ceil(1 << 20),
            pause.as_millis()
        )?;
        if slowed != 0 {
            write!(f, ", vCPUs held {slowed} % of the time")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn there() -> Endpoint {
        "unix:/s".parse().expect("an endpoint")
    }

    #[test]
    fn there_is_one_migration_at_a_time_and_it_is_described() {
        let migrations = Migrations::default();
        assert_eq!(migrations.describe(), None);
        assert!(migrations.cancel().is_err());
        let turn = migrations.begin(&there()).expect("the first");
        let text = migrations.describe().expect("one");
        assert!(
            text.starts_with("to unix:/s: being agreed on, for "),
            "{text}"
        );
        let told = turn.progress.tell(|figures| {
            *figures = Figures {
                round: 3,
                sent: 70 << 20,
                remaining: (2 << 20) + 1,
                rate: 500 << 20,
                pause: Duration::from_millis(7),
                slowed: 20,
            };
        });
        told.expect("wanted");
        let text = migrations.describe().expect("one");
        for part in [
            "round 3, 70 MiB sent in ",
            " at 500 MiB/s, 3 MiB to go, a pause of 7 ms if it were now, vCPUs held 20 % of the time",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let second = migrations.begin(&there()).err().expect("the second");
        assert!(second.contains("round 3"), "{second}");
        drop(turn);
        assert!(migrations.begin(&there()).is_ok());
    }

    #[test]
    fn one_that_is_given_up_ends_what_it_waits_for_and_gets_no_further() {
        let migrations = Migrations::default();
        let turn = migrations.begin(&there()).expect("the first");
        let interrupts = Arc::<AtomicU32>::default();
        let interrupt = || {
            let interrupts = Arc::clone(&interrupts);
            Box::new(move || {
                interrupts.fetch_add(1, Ordering::Relaxed);
            })
        };
        turn.progress.set_interrupt(interrupt());
        migrations.cancel().expect("it is under way");
        assert_eq!(interrupts.load(Ordering::Relaxed), 1);
        let told = turn.progress.tell(|_| ());
        assert_eq!(told, Err(GIVEN_UP.to_owned()));
        assert_eq!(turn.progress.give(), Err(GIVEN_UP.to_owned()));
        // What it waits for next is ended as well.
        turn.progress.set_interrupt(interrupt());
        assert_eq!(interrupts.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn one_that_gives_the_guest_away_is_not_given_up_any_more() {
        let migrations = Migrations::default();
        let turn = migrations.begin(&there()).expect("the first");
        turn.progress.give().expect("wanted");
        let why = migrations.cancel().expect_err("too late");
        assert!(why.contains("handed over"), "{why}");
        assert!(!turn.progress.is_given_up());
    }
}
