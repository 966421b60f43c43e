//! A guest that is saved and goes on in another nido, once and once more.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};

use super::control::ask;
use super::log::read_lines;
use super::{restores, session};
use crate::protocol::GuestLine;
use crate::sys;

/// Files of disks, and what is written to them after a snapshot is no part of it.
pub(super) const DISK: &str = "img";

/// A nido that has gone on with a guest, and the guest's terminal.
pub(super) struct Moved {
    pub(super) child: Child,
    pub(super) keyboard: ChildStdin,
    pub(super) screen: ChildStdout,
    /// Where its messages are.
    pub(super) messages: PathBuf,
}

impl Moved {
    /// From a child that [`session::spawn`] has started.
    pub(super) fn of(mut child: Child, messages: PathBuf) -> Result<Self> {
        let (keyboard, screen) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            child,
            keyboard: keyboard.context("no stdin")?,
            screen: screen.context("no stdout")?,
            messages,
        })
    }
}

/// Where a guest goes.
pub(super) struct Way<'a> {
    /// nido.
    pub(super) program: &'a Path,
    /// Its control socket, before and after.
    pub(super) socket: &'a Path,
    /// The directory of disks and sockets.
    pub(super) scratch: &'a Path,
    /// Where nido's messages go.
    pub(super) messages: &'a Path,
}

impl Way<'_> {
    /// The snapshot's directory.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.scratch.join("snapshot")
    }

    /// The directory of the disks as they were then.
    pub(super) fn copies(&self) -> PathBuf {
        self.scratch.join("copies")
    }

    /// Saves the guest of `nido`, kills that in the same moment, or later if it is `live`, and has another
    /// one go on. Returns what nido says of the snapshot, too.
    pub(super) fn go(&self, nido: &mut Child, live: bool) -> Result<(Moved, String)> {
        let said = self.save(nido, live)?;
        Ok((self.restore()?, said))
    }

    /// Saves it, and kills nido, but has nobody go on.
    pub(super) fn save(&self, nido: &mut Child, live: bool) -> Result<String> {
        if !live {
            ask(self.socket, "pause", "the guest is paused")?;
        }
        let wish = format!("snapshot {}", self.snapshot().display());
        let said = ask(self.socket, &wish, "the snapshot is in ")?;
        fs::create_dir_all(self.copies())?;
        copy_disks(self.scratch, &self.copies())?;
        sys::kill(nido.id());
        nido.wait()?;
        Ok(said.trim().to_owned())
    }

    /// Has a nido go on with the guest that was saved.
    pub(super) fn restore(&self) -> Result<Moved> {
        let messages = OpenOptions::new().append(true).open(self.messages)?;
        let arguments = [
            format!("--restore={}", self.snapshot().display()),
            format!("--control=path={}", self.socket.display()),
        ];
        let child = session::spawn(self.program, &arguments, messages)?;
        Moved::of(child, self.messages.to_owned())
    }

    /// Has the guest go on once more where it was saved last, within `limit`: it reports what it has
    /// `reported` before, and the snapshot stays as it is. What nido has to refuse is tried as well.
    pub(super) fn once_more(&self, reported: &[String], limit: Duration) -> Result<()> {
        copy_disks(&self.copies(), self.scratch)?;
        restores::refused(self)?;
        let before = self.files()?;
        let mut moved = self.restore()?;
        session::type_line(&mut moved.keyboard, "ok");
        let (sender, lines) = mpsc::channel();
        read_lines(moved.screen, sender);
        let until = Instant::now() + limit;
        let mut reports = Vec::new();
        let outcome = loop {
            let left = until.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    reports.extend(GuestLine::parse(&line.text).and_then(|line| outcome_of(&line)))
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
                Err(mpsc::RecvTimeoutError::Timeout) => break Err(limit),
            }
        };
        if let Err(limit) = outcome {
            sys::kill(moved.child.id());
            moved.child.wait()?;
            bail!("no end within {} s", limit.as_secs());
        }
        let status = moved.child.wait()?;
        ensure!(status.success(), "nido ended with {status}");
        ensure!(reports == reported, "{reports:?} instead of {reported:?}");
        ensure!(self.files()? == before, "the snapshot has changed");
        Ok(())
    }

    /// What tells whether a file of the snapshot was written to.
    fn files(&self) -> Result<BTreeMap<PathBuf, (u64, SystemTime)>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.snapshot())? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            files.insert(entry.path(), (metadata.len(), metadata.modified()?));
        }
        Ok(files)
    }
}

/// A check of the guest and how it came out, if the line is about one.
pub(super) fn outcome_of(line: &GuestLine) -> Option<String> {
    match line {
        GuestLine::Report { check, passed, .. } => Some(format!("{check}: {passed}")),
        _ => None,
    }
}

/// Copies the files of disks from one directory to another.
pub(super) fn copy_disks(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == DISK)
            && let Some(name) = path.file_name()
        {
            fs::copy(&path, to.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
