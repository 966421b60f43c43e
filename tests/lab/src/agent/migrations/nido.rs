//! A nido that is killed when nobody is interested in it any more.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{LOOK, WAITING, wait_for_end};
use crate::agent::control;
use crate::agent::moved::Moved;
use crate::agent::session::{self, last_line};
use crate::sys;

/// Time for what nido knows at once.
const AT_ONCE: Duration = Duration::from_secs(10);

/// What a target says when it has heard of a machine.
const COMES: &str = "a machine comes from ";

/// nido, with a control socket, that tells all that it does.
pub(super) struct Nido {
    child: Option<Child>,
    pub(super) socket: PathBuf,
    pub(super) messages: PathBuf,
}

impl Nido {
    /// Has it run here, or, as far as it can tell, on the host that this file has the boot id of.
    pub(super) fn start(
        program: &Path,
        mut arguments: Vec<String>,
        socket: PathBuf,
        messages: PathBuf,
        host: Option<&Path>,
    ) -> Result<Self> {
        arguments.push(format!("--control=path={}", socket.display()));
        arguments.extend(["-v", "-v"].map(str::to_owned));
        let log = File::create(&messages).with_context(|| messages.display().to_string())?;
        let mut command = session::command(program, &arguments, log);
        if let Some(boot_id) = host {
            sys::pretend_another_host(&mut command, boot_id);
        }
        Ok(Self {
            child: Some(session::start(program, command)?),
            socket,
            messages,
        })
    }

    /// Its terminal.
    pub(super) fn terminal(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        let child = self.child.as_mut().context("there is none")?;
        let (keyboard, screen) = (child.stdin.take(), child.stdout.take());
        Ok((keyboard.context("no stdin")?, screen.context("no stdout")?))
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.wait_for_end(Duration::ZERO)
    }

    /// How it ended, if it does within `limit`.
    pub(super) fn wait_for_end(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        wait_for_end(self.child.as_mut().context("there is none")?, limit)
    }

    /// It ends by itself, as one that has failed, and what it says last contains these words.
    pub(super) fn gives_up(&mut self, words: &str) -> Result<()> {
        let status = self.wait_for_end(AT_ONCE)?;
        let status = status.context("the target goes on waiting")?;
        let last = last_line(&self.messages);
        ensure!(
            status.code() == Some(1),
            "the target ended with {status}: {last}"
        );
        ensure!(last.contains(words), "the target's last words: {last}");
        Ok(())
    }

    /// Kills it, if it is still there.
    pub(super) fn kill(&mut self) -> Result<()> {
        match &mut self.child {
            // One that has been waited for is nobody any more, which the library knows.
            Some(child) => child.kill().context("kill"),
            None => Ok(()),
        }
    }

    /// All its messages so far.
    pub(super) fn said(&self) -> String {
        let said = fs::read(&self.messages).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits until its messages contain these words.
    pub(super) fn wait_to_say(&self, words: &str, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while !self.said().contains(words) {
            ensure!(
                Instant::now() < until,
                "nido has not said `{words}`, but last: {}",
                last_line(&self.messages)
            );
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What its control socket answers.
    pub(super) fn ask(&self, request: &str) -> Result<String> {
        control::request_within(&self.socket, request, AT_ONCE)
    }

    /// Whether its guest runs, as far as it answers.
    pub(super) fn runs(&self) -> bool {
        self.ask("status")
            .is_ok_and(|answer| answer.contains("state: running"))
    }

    /// Waits until it does.
    pub(super) fn wait_to_run(&self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while !self.runs() {
            ensure!(
                Instant::now() < until,
                "the guest does not run, and nido said last: {}",
                last_line(&self.messages)
            );
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether it waits for a machine, of which it has heard nothing yet.
    pub(super) fn waits(&self) -> bool {
        let said = self.said();
        said.contains(WAITING) && !said.contains(COMES)
    }

    /// Leaves it to somebody else.
    pub(super) fn into_moved(mut self) -> Result<Moved> {
        let child = self.child.take().context("there is none")?;
        Moved::of(child, self.messages.clone())
    }
}

impl Drop for Nido {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended before.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
