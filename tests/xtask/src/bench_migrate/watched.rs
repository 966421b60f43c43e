//! A process whose guest's serial port is listened to.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::sys;

use super::signs::Signs;
use crate::process::Supervised;

/// How often to look for what is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// A process, which ends with this.
pub(super) struct Watched {
    signs: Arc<Mutex<Signs>>,
    /// When it was started.
    pub(super) started: Instant,
    child: Supervised,
}

impl Watched {
    /// Starts `command`, whose standard output is the serial port, and whose messages go to `log`.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let messages = File::create(log).with_context(|| log.display().to_string())?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(messages);
        let started = Instant::now();
        let mut child = Supervised::start(command)?;
        let mut screen = child.0.stdout.take().context("no stdout")?;
        let signs = Arc::new(Mutex::new(Signs::default()));
        let heard = Arc::clone(&signs);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                let now = Instant::now();
                lock(&heard).hear(now, bytes.get(..length).unwrap_or_default());
            }
        });
        Ok(Self {
            signs,
            started,
            child,
        })
    }

    /// What was heard until now.
    pub(super) fn signs(&self) -> Signs {
        lock(&self.signs).clone()
    }

    /// Waits for `limit` at most until what was heard is enough.
    pub(super) fn wait(&self, limit: Duration, is_enough: impl Fn(&Signs) -> bool) -> Result<()> {
        let until = Instant::now() + limit;
        while !is_enough(&lock(&self.signs)) {
            if sys::interrupted() {
                bail!("interrupted");
            }
            if Instant::now() > until {
                bail!("not within {} s", limit.as_secs());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn end(mut self, limit: Duration) -> Result<()> {
        sys::kill_group(self.child.0.id());
        self.child.wait(limit)?.context("it does not end")?;
        Ok(())
    }
}

fn lock(signs: &Mutex<Signs>) -> MutexGuard<'_, Signs> {
    signs.lock().unwrap_or_else(PoisonError::into_inner)
}
