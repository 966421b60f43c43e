//! A VMM that runs, and what its guest says.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::bench::Candidate;
use crate::agent::log::{Line, Log, read_lines};
use crate::sys;

/// Level 1's serial port. Some VMMs want a terminal on standard input; nobody types on this one.
const TERMINAL: &str = "/dev/ttyS0";

/// It is killed when the value goes.
pub(super) struct Running {
    child: Child,
    lines: Receiver<Line>,
    log: Log,
    deadline: Instant,
    limit: Duration,
    last: String,
    /// When it was started, in CLOCK_MONOTONIC nanoseconds.
    pub(super) started: u64,
}

impl Running {
    /// Starts it, for as long as `limit`.
    pub(super) fn start(candidate: &Candidate, log: &Path, limit: Duration) -> Result<Self> {
        let log = Log::create(log)?;
        let terminal = File::open(TERMINAL).context(TERMINAL)?;
        let mut command = Command::new(&candidate.program);
        command
            .args(&candidate.arguments)
            .stdin(terminal)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        sys::die_with_parent(&mut command);
        let started = sys::monotonic_ns();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", candidate.program.display()))?;
        let (sender, lines) = mpsc::channel();
        read_lines(child.stdout.take().context("no stdout")?, sender.clone());
        read_lines(child.stderr.take().context("no stderr")?, sender);
        Ok(Self {
            child,
            lines,
            log,
            deadline: Instant::now() + limit,
            limit,
            last: String::new(),
            started,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the guest or of the VMM.
    pub(super) fn next(&mut self) -> Result<Line> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.log.write(&line);
                line.text.clone_into(&mut self.last);
                Ok(line)
            }
            Err(RecvTimeoutError::Timeout) => bail!(
                "not over within {} s; the last line: {}",
                self.limit.as_secs(),
                self.last
            ),
            Err(RecvTimeoutError::Disconnected) => bail!("it ended: {}", self.last),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        sys::kill(self.child.id());
        let _ = self.child.wait();
    }
}
