//! Open files by a socket (`SCM_RIGHTS` of unix(7)).

#![allow(unsafe_code)] // Descriptors that come are numbers, which no type owns.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// How many go together: fewer than the kernel takes.
pub(super) const TOGETHER: usize = 64;

/// Sends up to [`TOGETHER`] files, with a byte that carries them.
pub(super) fn send(socket: &UnixStream, files: &[&File]) -> io::Result<()> {
    let numbers: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let byte = [IoSlice::new(&[0])];
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &byte,
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives what was sent together. The files are closed in whatever this process executes.
pub(super) fn receive(socket: &UnixStream) -> io::Result<Vec<File>> {
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; TOGETHER]);
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut bytes,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut files = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows
            // their numbers.
            files.extend(
                numbers
                    .into_iter()
                    .map(|fd| unsafe { File::from_raw_fd(fd) }),
            );
        }
    }
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(files)
}

/// The descriptor of this number, which this process was started with for this. It is closed in whatever
/// this process executes.
///
/// # Errors
/// There is none.
pub(super) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: this is called once, before anything else is opened, with the number that whoever has
    // started this process has said; so it is nobody else's, if it is open at all, which is looked at next.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    match fcntl(&file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => {
            close_others(number);
            Ok(file)
        }
        Err(error) => {
            // There is nothing to be closed.
            std::mem::forget(file);
            Err(error.into())
        }
    }
}

/// Closes all files but that one and the standard streams: who has started this process has some that every
/// program would inherit, and this one is to have what it is given.
fn close_others(kept: RawFd) {
    for (first, last) in [(3, kept - 1), (kept + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: as above, nothing else has been opened, so nobody uses what is closed. Linux before
            // 5.9 does not know the call: the files stay open, and are of no use.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Has the next program that this process executes, or starts, have it.
pub(super) fn keep_open(file: &impl std::os::fd::AsFd) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}
