//! The terminal: raw while a guest uses it, and as it was on every way out.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What standard input was before; `None` when there is nothing to restore. Leaf lock.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Passes each key on at once, without echo and without turning any into a signal. Output
/// processing stays on, so that nido's own messages keep their shape. Does nothing when standard
/// input is no terminal.
pub(crate) fn make_raw() -> io::Result<()> {
    if !io::stdin().is_terminal() {
        return Ok(());
    }
    let original = tcgetattr(io::stdin())?;
    let mut raw = original.clone();
    raw.input_flags -= InputFlags::BRKINT
        | InputFlags::ICRNL
        | InputFlags::INLCR
        | InputFlags::IGNCR
        | InputFlags::ISTRIP
        | InputFlags::IXON;
    raw.local_flags -=
        LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN;
    raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    *ORIGINAL.lock() = Some(original);
    set(&raw)
}

/// What a terminal is like, in numbers that another process of this host understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// `c_iflag`, `c_oflag`, `c_cflag`, `c_lflag`.
    flags: [u32; 4],
    line: u8,
    /// `c_cc`.
    characters: Vec<u8>,
    /// Of input and output.
    speeds: [u32; 2],
}

/// What the terminal is to be like at the end, if it is not like that now.
pub(crate) fn saved() -> Option<Saved> {
    let original = libc::termios::from(ORIGINAL.lock().clone()?);
    Some(Saved {
        flags: [
            original.c_iflag,
            original.c_oflag,
            original.c_cflag,
            original.c_lflag,
        ],
        line: original.c_line,
        characters: original.c_cc.to_vec(),
        speeds: [original.c_ispeed, original.c_ospeed],
    })
}

/// The terminal is raw, and is to be like that at the end.
pub(crate) fn take_over(saved: &Saved) {
    let Ok(terminal) = tcgetattr(io::stdin()) else {
        return;
    };
    let mut original = libc::termios::from(terminal);
    let [input, output, control, local] = saved.flags;
    original.c_iflag = input;
    original.c_oflag = output;
    original.c_cflag = control;
    original.c_lflag = local;
    original.c_line = saved.line;
    for (place, character) in original.c_cc.iter_mut().zip(&saved.characters) {
        *place = *character;
    }
    [original.c_ispeed, original.c_ospeed] = saved.speeds;
    *ORIGINAL.lock() = Some(original.into());
}

/// Puts the terminal back. May be called at any time and any number of times.
pub(crate) fn restore() {
    // Held until the terminal is back: who comes second may end the process.
    let mut original = ORIGINAL.lock();
    if let Some(original) = original.take() {
        // A terminal that is gone needs no restoring.
        let _ = set(&original);
    }
}

fn set(attributes: &Termios) -> io::Result<()> {
    Ok(tcsetattr(io::stdin(), SetArg::TCSANOW, attributes)?)
}

/// Restores the terminal when dropped.
pub(crate) struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        restore();
    }
}

/// How long a panic's message may take to be read.
const PANIC: Duration = Duration::from_secs(5);

/// Makes a panic in any thread restore the terminal, print its message and end the process with
/// exit code 1. A message that nobody reads does not keep it from that.
pub(crate) fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        // Without it, the message is written all the same.
        let _ = thread::Builder::new().spawn(|| {
            thread::sleep(PANIC);
            std::process::exit(1);
        });
        log::logger().flush();
        report(info);
        std::process::exit(1);
    }));
}
