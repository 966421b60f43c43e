//! Settings of terminals (termios(3)).

use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// Stops `terminal` from repeating what is typed.
pub fn without_echo(terminal: BorrowedFd<'_>) -> io::Result<()> {
    let mut settings = tcgetattr(terminal)?;
    settings.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(terminal, SetArg::TCSANOW, &settings)?;
    Ok(())
}

/// Settings of standard input, put back when the value goes.
pub struct Saved(Option<Termios>);

impl Saved {
    /// The settings as they are now; nothing if standard input is no terminal.
    pub fn of_stdin() -> Self {
        Self(tcgetattr(io::stdin()).ok())
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, settings);
        }
    }
}
