//! A look at the program that is to have the guest: whether it is a nido that knows how.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{ASK, handover};

/// How long it may take to say what it is.
const LIMIT: Duration = Duration::from_secs(5);
/// How often to look.
const LOOK: Duration = Duration::from_millis(2);
/// Most bytes of what it says.
const MOST: usize = 256;

/// What the nido at `path` calls itself: name and version.
///
/// # Errors
/// It is none, or one that does not know this handover.
pub(super) fn look_at(path: &Path) -> Result<String, String> {
    look_within(path, LIMIT)
}

fn look_within(path: &Path, limit: Duration) -> Result<String, String> {
    let shown = path.display();
    let failed = |error: io::Error| format!("exec={shown}: {error}; give the path of a nido");
    let mut command = Command::new(path);
    command.arg(ASK).stdin(Stdio::null()).stderr(Stdio::null());
    // A process group of its own, so that nothing of it is left.
    command.stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let group = i32::try_from(child.id()).ok().map(Pid::from_raw);
    let until = Instant::now() + limit;
    let ended = loop {
        match child.try_wait().map_err(failed)? {
            None if Instant::now() < until => thread::sleep(LOOK),
            ended => break ended,
        }
    };
    // Its number is its own as long as it was not waited for, and the group's as long as somebody is in it.
    if let Some(group) = group {
        // Most of the time there is nobody any more.
        let _ = killpg(group, Signal::SIGKILL);
    }
    if ended.is_none() {
        // It was killed.
        let _ = child.wait();
        return Err(format!(
            "exec={shown}: it does not say within {} ms that it is a nido; give the path of one",
            limit.as_millis()
        ));
    }
    let said = child
        .stdout
        .take()
        .and_then(|pipe| what_is_there(pipe.into()).ok());
    let said = said.unwrap_or_default();
    recognized(&said).map_err(|why| format!("exec={shown}: {why}"))
}

/// What can be read without waiting.
fn what_is_there(pipe: OwnedFd) -> io::Result<String> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut bytes = vec![0; MOST];
    let read = File::from(pipe).read(&mut bytes)?;
    bytes.truncate(read);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The name and the version in what a program says of itself.
fn recognized(said: &str) -> Result<String, String> {
    let line = said.lines().next().unwrap_or_default();
    let words = line.strip_prefix("nido-handover ");
    let words = words.and_then(|words| words.split_once(' '));
    let Some((version, name)) = words else {
        return Err(
            "it is no nido, or one that cannot take a guest over; give the path of one that can"
                .to_owned(),
        );
    };
    if version.parse() != Ok(handover::VERSION) {
        let name: String = name.escape_debug().collect();
        return Err(format!(
            "{name} knows version {} of handovers, and this one {}: move the guest there by `snapshot` and --restore, or by `migrate`",
            version.escape_debug(),
            handover::VERSION
        ));
    }
    Ok(name.escape_debug().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::socket::scratch::Scratch;

    #[test]
    fn a_nido_that_knows_the_same_handover_is_recognized_and_no_other_program() {
        assert_eq!(
            recognized("nido-handover 1 nido 1.2.3\n").as_deref(),
            Ok("nido 1.2.3")
        );
        for (said, why) in [
            ("", "it is no nido"),
            ("GNU bash, version 5\n", "it is no nido"),
            ("nido-handover", "it is no nido"),
            (
                "nido-handover 2 nido 9.0.0\n",
                "nido 9.0.0 knows version 2 of handovers, and this one 1",
            ),
            (
                "nido-handover -1 \u{1b}[2J\n",
                "\\u{1b}[2J knows version -1",
            ),
        ] {
            let error = recognized(said).expect_err(said);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_is_no_program_says_nothing_or_does_not_end_is_refused_in_time() {
        let scratch = Scratch::new();
        let script = |text: &str| {
            let path = scratch.path("program");
            fs::write(&path, text).expect("written");
            let mode = fs::Permissions::from_mode(0o700);
            fs::set_permissions(&path, mode).expect("ours");
            path
        };
        for (text, why) in [
            ("#!/bin/sh\nexit 0\n", "it is no nido"),
            ("#!/bin/sh\nkill -SEGV $$\n", "it is no nido"),
            (
                "#!/bin/sh\nsleep 1000 & sleep 1000\n",
                "does not say within 300 ms",
            ),
            ("#!/bin/sh\nyes\n", "does not say within 300 ms"),
            ("\0", "give the path of a nido"),
        ] {
            let path = script(text);
            let error = look_within(&path, Duration::from_millis(300)).expect_err(text);
            assert!(error.contains(why), "{text:?}: {error}");
        }
        let path = script(
            "#!/bin/sh\n[ $1 = --internal-handover-version ] && echo nido-handover 1 nido 7\n",
        );
        assert_eq!(look_at(&path).as_deref(), Ok("nido 7"));
        let missing = look_at(&scratch.path("missing")).expect_err("nothing there");
        assert!(missing.contains("missing: No such file"), "{missing}");
    }
}
