//! Programs that say that they can take nido's place, and cannot: the agent under another name.
//!
//! Some have a real nido do it, and change what both say.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use crate::sys;

/// What their names begin with.
pub(super) const PREFIX: &str = "impostor-";
/// The name of a real nido beside them.
pub(super) const REAL: &str = "real-nido";

/// Bytes of the head of a frame, whose fifth to eighth byte are the length of what follows.
const HEAD: usize = 12;
/// Kinds of frames.
const STATE: u8 = 0x05;
const READY: u8 = 0x84;

/// What this process is called, if it is to be one of them.
pub(super) fn name() -> Option<(PathBuf, String)> {
    let path = PathBuf::from(std::env::args_os().next()?);
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.to_owned();
    Some((path, name))
}

/// Is the one of that name, at that path. Returns the code to end with.
pub(super) fn be(path: &Path, name: &str) -> i32 {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--internal-handover-version") => {
            if name != "not-nido" {
                println!("nido-handover 1 nido 99.0.0");
            }
            return 0;
        }
        Some("--internal-take-over") => {}
        _ => return 2,
    }
    match name {
        "dies" => 7,
        "hangs" => sleep(),
        _ => match between(path, name, &arguments) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                1
            }
        },
    }
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Stands between the old nido and a new one.
fn between(path: &Path, name: &str, arguments: &[String]) -> Result<()> {
    let number: RawFd = arguments.get(1).context("no number")?.parse()?;
    let old = UnixStream::from(sys::inherited(number));
    let (new, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    sys::inherit(&theirs)?;
    let program = path.parent().context("no directory")?.join(REAL);
    let child = Command::new(program)
        .arg("--internal-take-over")
        .arg(theirs.as_raw_fd().to_string())
        .args(arguments.iter().skip(2))
        .spawn()?;
    drop(theirs);
    let child = Arc::new(Mutex::new(child));
    let (from_new, to_old) = (new.try_clone()?, old.try_clone()?);
    let (back, whom) = (name.to_owned(), Arc::clone(&child));
    thread::spawn(move || {
        let _ = frames(&from_new, &to_old, |frame| answer(frame, &back, &whom));
    });
    files(&old, &new)?;
    let corrupt = name == "refuses";
    frames(&old, &new, |frame| {
        if corrupt
            && frame.first() == Some(&STATE)
            && let Some(last) = frame.last_mut()
        {
            *last ^= 1;
        }
    })?;
    sleep()
}

/// What becomes of a frame of the new nido.
fn answer(frame: &mut [u8], name: &str, child: &Mutex<Child>) {
    if frame.first() != Some(&READY) {
        return;
    }
    match name {
        "crashes" => {
            let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = child.kill();
            let _ = child.wait();
            std::process::abort();
        }
        "stalls" => sleep(),
        _ => {}
    }
}

/// Passes on what comes until all files have: the byte that carries them is the last of what comes with them.
fn files(from: &UnixStream, to: &UnixStream) -> Result<()> {
    let mut seen = false;
    loop {
        let mut bytes = vec![0; 64 << 10];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let mut space = cmsg_space!([RawFd; 64]);
        let message = recvmsg::<UnixAddr>(
            from.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        let mut numbers = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(some) = part {
                numbers.extend(some);
            }
        }
        let length = message.bytes;
        let carried = usize::from(!numbers.is_empty());
        let plain = bytes
            .get(..length.saturating_sub(carried))
            .unwrap_or_default();
        (&mut &*to).write_all(plain)?;
        if !numbers.is_empty() {
            let rights = [ControlMessage::ScmRights(&numbers)];
            let byte = [IoSlice::new(&[0])];
            sendmsg::<UnixAddr>(to.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
        }
        // What follows them are frames, the first of which is HELLO, and is passed on as it is.
        if seen && numbers.is_empty() {
            return Ok(());
        }
        seen |= !numbers.is_empty();
        if length == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Passes whole frames on, each after `change` had it.
fn frames(
    mut from: &UnixStream,
    mut to: &UnixStream,
    mut change: impl FnMut(&mut [u8]),
) -> io::Result<()> {
    use std::io::Read as _;
    loop {
        let mut frame = vec![0; HEAD];
        from.read_exact(&mut frame)?;
        let length = frame.get(4..8).and_then(|bytes| bytes.try_into().ok());
        let length = length.map_or(0, u32::from_le_bytes) as usize;
        frame.resize(HEAD + length, 0);
        from.read_exact(frame.get_mut(HEAD..).unwrap_or_default())?;
        change(&mut frame);
        to.write_all(&frame)?;
    }
}
