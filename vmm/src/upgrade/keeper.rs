//! The process that was started first, once another one has its guest: whoever has started it knows its
//! number, and waits for it. It has nothing of the machine, tells the other one of signals, and ends as
//! that does. If it is killed, the other one ends.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, execv};

use super::{KEEP, descriptors, original_arguments};
use crate::{code, signals};

/// This same program, whatever has become of its file.
const THIS: &str = "/proc/self/exe";

/// Becomes a keeper, by a program that begins anew: all that this one has is gone then. It is the same
/// one, which is known to run, and not the new one. If the host does not start it, what this one has stays, and
/// it waits all the same. Returns the code to end with.
pub(super) fn become_keeper(line: &File) -> i32 {
    let Err(error) = execute(line);
    log::warn!(
        "what the old nido has stays until the guest ends, as it cannot begin anew: {error}"
    );
    wait(line).into()
}

fn execute(line: &File) -> io::Result<Infallible> {
    descriptors::keep_open(line)?;
    let number = line.as_raw_fd().to_string();
    let arguments = [OsString::from("nido"), KEEP.into(), number.into()];
    let arguments = arguments.into_iter().chain(original_arguments());
    let arguments = arguments.map(|argument| CString::new(argument.into_vec()));
    let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
    Ok(execv(&CString::new(THIS)?, &arguments)?)
}

/// Keeps the nido that the descriptor `number` leads to. Returns the code to end with.
///
/// # Errors
/// There is no such descriptor.
pub(crate) fn keep(number: i32) -> io::Result<u8> {
    let line = File::from(descriptors::inherited(number)?);
    // That of the link that it was started by otherwise.
    let _ = prctl::set_name(c"nido");
    Ok(wait(&line))
}

/// Tells the process that was started first, by its `line`, that this one has the guest from here on.
pub(super) fn announce(mut line: &File) {
    // There is room for it. Without, that process takes this one's end for that of another child.
    if let Err(error) = line.write(&std::process::id().to_le_bytes()) {
        log::warn!("the process that was started first does not know of this one: {error}");
    }
}

/// The processes that have the guest, one after the other.
struct Holders<'a> {
    line: &'a File,
    /// Those that have announced themselves, the one that has it now first.
    known: VecDeque<Pid>,
    /// How they ended, of those that have.
    ends: BTreeMap<Pid, u8>,
}

impl<'a> Holders<'a> {
    /// Nobody yet. They announce themselves by `line`.
    fn new(line: &'a File) -> Self {
        Self {
            line,
            known: VecDeque::new(),
            ends: BTreeMap::new(),
        }
    }

    /// Hears of those that have announced themselves.
    fn hear(&mut self) {
        let mut number = [0; 4];
        // Numbers are sent whole, and are not read in part.
        while let Ok(4) = (&mut { self.line }).read(&mut number) {
            let pid = i32::try_from(u32::from_le_bytes(number)).unwrap_or(0);
            self.known.push_back(Pid::from_raw(pid));
        }
    }

    /// A child has ended. It may be one that somebody else has left to this process.
    fn ended(&mut self, pid: Pid, code: u8) {
        // Who is this process's child by now has announced itself: the one before it has ended since.
        self.hear();
        if self.known.contains(&pid) {
            self.ends.insert(pid, code);
        }
    }

    /// How the last of them has ended, if it has: the one before ends when another one has the guest.
    fn end(&mut self) -> Option<u8> {
        self.hear();
        while let Some(code) = self.known.front().and_then(|pid| self.ends.remove(pid)) {
            if self.known.len() == 1 {
                return Some(code);
            }
            self.known.pop_front();
        }
        None
    }
}

/// Waits for the end of who has the guest. An upgrade starts a child of that one, which is then this one's child.
fn wait(mut line: &File) -> u8 {
    let adopted = prctl::set_child_subreaper(true);
    if let Err(error) = adopted {
        log::warn!("a further upgrade will end this process before its guest: {error}");
    }
    let mut waited: SigSet = signals::ending();
    waited.add(Signal::SIGCHLD);
    // One that has ended before this is seen at once.
    let _ = waited.thread_block();
    let mut holders = Holders::new(line);
    let mut last = code::FAILED;
    loop {
        loop {
            let (pid, code) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => {
                    (pid, u8::try_from(status).unwrap_or(code::FAILED))
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, crate::signal_code(signal as i32))
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => continue,
                // There is none any more: nor one that could not announce itself.
                Err(_) => return holders.end().unwrap_or(last),
            };
            last = code;
            holders.ended(pid, code);
        }
        if let Some(code) = holders.end() {
            return code;
        }
        if let Ok(signal) = waited.wait()
            && signal != Signal::SIGCHLD
        {
            // If nobody reads it, its end is near.
            let _ = line.write(&[u8::try_from(signal as i32).unwrap_or_default()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn line() -> (File, File) {
        let (one, other) = UnixStream::pair().expect("descriptors");
        one.set_nonblocking(true).expect("a socket");
        let file = |socket| File::from(OwnedFd::from(socket));
        (file(one), file(other))
    }

    fn announced(mut line: &File, pid: i32) {
        let pid = u32::try_from(pid).expect("a number");
        line.write_all(&pid.to_le_bytes()).expect("there is room");
    }

    #[test]
    fn the_end_is_that_of_who_has_the_guest_whatever_else_ends() {
        let (ours, theirs) = line();
        let mut holders = Holders::new(&ours);
        announced(&theirs, 10);
        assert_eq!(holders.end(), None);
        // A child that was there before, or was left to this process.
        holders.ended(Pid::from_raw(7), 3);
        assert_eq!(holders.end(), None);
        // One that takes the guest over, and the one before it.
        announced(&theirs, 11);
        holders.ended(Pid::from_raw(10), 0);
        assert_eq!(holders.end(), None);
        // Two at once, seen in either order.
        announced(&theirs, 12);
        holders.ended(Pid::from_raw(12), 5);
        assert_eq!(holders.end(), None);
        holders.ended(Pid::from_raw(11), 0);
        assert_eq!(holders.end(), Some(5));
    }

    #[test]
    fn who_is_killed_before_another_one_has_the_guest_is_the_last() {
        let (ours, theirs) = line();
        let mut holders = Holders::new(&ours);
        announced(&theirs, 10);
        holders.ended(Pid::from_raw(10), 137);
        // What it had started ends for that.
        holders.ended(Pid::from_raw(11), 1);
        assert_eq!(holders.end(), Some(137));
    }
}
