//! Lines on their way to whoever reads standard error, written by a thread of its own: a pipe that
//! nobody reads holds up nobody who has something to say.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};

/// Texts that wait for the reader, at most.
const MOST: usize = 256;
/// How long [`Lines::flush`] waits for the reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be written.
pub(super) struct Lines {
    /// Leaf lock, held for moments only.
    waiting: Mutex<Waiting>,
    /// There is something to write.
    more: Condvar,
    /// Everything is written.
    idle: Condvar,
}

struct Waiting {
    texts: VecDeque<String>,
    /// Texts that found no room since the last one that did.
    lost: u64,
    /// The thread writes something.
    busy: bool,
}

impl Waiting {
    fn is_idle(&self) -> bool {
        self.texts.is_empty() && self.lost == 0 && !self.busy
    }

    /// What there is to say about lost texts, if there is.
    fn complaint(&mut self) -> Option<String> {
        let lost = std::mem::take(&mut self.lost);
        (lost > 0)
            .then(|| format!("nido: warning: {lost} messages were lost, as nobody read them\n"))
    }
}

impl Lines {
    /// Nothing yet, and nobody who writes it.
    pub(super) const fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                texts: VecDeque::new(),
                lost: 0,
                busy: false,
            }),
            more: Condvar::new(),
            idle: Condvar::new(),
        }
    }

    /// Starts the thread that writes to `file`, to the end of the process.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub(super) fn start(&'static self, file: File) -> io::Result<()> {
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                loop {
                    write(&file, &self.next());
                }
            })
            .map(drop)
    }

    /// Has `text` written, unless too much waits already. Never waits itself.
    pub(super) fn push(&self, text: String) {
        let mut waiting = self.waiting.lock();
        if waiting.texts.len() >= MOST {
            waiting.lost += 1;
            return;
        }
        let complaint = waiting.complaint();
        waiting.texts.extend(complaint);
        waiting.texts.push_back(text);
        self.more.notify_one();
    }

    /// Waits until everything is written, for a second at most. Whether it is.
    pub(super) fn flush(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut waiting = self.waiting.lock();
        while !waiting.is_idle() {
            if self.idle.wait_until(&mut waiting, until).timed_out() {
                return waiting.is_idle();
            }
        }
        true
    }

    /// Waits for the next text to write.
    fn next(&self) -> String {
        let mut waiting = self.waiting.lock();
        waiting.busy = false;
        loop {
            let text = waiting.texts.pop_front().or_else(|| waiting.complaint());
            if let Some(text) = text {
                waiting.busy = true;
                return text;
            }
            self.idle.notify_all();
            self.more.wait(&mut waiting);
        }
    }
}

/// Writes all of `text`, however long its reader takes. What cannot be written cannot be reported
/// anywhere either.
fn write(mut file: &File, text: &str) {
    let mut left = text.as_bytes();
    while !left.is_empty() {
        match file.write(left) {
            Ok(0) => return,
            Ok(count) => left = left.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that has the same file may have asked for that.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut files, PollTimeout::NONE);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod lines_test;
