//! Having the host write to its storage what the guest wrote to its disks, beside other work: another host
//! reads it from there.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::claims::{self, Claims};

/// How long storage may take in all before it counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is done, and may take long.
type Sync = Arc<dyn Fn() -> anyhow::Result<()> + Send + std::marker::Sync>;

/// Writes what is not on storage yet.
pub(super) struct Syncing {
    sync: Sync,
    at_work: Option<Work>,
    /// Whether there is nothing to be waited for.
    is_done: bool,
    /// How long it was waited for in all.
    waited: Duration,
}

struct Work {
    outcome: Receiver<anyhow::Result<()>>,
    began: Instant,
}

impl Syncing {
    /// Of the disks that these are the claims of.
    pub(super) fn new(claims: &Arc<Claims>) -> Self {
        let claims = Arc::clone(claims);
        Self::with(Arc::new(move || claims::sync(&claims.disks())))
    }

    fn with(sync: Sync) -> Self {
        Self {
            sync,
            at_work: None,
            is_done: false,
            waited: Duration::ZERO,
        }
    }

    /// Begins with what was written until now, unless it is at work or was [done](Self::is_done).
    ///
    /// # Errors
    /// The host has no thread for it.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        if self.at_work.is_some() || self.is_done {
            return Ok(());
        }
        let sync = Arc::clone(&self.sync);
        let (give, outcome) = channel();
        thread::Builder::new()
            .name("migration-sync".to_owned())
            .spawn(move || {
                // Nobody waits for it any more if it took too long.
                let _ = give.send(sync());
            })
            .map_err(|error| format!("the host has no thread for its disks: {error}"))?;
        self.at_work = Some(Work {
            outcome,
            began: Instant::now(),
        });
        Ok(())
    }

    /// What is written from now on is to be there as well, before it is done.
    pub(super) fn again(&mut self) {
        self.is_done = false;
    }

    /// Waits for `limit` at most. Whether all is there that was written before it began; it stays so until it is to
    /// be done [again](Self::again).
    ///
    /// # Errors
    /// What a disk says, or that it says nothing.
    pub(super) fn is_done(&mut self, limit: Duration) -> Result<bool, String> {
        let Some(work) = &self.at_work else {
            return Ok(self.is_done);
        };
        let since = Instant::now();
        let outcome = work.outcome.recv_timeout(limit);
        self.waited += since.elapsed();
        match outcome {
            Ok(outcome) => {
                self.at_work = None;
                outcome.map_err(|error| format!("{error:#}"))?;
                self.is_done = true;
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout)
                if work.began.elapsed() < PATIENCE && self.waited < PATIENCE =>
            {
                Ok(false)
            }
            Err(_) => Err(format!(
                "the guest's disks do not become stable within {} s; see whether their storage answers",
                PATIENCE.as_secs()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const SLOW: Duration = Duration::from_millis(20);

    /// Storage that takes as long as that, and how often it was asked.
    fn slow() -> (Syncing, Arc<AtomicUsize>) {
        let count = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&count);
        let sync = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            thread::sleep(SLOW);
            Ok(())
        };
        (Syncing::with(Arc::new(sync)), count)
    }

    #[test]
    fn what_was_waited_for_stays_done_until_it_is_to_be_done_again() {
        let (mut syncing, count) = slow();
        assert_eq!(syncing.is_done(Duration::ZERO), Ok(false));
        // A look now and then is slower than storage: each time, it has been done in between.
        for _ in 0..3 {
            syncing.begin().expect("a thread");
            while syncing.is_done(2 * SLOW) != Ok(true) {}
            syncing.begin().expect("a thread");
            assert_eq!(syncing.is_done(Duration::ZERO), Ok(true));
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        syncing.again();
        assert_eq!(syncing.is_done(Duration::ZERO), Ok(false));
        syncing.begin().expect("a thread");
        while syncing.is_done(SLOW) != Ok(true) {}
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_a_disk_says_is_told() {
        let mut syncing = Syncing::with(Arc::new(|| anyhow::bail!("the disk /d is full")));
        syncing.begin().expect("a thread");
        let said = loop {
            match syncing.is_done(SLOW) {
                Ok(false) => {}
                other => break other,
            }
        };
        assert_eq!(said, Err("the disk /d is full".to_owned()));
    }
}
