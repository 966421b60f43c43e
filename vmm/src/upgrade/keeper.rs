//! The process that was started first, once another one has its guest: whoever has started it knows its
//! number, and waits for it. It has nothing of the machine, tells the other one of signals, and ends as
//! that does. If it is killed, the other one ends.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write as _};
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

/// Waits for the end of all that there are. An upgrade starts a child of the one that has the guest,
/// which is then this one's child.
fn wait(mut line: &File) -> u8 {
    let adopted = prctl::set_child_subreaper(true);
    if let Err(error) = adopted {
        log::warn!("a further upgrade will end this process before its guest: {error}");
    }
    let mut waited: SigSet = signals::ending();
    waited.add(Signal::SIGCHLD);
    // One that has ended before this is seen at once.
    let _ = waited.thread_block();
    let mut last = code::FAILED;
    loop {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => {
                    last = u8::try_from(status).unwrap_or(code::FAILED)
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => last = crate::signal_code(signal as i32),
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                // There is none any more.
                Err(_) => return last,
            }
        }
        if let Ok(signal) = waited.wait()
            && signal != Signal::SIGCHLD
        {
            // If nobody reads it, its end is near.
            let _ = line.write(&[u8::try_from(signal as i32).unwrap_or_default()]);
        }
    }
}
