//! The logger: one line a message on standard error, and not more of them than a guest may cause.
//!
//! Any thread may have something to say, a vCPU that holds locks as well. So nobody who logs waits
//! for the reader of standard error: see [`lines`].

mod lines;

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use lines::Lines;

/// Lines that may come at once.
const BURST: u32 = 100;
/// One more line may come after each such time.
const INTERVAL: Duration = Duration::from_millis(100);

struct Logger {
    /// Leaf lock.
    bucket: Mutex<Bucket>,
    lines: Lines,
}

/// A token bucket that counts what it turned away.
struct Bucket {
    tokens: u32,
    refilled: Option<Instant>,
    dropped: u64,
}

impl Bucket {
    const fn new() -> Self {
        Self {
            tokens: BURST,
            refilled: None,
            dropped: 0,
        }
    }

    /// Whether a line may be written now; if so, how many were not since the last one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let last = *self.refilled.get_or_insert(now);
        let passed = now.saturating_duration_since(last).as_millis() / INTERVAL.as_millis();
        if passed > 0 {
            self.tokens = self
                .tokens
                .saturating_add(u32::try_from(passed).unwrap_or(BURST))
                .min(BURST);
            self.refilled = Some(now);
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let dropped = self.bucket.lock().take(Instant::now());
        let Some(dropped) = dropped else { return };
        let mut text = String::new();
        if dropped > 0 {
            let _ = writeln!(text, "nido: warning: {dropped} messages were left out");
        }
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        let _ = writeln!(text, "nido: {level}: {}", record.args());
        self.lines.push(shown(text));
    }

    /// Waits until everything is written, or for a second if that is not read.
    fn flush(&self) {
        self.lines.flush();
    }
}

static LOGGER: Logger = Logger {
    bucket: Mutex::new(Bucket::new()),
    lines: Lines::new(),
};

/// Starts logging: warnings, and more with each `-v`. The thread that writes them inherits the
/// signals that are blocked.
///
/// # Errors
/// When the host has no descriptor or thread left.
pub(crate) fn install(verbosity: u8) -> io::Result<()> {
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    // An error means that there is a logger already, which is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
    let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    LOGGER.lines.start(file)
}

/// The last message of the process, which comes whatever the guest has caused before. Waits for it
/// as [`Log::flush`] does.
pub(crate) fn last_words(text: String) {
    LOGGER.lines.push(shown(text));
    LOGGER.flush();
}

/// The same without what a terminal obeys, but for the ends of lines: names of files and what another
/// process says are in messages as they are.
fn shown(text: String) -> String {
    let is_obeyed = |character: char| character.is_control() && character != '\n';
    if !text.contains(is_obeyed) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_obeyed(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_is_obeyed_by_a_terminal() {
        for plain in ["nido: error: \u{e9}t\u{e9}\n", "rip 0x10\n  rsp\n"] {
            assert_eq!(shown(plain.to_owned()), plain);
        }
        let hostile = "a\u{1b}]0;owned\u{7}b\u{9b}2J\rc\n".to_owned();
        assert_eq!(shown(hostile), "a\\u{1b}]0;owned\\u{7}b\\u{9b}2J\\rc\n");
    }

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let mut bucket = Bucket::new();
        let start = Instant::now();
        assert_eq!(
            (0..500).filter(|_| bucket.take(start).is_some()).count(),
            100
        );
        let later = start + Duration::from_secs(1);
        assert_eq!(
            bucket.take(later),
            Some(400),
            "the first line after a gap says what is missing"
        );
        assert_eq!((0..500).filter(|_| bucket.take(later).is_some()).count(), 9);
    }
}
