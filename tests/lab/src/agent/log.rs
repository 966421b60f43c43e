//! Serial logs: every line with the time since the start.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use crate::sys::monotonic_ns;

/// A line and when its last byte came, in CLOCK_MONOTONIC nanoseconds.
pub(super) struct Line {
    /// Time.
    pub(super) at: u64,
    /// Text without its line end.
    pub(super) text: String,
}

/// A file of lines with times.
pub(super) struct Log {
    file: BufWriter<File>,
    start: u64,
}

impl Log {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            file: BufWriter::new(file),
            start: monotonic_ns(),
        })
    }

    pub(super) fn write(&mut self, line: &Line) {
        let seconds =
            std::time::Duration::from_nanos(line.at.saturating_sub(self.start)).as_secs_f64();
        // A full disk shows elsewhere; the judge has the line already.
        let _ = writeln!(self.file, "[+{seconds:8.3}] {}", line.text);
        let _ = self.file.flush();
    }
}

/// Splits what comes from `source` into lines and sends them; ends with the source.
pub(super) fn read_lines(
    source: impl Read + Send + 'static,
    lines: Sender<Line>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let rest = split(source, Vec::new(), &lines);
        if !rest.is_empty() {
            send(&rest, &lines);
        }
    })
}

/// The same for a line that was `begun`. The thread returns what it has of the last line, which may go
/// on elsewhere.
pub(super) fn read_on(
    source: impl Read + Send + 'static,
    begun: Vec<u8>,
    lines: Sender<Line>,
) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || split(source, begun, &lines))
}

fn split(mut source: impl Read, begun: Vec<u8>, lines: &Sender<Line>) -> Vec<u8> {
    let mut buffer = vec![0; 65536];
    let mut partial = begun;
    while let Ok(length) = source.read(&mut buffer) {
        if length == 0 {
            break;
        }
        for byte in buffer.get(..length).unwrap_or_default() {
            partial.push(*byte);
            if *byte == b'\n' || partial.len() > 8192 {
                if !send(&partial, lines) {
                    return Vec::new();
                }
                partial.clear();
            }
        }
    }
    partial
}

/// Whether anybody wants it.
fn send(bytes: &[u8], lines: &Sender<Line>) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    let at = monotonic_ns();
    lines.send(Line { at, text }).is_ok()
}
