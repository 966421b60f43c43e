//! Memory that comes and goes while the guest runs (section 5.15): a region of guest memory in blocks, of
//! which the driver plugs as many as it is asked for.
//!
//! A block that is not plugged takes no memory of the host, as far as the guest leaves it alone: it is there,
//! and reads as zeros. A guest that writes to one all the same takes memory for it that is given back with
//! the next unplug, so that it never has more than the region is large.
//!
//! A reset of the device leaves its blocks as they are (section 5.15.6): the next driver unplugs what it does
//! not know of.

mod blocks;
mod request;
mod saved;
mod shared;

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

use log::warn;
use state::{RestoreError, SaveError, Section};
use vm_memory::GuestAddress;

use super::balloon::Reclaim;
use super::chain::Chain;
use super::device::{DeviceKind, LiveConfig, VirtioDevice};
use super::error::QueueError;
use super::feature::mask;
use super::session::{Progress, Session};
use crate::limit::LogLimit;
use blocks::Blocks;
use request::{Answer, REQUEST, RESPONSE, Request, Response, State};
use shared::Shared;

pub use shared::{MemControl, MemFigures};

const QUEUE: usize = 0;
const QUEUE_SIZES: &[u16] = &[128];

/// Feature bit (section 5.15.3): a driver is to leave blocks alone that are not plugged.
const UNPLUGGED_INACCESSIBLE: u32 = 1;

/// Most bytes that are given back between two looks whether the device is to stop.
const PIECE: u64 = 4 << 20;

/// What is behind the region: memory that can be given back, and others than the guest that reach it.
pub trait Plug: Reclaim {
    /// Devices of the host reach these blocks as well from here on, each of `block` bytes, which may go by itself.
    ///
    /// # Errors
    /// The host refuses; nothing has changed.
    fn hold(&self, start: GuestAddress, length: u64, block: u64) -> io::Result<()>;

    /// No device of the host reaches these blocks when this returns, or it did not before.
    ///
    /// # Errors
    /// The host refuses; it may be tried again.
    fn release(&self, start: GuestAddress, length: u64) -> io::Result<()>;
}

/// Where the region is, and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemOptions {
    /// Guest-physical address of its first byte, a multiple of the size of a block.
    pub address: u64,
    /// Bytes, a multiple of the size of a block.
    pub size: u64,
    /// Bytes of a block, a power of two.
    pub block: u64,
    /// Bytes that the guest is asked to plug at first, a multiple of the size of a block.
    pub requested: u64,
}

/// A memory device.
pub struct Mem {
    memory: Arc<dyn Plug>,
    shared: Arc<Shared>,
    blocks: Blocks,
    /// How often the size that is asked for had changed when the driver was last told to look at it.
    told: u64,
    chain: Chain,
    limit: LogLimit,
}

impl Mem {
    /// One of whose region nothing is plugged; it is a part of `memory`, and holds zeros.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new(options: &MemOptions, memory: Arc<dyn Plug>) -> io::Result<Self> {
        Ok(Self {
            memory,
            shared: Arc::new(Shared::new(options)?),
            blocks: Blocks::new(options),
            told: Shared::FIRST,
            chain: Chain::default(),
            limit: LogLimit::default(),
        })
    }

    /// What changes its size, and tells of it.
    #[must_use]
    pub fn control(&self) -> MemControl {
        MemControl::of(&self.shared)
    }

    /// Carries out one request; `false` if there is none.
    fn serve(&mut self, session: &mut Session) -> Result<bool, QueueError> {
        if !session.pop(QUEUE, &mut self.chain)? {
            return Ok(false);
        }
        if self.chain.readable() < REQUEST as u64 || self.chain.writable() < RESPONSE as u64 {
            return Err(QueueError::Length);
        }
        let mut bytes = [0; REQUEST];
        session.read(&self.chain, 0, &mut bytes)?;
        let answer = match Request::decode(bytes) {
            Some(request) => self.carry_out(request, session)?,
            None => Some(Response::Error.into()),
        };
        let Some(answer) = answer else {
            // To stop, for a while or for good. It is carried out once more then: nothing of it counts yet.
            session.undo(QUEUE, 1);
            return Ok(false);
        };
        session.give(QUEUE, &self.chain, &answer.encode())?;
        Ok(true)
    }

    /// `None` if the device is to stop before that is done.
    fn carry_out(
        &mut self,
        request: Request,
        session: &mut Session,
    ) -> Result<Option<Answer>, QueueError> {
        Ok(Some(match request {
            Request::Plug { address, count } => self.plug(address, count).into(),
            Request::Unplug { address, count } => match self.blocks.range(address, count) {
                Some(range) if self.blocks.state(range) == State::Plugged => {
                    return self.unplug(range, session);
                }
                _ => Response::Error.into(),
            },
            Request::UnplugAll => return self.unplug(self.blocks.all(), session),
            Request::State { address, count } => match self.blocks.range(address, count) {
                Some(range) => Answer::state(self.blocks.state(range)),
                None => Response::Error.into(),
            },
        }))
    }

    /// Plugs blocks that are not, as far as there are to be so many.
    fn plug(&mut self, address: u64, count: u16) -> Response {
        let Some(range) = self.blocks.range(address, count) else {
            return Response::Error;
        };
        if self.blocks.state(range) != State::Unplugged {
            return Response::Error;
        }
        let size = self.blocks.bytes(range);
        if self.blocks.plugged().saturating_add(size) > self.shared.requested() {
            return Response::Nack;
        }
        // Before the guest is told, which uses them for its devices at once.
        if let Err(error) = self.hold(range) {
            self.warn(range, "plug", &error);
            return Response::Busy;
        }
        self.blocks.set(range, true);
        self.shared.set_plugged(self.blocks.plugged());
        Response::Ack
    }

    /// Has devices of the host reach these blocks.
    fn hold(&self, range: blocks::Range) -> io::Result<()> {
        let start = GuestAddress(self.blocks.address(range));
        let (bytes, block) = (self.blocks.bytes(range), self.shared.block());
        self.memory.hold(start, bytes, block)
    }

    fn warn(&mut self, range: blocks::Range, what: &str, error: &io::Error) {
        if let Some(held_back) = self.limit.pass() {
            warn!(
                "virtio-mem: the host does not {what} {:#x} bytes at {:#x}: {error} ({held_back} messages held back)",
                self.blocks.bytes(range),
                self.blocks.address(range)
            );
        }
    }

    /// Gives blocks back to the host, which are unplugged when all of them have gone: from devices first, which
    /// keep them pinned.
    fn unplug(
        &mut self,
        range: blocks::Range,
        session: &mut Session,
    ) -> Result<Option<Answer>, QueueError> {
        let outcome = self.give_back(range, session);
        if !matches!(outcome, Ok(Some(Response::Ack))) {
            // What is plugged still is devices' to reach.
            for range in self.blocks.plugged_of(range) {
                if let Err(error) = self.hold(range) {
                    self.warn(range, "have devices reach again", &error);
                }
            }
            return Ok(outcome?.map(Answer::from));
        }
        self.blocks.set(range, false);
        self.shared.set_plugged(self.blocks.plugged());
        Ok(Some(Response::Ack.into()))
    }

    /// `None` if the device is to stop before that is done.
    fn give_back(
        &mut self,
        range: blocks::Range,
        session: &mut Session,
    ) -> Result<Option<Response>, QueueError> {
        let start = GuestAddress(self.blocks.address(range));
        if let Err(error) = self.memory.release(start, self.blocks.bytes(range)) {
            self.warn(range, "take from devices", &error);
            return Ok(Some(Response::Busy));
        }
        for piece in self.blocks.pieces(range, PIECE) {
            if !session.goes_on()? {
                return Ok(None);
            }
            let start = GuestAddress(self.blocks.address(piece));
            if let Err(error) = self.memory.reclaim(start, self.blocks.bytes(piece)) {
                self.warn(piece, "take back", &error);
                return Ok(Some(Response::Busy));
            }
        }
        Ok(Some(Response::Ack))
    }

    /// Has the driver look at the size that is asked for, if it has not looked at this one.
    fn tell(&mut self, session: &Session) {
        let changes = self.shared.changes();
        if self.told != changes {
            self.told = changes;
            session.config_changed();
        }
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Memory
    }

    fn features(&self) -> u64 {
        mask(&[UNPLUGGED_INACCESSIBLE])
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        Some(Arc::clone(&self.shared) as _)
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    fn save(&mut self) -> Result<Section, SaveError> {
        self.save_part()
    }

    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        self.restore_part(state)
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        self.shared.set_driver(true);
        // A size that was asked for before is told, whether the driver has seen it or not.
        self.shared.ask();
        Ok(())
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.shared.asked().as_raw_fd()]
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        session.turn(index, |session| self.serve(session))
    }

    fn source_ready(&mut self, _source: usize, session: &mut Session) -> Result<(), QueueError> {
        // Non-blocking: an error means that it is empty.
        let _ = self.shared.asked().read();
        self.tell(session);
        Ok(())
    }

    fn deactivate(&mut self) {
        self.shared.set_driver(false);
    }
}

#[cfg(test)]
mod mem_test;
