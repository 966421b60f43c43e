//! Having the host write to its storage what the guest wrote to its disks, beside other work: another host
//! reads it from there.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::claims::{self, Claims};

/// How long storage may take in all before it counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Writes what is not on storage yet, again and again.
pub(super) struct Syncing {
    claims: Arc<Claims>,
    at_work: Option<Work>,
}

struct Work {
    outcome: Receiver<anyhow::Result<()>>,
    began: Instant,
}

impl Syncing {
    pub(super) fn new(claims: &Arc<Claims>) -> Self {
        Self {
            claims: Arc::clone(claims),
            at_work: None,
        }
    }

    /// Begins with what was written until now, unless it is at work.
    ///
    /// # Errors
    /// The host has no thread for it.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        if self.at_work.is_some() {
            return Ok(());
        }
        let disks = self.claims.disks();
        let (give, outcome) = channel();
        thread::Builder::new()
            .name("migration-sync".to_owned())
            .spawn(move || {
                // Nobody waits for it any more if it took too long.
                let _ = give.send(claims::sync(&disks));
            })
            .map_err(|error| format!("the host has no thread for its disks: {error}"))?;
        self.at_work = Some(Work {
            outcome,
            began: Instant::now(),
        });
        Ok(())
    }

    /// Waits for `limit` at most. Whether all is there that was written before the last beginning.
    ///
    /// # Errors
    /// What a disk says, or that it says nothing.
    pub(super) fn is_done(&mut self, limit: Duration) -> Result<bool, String> {
        let Some(work) = &self.at_work else {
            return Ok(true);
        };
        match work.outcome.recv_timeout(limit) {
            Ok(outcome) => {
                self.at_work = None;
                outcome.map(|()| true).map_err(|error| format!("{error:#}"))
            }
            Err(RecvTimeoutError::Timeout) if work.began.elapsed() < PATIENCE => Ok(false),
            Err(_) => Err(format!(
                "the guest's disks do not become stable within {} s; see whether their storage answers",
                PATIENCE.as_secs()
            )),
        }
    }
}
