//! Standard input for the guest: a thread that reads it, with the escape key taken out.

use std::io::{self, Read};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use crate::vm::Event;

/// Ctrl-A.
const ESCAPE: u8 = 1;
/// How long to wait when the guest takes no more input.
const RETRY: Duration = Duration::from_millis(10);

/// Recognizes `Ctrl-A x` (quit) and `Ctrl-A Ctrl-A` (one Ctrl-A for the guest).
#[derive(Default)]
struct Filter {
    escaped: bool,
}

impl Filter {
    /// What of `input` is for the guest, and whether the user wants to quit.
    fn pass(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut output = Vec::with_capacity(input.len());
        for &byte in input {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return (output, true),
                (true, ESCAPE) | (false, _) => output.push(byte),
                (true, _) => output.extend([ESCAPE, byte]),
            }
        }
        (output, false)
    }
}

/// Reads standard input until it ends. `push` takes what it has room for and returns how much that was.
///
/// The thread is never joined: it ends with the process, since nothing interrupts a read of a terminal.
pub(crate) fn start(
    events: Sender<Event>,
    push: impl Fn(&[u8]) -> usize + Send + 'static,
) -> io::Result<()> {
    let read = move || {
        let mut filter = Filter::default();
        let mut buffer = [0; 4096];
        loop {
            let length = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::warn!("standard input is lost: {error}");
                    return;
                }
            };
            let (output, quit) = filter.pass(buffer.get(..length).unwrap_or_default());
            let mut rest = output.as_slice();
            while !rest.is_empty() && !quit {
                rest = rest.get(push(rest)..).unwrap_or_default();
                if !rest.is_empty() {
                    thread::sleep(RETRY);
                }
            }
            if quit {
                let _ = events.send(Event::Quit);
                return;
            }
        }
    };
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_quits_even_across_reads() {
        assert_eq!(Filter::default().pass(b"ab\x01xc"), (b"ab".to_vec(), true));
        let mut filter = Filter::default();
        assert_eq!(filter.pass(b"ab\x01"), (b"ab".to_vec(), false));
        assert_eq!(filter.pass(b"x"), (vec![], true));
    }

    #[test]
    fn ctrl_a_twice_is_one_ctrl_a_and_other_keys_pass() {
        assert_eq!(
            Filter::default().pass(b"\x01\x01x"),
            (b"\x01x".to_vec(), false)
        );
        assert_eq!(Filter::default().pass(b"\x01b"), (b"\x01b".to_vec(), false));
    }
}
