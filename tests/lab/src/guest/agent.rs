//! Requests of the guest to the agent: made in the kernel log, answered on the terminal.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Console, console};
use crate::protocol::GuestLine;
use crate::sys;

/// Longest wait for an answer, on a machine that has more to do.
const PATIENCE: Duration = Duration::from_secs(150);

/// The way to the agent and back.
pub(super) struct Agent {
    requests: Console,
    answers: File,
}

impl Agent {
    pub(super) fn open() -> Result<Self> {
        // A virtio console takes nido's input from the serial port.
        let terminal = ["/dev/hvc0", "/dev/ttyS0"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .context("no terminal")?;
        let answers = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(terminal)
            .context(terminal)?;
        sys::terminal::without_echo(answers.as_fd()).context(terminal)?;
        Ok(Self {
            requests: Console::open(),
            answers,
        })
    }

    /// Asks for `text`; anything but `ok` is an error.
    pub(super) fn request(&mut self, text: &str) -> Result<()> {
        self.requests
            .line(&GuestLine::Request(text.to_owned()).to_string());
        let answer = console::read_line(&mut self.answers, PATIENCE)
            .with_context(|| format!("`{text}` has no answer"))?;
        ensure!(answer == "ok", "`{text}`: {answer}");
        Ok(())
    }
}
