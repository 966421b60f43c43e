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
const PIECE: u64 = 64 << 20;

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
    memory: Arc<dyn Reclaim>,
    shared: Arc<Shared>,
    blocks: Blocks,
    /// The size that the driver was last told to look at.
    told: u64,
    chain: Chain,
    limit: LogLimit,
}

impl Mem {
    /// One of whose region nothing is plugged; it is a part of `memory`, and holds zeros.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new(options: &MemOptions, memory: Arc<dyn Reclaim>) -> io::Result<Self> {
        Ok(Self {
            memory,
            shared: Arc::new(Shared::new(options)?),
            blocks: Blocks::new(options),
            told: options.requested,
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
            Some(request) => self.carry_out(request, session),
            None => Some(Response::Error.into()),
        };
        // None: the device is to stop.
        let Some(answer) = answer else {
            return Ok(false);
        };
        session.give(QUEUE, &self.chain, &answer.encode())?;
        Ok(true)
    }

    fn carry_out(&mut self, request: Request, session: &Session) -> Option<Answer> {
        Some(match request {
            Request::Plug { address, count } => self.plug(address, count).into(),
            Request::Unplug { address, count } => match self.blocks.range(address, count) {
                Some(range) if self.blocks.state(range) == State::Plugged => {
                    self.unplug(range, session)?.into()
                }
                _ => Response::Error.into(),
            },
            Request::UnplugAll => self.unplug(self.blocks.all(), session)?.into(),
            Request::State { address, count } => match self.blocks.range(address, count) {
                Some(range) => Answer::state(self.blocks.state(range)),
                None => Response::Error.into(),
            },
        })
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
        self.blocks.set(range, true);
        self.shared.set_plugged(self.blocks.plugged());
        Response::Ack
    }

    /// Gives blocks back to the host. `None` if the device is to stop before that is done.
    fn unplug(&mut self, range: blocks::Range, session: &Session) -> Option<Response> {
        for piece in self.blocks.pieces(range, PIECE) {
            if session.stopping() {
                return None;
            }
            let (start, length) = (self.blocks.address(piece), self.blocks.bytes(piece));
            if let Err(error) = self.memory.reclaim(GuestAddress(start), length) {
                if let Some(held_back) = self.limit.pass() {
                    warn!(
                        "virtio-mem: the host does not take {length:#x} bytes at {start:#x} back: {error} ({held_back} messages held back)"
                    );
                }
                return Some(Response::Busy);
            }
            self.blocks.set(piece, false);
            self.shared.set_plugged(self.blocks.plugged());
        }
        Some(Response::Ack)
    }

    /// Has the driver look at the size that is asked for, if it has not looked at this one.
    fn tell(&mut self, session: &Session) {
        let requested = self.shared.requested();
        if self.told != requested {
            self.told = requested;
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
