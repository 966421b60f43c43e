//! The terminal: raw while a guest uses it, and as it was on every way out.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use parking_lot::Mutex;

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
