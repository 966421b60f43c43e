//! Console (section 5.3) with one port.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use log::warn;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError, SaveError, Section};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::Chain;
use super::device::{DeviceKind, VirtioDevice};
use super::error::QueueError;
use super::session::{Progress, Session};
use crate::limit::LogLimit;

/// Queue indexes (section 5.3.2).
const RX: usize = 0;
const TX: usize = 1;
/// Size of both queues.
const QUEUE_SIZE: u16 = 64;
/// Input that is kept for a guest that does not read.
const INPUT_LIMIT: usize = 64 << 10;
/// Bytes copied at a time.
const PIECE: usize = 4096;

/// What its state is called.
const KIND: &str = "console";
const VERSION: u32 = 1;

/// What a console is like besides its queues.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleState {
    /// Bytes that the guest has not read.
    typed: Bytes,
}

/// The bytes between a sender and the console.
struct Pipe {
    /// Leaf lock: nothing is called while it is held.
    bytes: Mutex<VecDeque<u8>>,
    /// Readable while there may be bytes.
    event: EventFd,
}

/// The typing end of a console.
#[derive(Clone)]
pub struct ConsoleSender(Arc<Pipe>);

impl ConsoleSender {
    /// Types `data`. The result is how many bytes fit; a guest that does not read for long loses
    /// the rest.
    ///
    /// # Errors
    /// When the console cannot be woken.
    pub fn send(&self, data: &[u8]) -> io::Result<usize> {
        let taken = {
            let mut bytes = self.0.bytes.lock();
            let taken = data.len().min(INPUT_LIMIT.saturating_sub(bytes.len()));
            bytes.extend(data.iter().take(taken));
            taken
        };
        self.0.event.write(1)?;
        Ok(taken)
    }
}

/// The reading end, for the console.
pub struct ConsoleInput(Arc<Pipe>);

impl ConsoleInput {
    /// A connected pair.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn channel() -> io::Result<(ConsoleSender, Self)> {
        let pipe = Arc::new(Pipe {
            bytes: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        Ok((ConsoleSender(Arc::clone(&pipe)), Self(pipe)))
    }
}

/// A console device; its port is `hvc0` in Linux.
pub struct Console {
    input: ConsoleInput,
    output: Box<dyn Write + Send>,
    /// Whether the driver may have a receive buffer.
    room: bool,
    chain: Chain,
    limit: LogLimit,
}

impl Console {
    /// A console between `input` and `output`.
    #[must_use]
    pub fn new(input: ConsoleInput, output: Box<dyn Write + Send>) -> Self {
        Self {
            input,
            output,
            room: false,
            chain: Chain::default(),
            limit: LogLimit::default(),
        }
    }

    /// Gives typed bytes to the guest until one side has no more.
    fn receive(&mut self, session: &mut Session) -> Result<(), QueueError> {
        let mut piece = [0; PIECE];
        for _ in 0..session.queue_size(RX) {
            let Self {
                input: ConsoleInput(pipe),
                chain,
                ..
            } = self;
            if pipe.bytes.lock().is_empty() {
                return Ok(());
            }
            if !session.pop(RX, chain)? {
                self.room = false;
                return Ok(());
            }
            let count = {
                let mut bytes = pipe.bytes.lock();
                let room = usize::try_from(chain.writable())
                    .unwrap_or(PIECE)
                    .min(PIECE);
                let count = room.min(bytes.len());
                for (slot, byte) in piece.iter_mut().zip(bytes.drain(..count)) {
                    *slot = byte;
                }
                count
            };
            let given = piece.get(..count).unwrap_or_default();
            session.give(RX, chain, given)?;
        }
        // One turn is over, but there is more.
        if let Err(error) = self.input.0.event.write(1) {
            self.report(&error);
        }
        Ok(())
    }

    /// Writes one buffer of the guest out; `false` if there is none.
    fn transmit(&mut self, session: &mut Session) -> Result<bool, QueueError> {
        if !session.pop(TX, &mut self.chain)? {
            return Ok(false);
        }
        let mut piece = [0; PIECE];
        let length = self.chain.readable();
        let mut done = 0;
        while done < length && !session.stopping() {
            let count = usize::try_from(length - done).unwrap_or(PIECE).min(PIECE);
            let part = piece.get_mut(..count).unwrap_or_default();
            session.read(&self.chain, done, part)?;
            if let Err(error) = self.output.write_all(part) {
                self.report(&error);
                break;
            }
            done += count as u64;
        }
        if let Err(error) = self.output.flush() {
            self.report(&error);
        }
        session.complete(TX, &self.chain, 0)?;
        Ok(true)
    }

    fn report(&mut self, error: &io::Error) {
        if let Some(held_back) = self.limit.pass() {
            warn!("virtio-console: output is lost: {error} ({held_back} messages held back)");
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    /// No feature, so no field of `struct virtio_console_config` means anything; it is there
    /// because drivers expect the structure.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    fn save(&mut self) -> Result<Section, SaveError> {
        let typed: Vec<u8> = self.input.0.bytes.lock().iter().copied().collect();
        let state = ConsoleState {
            typed: typed.into(),
        };
        Section::new(KIND, VERSION, &state)
    }

    /// What was typed meanwhile comes behind what is restored.
    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        let state: ConsoleState = state.read(KIND, VERSION)?;
        let typed = state.typed.as_slice();
        let room = INPUT_LIMIT.checked_sub(typed.len()).ok_or_else(|| {
            let why = format_args!("{} bytes, and {INPUT_LIMIT} are the most", typed.len());
            RestoreError::damaged("what was typed", why)
        })?;
        let pipe = &self.input.0;
        let mut bytes = pipe.bytes.lock();
        let later = std::mem::replace(&mut *bytes, typed.to_vec().into());
        bytes.extend(later.into_iter().take(room));
        drop(bytes);
        let signalled = pipe.event.write(1);
        signalled.map_err(|error| RestoreError::host("the console", error))
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        self.room = false;
        Ok(())
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.input.0.event.as_raw_fd()]
    }

    fn wants(&self, _source: usize) -> bool {
        self.room
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        if index == RX {
            self.room = true;
            self.receive(session)?;
            return Ok(Progress::Idle);
        }
        session.turn(TX, |session| self.transmit(session))
    }

    fn source_ready(&mut self, _source: usize, session: &mut Session) -> Result<(), QueueError> {
        // Cleared first: bytes that arrive from here on signal it again.
        let _ = self.input.0.event.read();
        self.receive(session)
    }
}
