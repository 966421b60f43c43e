//! Child processes that never outlive us, with logs, progress and limits.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::sys;

/// Time between lines of progress.
pub(crate) const PROGRESS: Duration = Duration::from_secs(10);

/// A child that leads a process group, which is killed with it when the value goes.
pub(crate) struct Supervised(pub(crate) Child);

impl Supervised {
    /// Starts `command` as leader of a group of its own.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        command.process_group(0);
        sys::die_with_parent(command);
        let program = command.get_program().to_string_lossy().into_owned();
        Ok(Self(
            command
                .spawn()
                .with_context(|| format!("cannot start {program}"))?,
        ))
    }

    /// Waits at most `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Its children may live on when it has ended itself.
        sys::kill_group(self.0.id());
        let _ = self.0.wait();
    }
}

/// Sends the lines of `source` to `lines`.
pub(crate) fn read_lines(source: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while source
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            if lines.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
}

/// Which lines are counted, and what they are called.
pub(crate) type Count = (fn(&str) -> bool, &'static str);

/// A command whose output goes to a log, while lines of progress go to the terminal.
pub(crate) struct Logged<'a> {
    /// What it does, for people.
    pub(crate) title: &'a str,
    /// File for its output.
    pub(crate) log: &'a Path,
    /// Longest time.
    pub(crate) limit: Duration,
    /// What of the output is counted.
    pub(crate) count: Option<Count>,
}

/// Outcome of a logged command.
pub(crate) struct Outcome {
    /// Whether it exited with 0 within the limit.
    pub(crate) passed: bool,
    /// All of its output, standard output and error together.
    pub(crate) lines: Vec<String>,
}

impl Logged<'_> {
    /// Runs `command`; Err when it cannot be run at all, or is interrupted.
    pub(crate) fn outcome(&self, command: &mut Command) -> Result<Outcome> {
        let mut log = File::create(self.log).with_context(|| self.log.display().to_string())?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Supervised::start(command)?;
        let (sender, receiver) = mpsc::channel();
        read_lines(child.0.stdout.take().context("no stdout")?, sender.clone());
        read_lines(child.0.stderr.take().context("no stderr")?, sender);
        let start = Instant::now();
        let mut told = start;
        let mut counted = 0_usize;
        let mut lines = Vec::new();
        loop {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    let _ = writeln!(log, "{line}");
                    counted += usize::from(self.count.is_some_and(|(matches, _)| matches(&line)));
                    lines.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let count = self
                    .count
                    .map_or(String::new(), |(_, name)| format!(", {counted} {name}"));
                println!("  {}: {}{count}", self.title, seconds(start.elapsed()));
            }
            if sys::interrupted() {
                bail!("interrupted");
            }
            if start.elapsed() > self.limit {
                println!("  {}: not over within {}", self.title, seconds(self.limit));
                return Ok(Outcome {
                    passed: false,
                    lines,
                });
            }
        }
        let status = child.wait(Duration::from_secs(10))?;
        Ok(Outcome {
            passed: status.is_some_and(|status| status.success()),
            lines,
        })
    }

    /// Runs `command`, which must succeed; otherwise shows the end of its output.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Vec<String>> {
        let outcome = self.outcome(command)?;
        if !outcome.passed {
            for line in last(&outcome.lines, 20) {
                eprintln!("  {line}");
            }
            bail!(
                "{} failed; its output is in {}",
                self.title,
                self.log.display()
            );
        }
        Ok(outcome.lines)
    }
}

/// The last `count` lines.
pub(crate) fn last(lines: &[String], count: usize) -> VecDeque<&String> {
    lines
        .iter()
        .rev()
        .take(count)
        .fold(VecDeque::new(), |mut list, line| {
            list.push_front(line);
            list
        })
}

/// `72.3 s`, `4 min 10 s`.
pub(crate) fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    if whole >= 100 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// Standard output of a short command.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
