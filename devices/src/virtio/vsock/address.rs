//! The address of a guest among the guests of its host, which one device can have at a time: from the
//! process that has the machine to the one that has it next, or back.

use std::io;

use super::{VsockError, remedy};
use crate::virtio::random;
use crate::virtio::vhost::Addressee;

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
