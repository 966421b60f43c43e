//! Output of a guest's console to a file that somebody reads, such as standard output. A reader
//! that does not read holds no vCPU.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a reader may take to make room.
const PATIENCE: Duration = Duration::from_millis(250);
/// What a pipe that is ready takes at once without blocking (`PIPE_BUF`).
const PIECE: usize = 4096;

/// Writes to a file that somebody reads, such as a pipe or a terminal. A write waits a quarter of a
/// second for room and fails then; the writes after it fail at once until there is room again. The
/// file's own flags, which other processes may share, stay as they are.
#[derive(Debug)]
pub struct Output {
    file: File,
    /// The last write found no room in time.
    stuck: bool,
}

impl Output {
    /// Output to `file`.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, stuck: false }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        let patience = if self.stuck { Duration::ZERO } else { PATIENCE };
        self.stuck = !writable(&self.file, patience)?;
        if self.stuck {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.file.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Waits up to `patience` until `file` takes something, or reports an error when it is written to.
fn writable(file: &File, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    let mut set = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut set, left) {
            Ok(ready) => return Ok(ready != 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    fn pipe() -> (io::PipeReader, Output) {
        let (reader, writer) = io::pipe().expect("a pipe");
        (reader, Output::new(File::from(OwnedFd::from(writer))))
    }

    fn fill(output: &mut Output) -> usize {
        let mut written = 0;
        loop {
            match output.write(&[7; 10_000]) {
                Ok(count) => written += count,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return written;
                }
            }
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_one_wait() {
        let (mut reader, mut output) = pipe();
        let begin = Instant::now();
        let written = fill(&mut output);
        assert!(begin.elapsed() >= Duration::from_millis(240));
        let begin = Instant::now();
        for _ in 0..1000 {
            assert!(output.write_all(b"x").is_err());
        }
        assert!(begin.elapsed() < Duration::from_millis(240));
        // There is room again, and nothing of what was accepted is lost.
        let mut read = vec![0; written];
        reader.read_exact(&mut read).expect("all of it");
        output.write_all(b"y").expect("room");
        let mut last = [0];
        reader.read_exact(&mut last).expect("a byte");
        assert_eq!(last, *b"y");
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let (mut reader, mut output) = pipe();
        let written = fill(&mut output);
        output.stuck = false;
        let reading = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut read = vec![0; written + 5];
            reader.read_exact(&mut read).map(|()| read)
        });
        output.write_all(b"later").expect("room in time");
        let read = reading.join().expect("no panic").expect("all of it");
        assert!(read.ends_with(b"later"));
    }

    #[test]
    fn files_take_everything_and_errors_are_reported() {
        let null = File::options().write(true).open("/dev/null");
        let mut output = Output::new(null.expect("there is one"));
        output.write_all(&[0; 100_000]).expect("room");
        let (reader, mut output) = pipe();
        drop(reader);
        let error = output.write_all(b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
