//! The address of a guest among the guests of its host, which one device can have at a time: from the
//! process that has the machine to the one that has it next, or back.

use std::fs::File;
use std::io;

use super::{VsockError, remedy};
use crate::virtio::random;
use crate::virtio::vhost::{Addressee, Engine as _, VsockEngine};

/// How many addresses are tried for one that nobody has.
const TRIES: u32 = 16;
/// Those that are left alone as far as can be begin here.
const ASIDE: u32 = 0xc000_0000;

/// The address that a device is to have. The device may be gone.
#[derive(Clone)]
pub struct Address {
    device: Addressee,
    cid: u32,
}

impl Address {
    pub(super) fn new(device: Addressee, cid: u32) -> Self {
        Self { device, cid }
    }

    /// Whether the device is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.device.is_gone()
    }

    /// Takes it, if the device does not have it.
    ///
    /// # Errors
    /// Another guest has it, or it is reserved.
    pub fn take(&self) -> Result<(), VsockError> {
        self.device
            .set(self.cid)
            .map_err(|error| VsockError::Address {
                cid: self.cid,
                remedy: remedy(&error),
                error,
            })
    }

    /// Has the kernel end what connections the host's programs have with a guest of an address that nobody has at the
    /// moment, as this one before it is taken: their other ends are in the past. It does so whenever a device goes.
    pub fn end_connections(&self) {
        if let Err(error) = File::open(VsockEngine::NODE) {
            log::debug!(
                "{}: {error}; programs of the host hear of the end of a connection when they write",
                VsockEngine::NODE
            );
        }
    }

    /// Gives it up. The kernel has a device keep some address once it had one: this is one that nobody
    /// asks for.
    ///
    /// # Errors
    /// The device has it still.
    pub fn give_up(&self) -> io::Result<()> {
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            let mut bytes = [0; 4];
            random::fill(&mut bytes)?;
            // The last one is reserved.
            let cid = (u32::from_le_bytes(bytes) | ASIDE).min(u32::MAX - 1);
            outcome = self.device.set(cid);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}
