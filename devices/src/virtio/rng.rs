//! Entropy source (section 5.4): fills the driver's buffers from the host's random number
//! generator.

use std::io;

use log::warn;
use state::{RestoreError, SaveError, Section};

use super::chain::Chain;
use super::device::{DeviceKind, VirtioDevice};
use super::error::QueueError;
use super::random;
use super::session::{Progress, Session};
use crate::limit::LogLimit;

/// Queue size.
const QUEUE_SIZE: u16 = 64;
/// Most bytes given for one buffer. The used length tells the driver how many there are.
const MOST: usize = 4096;

/// What its state is called, of which there is none.
const KIND: &str = "rng";
const VERSION: u32 = 1;

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    chain: Chain,
    limit: LogLimit,
}

impl Rng {
    /// A device that needs nothing from the host but its random number generator.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    fn save(&mut self) -> Result<Section, SaveError> {
        Section::new(KIND, VERSION, &())
    }

    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        state.read(KIND, VERSION)
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        let mut bytes = [0; MOST];
        session.turn(index, |session| {
            if !session.pop(index, &mut self.chain)? {
                return Ok(false);
            }
            let wanted = usize::try_from(self.chain.writable())
                .unwrap_or(MOST)
                .min(MOST);
            let part = bytes.get_mut(..wanted).unwrap_or_default();
            let given = match random::fill(part) {
                Ok(()) => part,
                Err(error) => {
                    if let Some(held_back) = self.limit.pass() {
                        warn!(
                            "virtio-rng: the host gives no random bytes: {error} ({held_back} messages held back)"
                        );
                    }
                    &mut []
                }
            };
            session.give(index, &self.chain, given)?;
            Ok(true)
        })
    }
}
