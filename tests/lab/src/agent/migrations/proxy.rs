//! A connection between two nidos that is slow, or that ends in the middle.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::LOOK;

/// Bytes before each payload: kind, three of zeros, the payload's length, its checksum.
const HEADER: usize = 12;
/// Bytes that are passed on at once.
const PIECE: usize = 16 << 10;

/// A place in what goes through a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Of what the target sends, or of what the source does.
    pub(super) back: bool,
    /// At the first frame of this kind.
    pub(super) kind: u8,
}

/// What happens there.
#[derive(Debug)]
pub(super) enum Event {
    /// The connection ends before the frame, or in the middle of it.
    Cut { amid: bool },
    /// The frame is held back until it is to go on.
    Held(Gate),
}

/// How a frame is held: the one end tells that it has come, the other that it is to go on.
#[derive(Debug)]
pub(super) struct Gate {
    reached: Sender<()>,
    released: Receiver<()>,
}

/// The other side of a [`Gate`].
pub(super) struct Keeper {
    reached: Receiver<()>,
    release: Sender<()>,
}

impl Gate {
    pub(super) fn new() -> (Self, Keeper) {
        let (tell, reached) = channel();
        let (release, released) = channel();
        let gate = Self {
            reached: tell,
            released,
        };
        (gate, Keeper { reached, release })
    }

    /// Waits for the keeper, and not longer than there is one.
    fn pass(&self) {
        let _ = self.reached.send(());
        let _ = self.released.recv();
    }
}

impl Keeper {
    /// Waits for the frame.
    pub(super) fn wait(&self, limit: Duration) -> Result<()> {
        self.reached
            .recv_timeout(limit)
            .context("the frame does not come")
    }

    /// Has it go on.
    pub(super) fn release(self) {
        // The connection may have ended.
        let _ = self.release.send(());
    }
}

/// Passes on what one connection brings, until that ends.
pub(super) struct Proxy {
    carried: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens at `here`; whoever comes is connected to `there`. So many bytes a second go there at most, if
    /// there is a `rate`.
    pub(super) fn start(
        here: &Path,
        there: &Path,
        rate: Option<u64>,
        mut event: Option<(Place, Event)>,
    ) -> Result<Self> {
        // The one before is of no use any more.
        let _ = fs::remove_file(here);
        let listener = UnixListener::bind(here).with_context(|| here.display().to_string())?;
        let carried = Arc::new(AtomicU64::new(0));
        let (count, there) = (Arc::clone(&carried), there.to_owned());
        thread::spawn(move || {
            // Without a connection there is nothing to pass on, which either side finds out.
            let _ = listener.accept().and_then(|(source, _)| {
                let target = UnixStream::connect(&there)?;
                join(&source, &target, &count, rate, event.take())
            });
        });
        Ok(Self { carried })
    }

    /// Bytes that the source has sent.
    pub(super) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Waits until it has sent so many.
    pub(super) fn wait_for(&self, bytes: u64, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while self.carried() < bytes {
            ensure!(Instant::now() < until, "{bytes} bytes are not sent in time");
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

fn join(
    source: &UnixStream,
    target: &UnixStream,
    carried: &AtomicU64,
    rate: Option<u64>,
    event: Option<(Place, Event)>,
) -> io::Result<()> {
    let (forth_event, back_event) = match event {
        Some((place, event)) if place.back => (None, Some((place.kind, event))),
        Some((place, event)) => (Some((place.kind, event)), None),
        None => (None, None),
    };
    thread::scope(|scope| {
        let back = scope.spawn(move || {
            let mut lane = Lane::new(target, source, None, back_event);
            let result = lane.run(&AtomicU64::new(0));
            end([source, target]);
            result.map(drop)
        });
        let mut lane = Lane::new(source, target, rate, forth_event);
        let result = lane.run(carried);
        match result {
            // The target may have something to say yet.
            Ok(Ended::ByItself) => target.shutdown(Shutdown::Write)?,
            _ => end([source, target]),
        }
        back.join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn end(sides: [&UnixStream; 2]) {
    for side in sides {
        // It may have gone already.
        let _ = side.shutdown(Shutdown::Both);
    }
}

/// Why nothing more goes one way.
enum Ended {
    ByItself,
    Cut,
}

/// One direction.
struct Lane<'a> {
    from: &'a UnixStream,
    to: &'a UnixStream,
    rate: Option<u64>,
    /// What happens at the first frame of a kind.
    event: Option<(u8, Event)>,
    started: Instant,
    passed: u64,
}

impl<'a> Lane<'a> {
    fn new(
        from: &'a UnixStream,
        to: &'a UnixStream,
        rate: Option<u64>,
        event: Option<(u8, Event)>,
    ) -> Self {
        Self {
            from,
            to,
            rate,
            event,
            started: Instant::now(),
            passed: 0,
        }
    }

    /// Passes on frame by frame, until the connection ends or is to.
    fn run(&mut self, carried: &AtomicU64) -> io::Result<Ended> {
        let mut piece = vec![0; PIECE];
        let mut header = [0; HEADER];
        loop {
            match self.from.read_exact(&mut header) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Ended::ByItself);
                }
                other => other?,
            }
            let [kind, _, _, _, a, b, c, d, ..] = header;
            let mut left = u32::from_le_bytes([a, b, c, d]) as usize;
            let here = self.event.take_if(|(place, _)| *place == kind);
            let is_cut = matches!(here, Some((_, Event::Cut { .. })));
            match here {
                Some((_, Event::Cut { amid: false })) => return Ok(Ended::Cut),
                Some((_, Event::Cut { amid: true })) => left /= 2,
                Some((_, Event::Held(gate))) => gate.pass(),
                None => {}
            }
            self.pass(&header)?;
            while left > 0 {
                let part = piece.get_mut(..left.min(PIECE)).unwrap_or_default();
                self.from.read_exact(part)?;
                left -= part.len();
                self.pass(part)?;
                carried.store(self.passed, Ordering::Relaxed);
            }
            if is_cut {
                return Ok(Ended::Cut);
            }
        }
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut to = self.to;
        to.write_all(bytes)?;
        self.passed += bytes.len() as u64;
        if let Some(rate) = self.rate {
            let micros = self.passed.saturating_mul(1_000_000) / rate.max(1);
            let due = self.started + Duration::from_micros(micros);
            let now = Instant::now();
            match due.checked_duration_since(now) {
                Some(early) => thread::sleep(early),
                // A time without anything to pass on is not made up for.
                None => self.started += now - due,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        frame.extend([9; 4]);
        frame.extend(payload);
        frame
    }

    /// What arrives of two frames each way.
    fn carry(name: &str, event: Option<(Place, Event)>) -> (Vec<u8>, Vec<u8>) {
        let directory = std::env::temp_dir().join(format!("lab-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (here, there) = (directory.join("here"), directory.join("there"));
        let listener = UnixListener::bind(&there).unwrap();
        let is_forth = matches!(event, Some((Place { back: false, .. }, _)));
        let _proxy = Proxy::start(&here, &there, None, event).unwrap();
        let mut source = UnixStream::connect(&here).unwrap();
        let (mut target, _) = listener.accept().unwrap();
        source
            .write_all(&[frame(1, b"abcd"), frame(2, b"efgh")].concat())
            .unwrap();
        if !is_forth {
            target
                .write_all(&[frame(3, b""), frame(4, b"")].concat())
                .unwrap();
            source.shutdown(Shutdown::Write).unwrap();
        }
        let (mut forth, mut back) = (Vec::new(), Vec::new());
        target.read_to_end(&mut forth).unwrap();
        drop(target);
        // The source hears of a reset if not all of what it has sent was read.
        let _ = source.read_to_end(&mut back);
        fs::remove_dir_all(&directory).unwrap();
        (forth, back)
    }

    #[test]
    fn what_comes_is_passed_on_both_ways() {
        let (forth, back) = carry("whole", None);
        assert_eq!(forth, [frame(1, b"abcd"), frame(2, b"efgh")].concat());
        assert_eq!(back, [frame(3, b""), frame(4, b"")].concat());
    }

    #[test]
    fn a_connection_ends_before_a_frame_or_in_the_middle_of_it() {
        let cut = |back, kind, amid| Some((Place { back, kind }, Event::Cut { amid }));
        let (forth, _) = carry("before", cut(false, 2, false));
        assert_eq!(forth, frame(1, b"abcd"));
        let (forth, _) = carry("amid", cut(false, 2, true));
        let whole = [frame(1, b"abcd"), frame(2, b"efgh")].concat();
        assert_eq!(forth, whole[..whole.len() - 2]);
        let (_, back) = carry("back", cut(true, 4, false));
        assert_eq!(back, frame(3, b""));
    }

    #[test]
    fn a_frame_is_held_until_it_is_released() {
        let (gate, keeper) = Gate::new();
        let keeping = thread::spawn(move || {
            keeper.wait(Duration::from_secs(10)).unwrap();
            keeper.release();
        });
        let place = Place {
            back: true,
            kind: 3,
        };
        let (forth, back) = carry("held", Some((place, Event::Held(gate))));
        keeping.join().unwrap();
        assert_eq!(forth, [frame(1, b"abcd"), frame(2, b"efgh")].concat());
        assert_eq!(back, [frame(3, b""), frame(4, b"")].concat());
    }
}
