//! A child of this process that writes guest memory, as it was when the child was made, while the guest
//! goes on: what the guest writes from then on is copied by the host, page by page.

#![allow(unsafe_code)] // fork, and leaving without destructors.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pipe2};

use crate::memory::saved::Touched;

/// A message of the child: bytes that have been seen to, or the negative number of an error.
const MESSAGE: usize = size_of::<i64>();

/// The child, which ends with this.
pub(crate) struct Child {
    pid: Pid,
    progress: File,
    ended: bool,
}

impl Child {
    /// Makes a child that writes the memory that `touched` has to `file`, and ends. It ends, too, when
    /// the thread that calls this does.
    ///
    /// # Errors
    /// The host has no memory for another process.
    pub(crate) fn start(touched: &Touched<'_>, file: &mut File) -> io::Result<Self> {
        let (progress, end) = pipe2(OFlag::O_CLOEXEC)?;
        let parent = getpid();
        let mut end = File::from(end);
        // SAFETY: the child calls only what needs no lock and no memory that a thread of the parent could
        // have held or been changing: system calls, and code that does not allocate.
        let forked = unsafe { fork() }?;
        match forked {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                progress: File::from(progress),
                ended: false,
            }),
            ForkResult::Child => {
                let code = write(parent, touched, file, &mut end);
                // SAFETY: it ends the child at once; nothing of the parent's is run or flushed.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// Follows the child until it has nothing more to say, and says by `progress` how many bytes of memory
    /// have been seen to.
    ///
    /// # Errors
    /// What the child could not do.
    pub(crate) fn follow(&mut self, mut progress: impl FnMut(u64)) -> io::Result<()> {
        let mut message = [0; MESSAGE];
        loop {
            match self.progress.read_exact(&mut message) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            let number = i64::from_ne_bytes(message);
            match u64::try_from(number) {
                Ok(bytes) => progress(bytes),
                Err(_) => return Err(error_of(number)),
            }
        }
    }

    /// Waits for the end of the child.
    ///
    /// # Errors
    /// It has not done all of its work.
    pub(crate) fn end(mut self) -> io::Result<()> {
        let status = waitpid(self.pid, None)?;
        self.ended = true;
        match status {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => Err(io::Error::other(format!(
                "its writer ended too early ({other:?})"
            ))),
        }
    }

    /// Waits for the first message.
    #[cfg(test)]
    fn first_message(&mut self) {
        let mut message = [0; MESSAGE];
        self.progress.read_exact(&mut message).expect("a message");
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended by itself; then it waits to be looked at.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// What the child does. Returns its exit code.
fn write(parent: Pid, touched: &Touched<'_>, file: &mut File, end: &mut File) -> i32 {
    // Should the parent have ended by now, nobody would end the child.
    if set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != parent {
        return 1;
    }
    let [pagemap, source] = touched.descriptors();
    let ours = file.as_raw_fd();
    let others = [pagemap.unwrap_or(ours), source.unwrap_or(ours)];
    close_all_but(&mut [ours, end.as_raw_fd(), others[0], others[1]]);
    // Now there are descriptors to be had.
    if let Some(pagemap) = pagemap
        && !becomes_own(pagemap)
    {
        return 1;
    }
    let mut tell = |number: i64| end.write_all(&number.to_ne_bytes());
    let outcome = touched.write(file, |bytes| tell(i64::try_from(bytes).unwrap_or(i64::MAX)));
    let Err(error) = outcome else {
        return 0;
    };
    let number = error.raw_os_error().unwrap_or(Errno::EIO as i32);
    // If that fails, the exit code tells as much.
    let _ = tell(-i64::from(number));
    1
}

/// Has the parent's pagemap, which this child has open as `fd`, be the child's own: the parent gives pages
/// back to the host meanwhile (virtio-balloon), which the child still has. Returns whether it is.
fn becomes_own(fd: RawFd) -> bool {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero.
    let own = unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), flags) };
    // SAFETY: the descriptor is looked at by nobody but the child's own code, which expects such a file
    // there.
    own >= 0 && unsafe { libc::dup2(own, fd) } == fd
}

/// Closes all files but those: the locks of disks, taps and the machine of KVM stay the parent's alone.
fn close_all_but(kept: &mut [RawFd]) {
    kept.sort_unstable();
    let mut next = 0;
    for fd in kept {
        close_range(next, *fd - 1);
        next = *fd + 1;
    }
    close_range(next, RawFd::MAX);
}

/// Closes the files of this range, if it has any.
fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: this is the child, whose files nobody uses but those that are kept. Linux before 5.9
        // does not know the call: the files are closed when the child ends.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// The error of the child that has this negative number.
fn error_of(number: i64) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(-number).unwrap_or(Errno::EIO as i32))
}

#[cfg(test)]
mod child_test;
