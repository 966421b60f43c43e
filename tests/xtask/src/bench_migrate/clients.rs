//! Clients of sockets on which lines are answered by lines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long to wait for somebody to listen.
const START: Duration = Duration::from_secs(20);
/// How often to look for that.
const LOOK: Duration = Duration::from_millis(5);

/// A connection.
pub(super) struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    /// Connects, as soon as somebody listens there. Each answer may take `limit`.
    pub(super) fn new(socket: &Path, limit: Duration) -> Result<Self> {
        let until = Instant::now() + START;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => {
                    return Err(error).with_context(|| socket.display().to_string());
                }
                Err(_) => thread::sleep(LOOK),
            }
        };
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let lines = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, lines })
    }

    /// Sends a line.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(format!("{text}\n").as_bytes())?;
        Ok(())
    }

    /// The next line.
    pub(super) fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.lines.read_line(&mut line).context("no answer")?;
        anyhow::ensure!(length > 0, "the connection ends");
        Ok(line)
    }
}
