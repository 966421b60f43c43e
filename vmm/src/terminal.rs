//! The terminal: raw while a guest uses it, and as it was on every way out.

#![allow(unsafe_code)] // Terminal attributes have no safe interface that restores exactly what was there.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::PoisonError;

/// What standard input was before; `None` when there is nothing to restore.
static ORIGINAL: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Passes each key on at once, without echo and without turning any into a signal. Output processing stays on, so that nido's
/// own messages keep their shape. Does nothing when standard input is no terminal.
pub(crate) fn make_raw() -> io::Result<()> {
    if !io::stdin().is_terminal() {
        return Ok(());
    }
    let mut attributes = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to space for a `termios`, which the call fills when it succeeds.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, attributes.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the structure is complete.
    let original = unsafe { attributes.assume_init() };
    let mut raw = original;
    raw.c_iflag &=
        !(libc::BRKINT | libc::ICRNL | libc::INLCR | libc::IGNCR | libc::ISTRIP | libc::IXON);
    raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
    raw.c_cc[libc::VMIN] = 1;
    raw.c_cc[libc::VTIME] = 0;
    *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
    set(&raw)
}

/// Puts the terminal back. May be called at any time and any number of times.
pub(crate) fn restore() {
    if let Some(original) = ORIGINAL
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        // A terminal that is gone needs no restoring.
        let _ = set(&original);
    }
}

fn set(attributes: &libc::termios) -> io::Result<()> {
    // SAFETY: the pointer is to a live, complete `termios`.
    if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, attributes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Restores the terminal when dropped.
pub(crate) struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes a panic in any thread restore the terminal, print its message and end the process with exit code 1.
pub(crate) fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        report(info);
        std::process::exit(1);
    }));
}
