//! The process that is to have the guest, as a child of this one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{TAKE_OVER, descriptors, keeper, original_arguments};

/// How long one that has failed may take to end by itself, which tells why it has.
const ENDING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// Ends with this, unless the guest is its own.
pub(crate) struct Successor {
    child: Child,
    is_stopped: bool,
    /// By which this process is to tell it of signals, if this is the one that was started first.
    line: Option<File>,
}

impl Successor {
    /// Starts the nido at `path`. Returns the socket that leads to it as well, and the other end of its line to the
    /// process that was started first, if that is this one.
    ///
    /// # Errors
    /// The host cannot start it.
    pub(super) fn start(
        path: &Path,
        has_keeper: bool,
    ) -> io::Result<(Self, UnixStream, Option<File>)> {
        let (ours, theirs) = UnixStream::pair()?;
        let (line, end) = match has_keeper {
            true => (None, None),
            false => {
                let (line, end) = UnixStream::pair()?;
                // Several processes may look at one end for a moment: nobody waits for what another one has read.
                line.set_nonblocking(true)?;
                end.set_nonblocking(true)?;
                let file = |socket| File::from(OwnedFd::from(socket));
                (Some(file(line)), Some(file(end)))
            }
        };
        let mut command = Command::new(path);
        command.arg(TAKE_OVER).arg(theirs.as_raw_fd().to_string());
        command.args(original_arguments());
        descriptors::keep_open(&theirs)?;
        // Nothing is done between fork and exec, so that the host need not copy what maps guest memory.
        let child = command.spawn()?;
        let successor = Self {
            child,
            is_stopped: false,
            line,
        };
        Ok((successor, ours, end))
    }

    /// Has it end, if it has not by itself: within a moment it has nothing any more.
    pub(super) fn stop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            self.wait();
            self.is_stopped = true;
        }
    }

    /// How it has ended by itself, if it does within a moment.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        match self.is_stopped {
            true => None,
            false => self.wait(),
        }
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + ENDING;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => thread::sleep(LOOK),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Leaves the guest to it: this process ends, or stays to keep the other one if it was started first.
    /// It is told of `signal` first, which came too late for this one.
    ///
    /// Nothing of the machine is given back in an orderly way, as all of it is the other one's now: it goes
    /// as if this process were killed.
    pub(crate) fn leave(self, signal: Option<i32>) -> ! {
        let Self { child, line, .. } = &self;
        let signal = signal.and_then(|signal| Signal::try_from(signal).ok());
        if let (Some(signal), Ok(pid)) = (signal, i32::try_from(child.id())) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        log::logger().flush();
        let code = match line {
            Some(line) => keeper::become_keeper(line),
            None => 0,
        };
        std::process::exit(code)
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // It may have ended by itself, and been waited for. One that the host does not end in time is waited for by
        // who waits for this process.
        let _ = self.child.kill();
        let _ = self.wait();
    }
}
