//! Settings of terminals.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Stops `terminal` from repeating what is typed.
pub fn without_echo(terminal: BorrowedFd<'_>) -> io::Result<()> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: settings has room for what tcgetattr writes.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded and has written all of it.
    let mut settings = unsafe { settings.assume_init() };
    settings.c_lflag &= !libc::ECHO;
    // SAFETY: settings came from tcgetattr.
    if unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Settings of standard input, put back when the value goes.
pub struct Saved(Option<libc::termios>);

impl Saved {
    /// The settings as they are now; nothing if standard input is no terminal.
    pub fn of_stdin() -> Self {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: settings has room for what tcgetattr writes.
        if unsafe { libc::tcgetattr(0, settings.as_mut_ptr()) } != 0 {
            return Self(None);
        }
        // SAFETY: tcgetattr succeeded and has written all of it.
        Self(Some(unsafe { settings.assume_init() }))
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // SAFETY: settings came from tcgetattr.
            unsafe { libc::tcsetattr(0, libc::TCSANOW, settings) };
        }
    }
}
