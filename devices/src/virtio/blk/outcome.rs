//! How a block request ended, and how the driver learns of it: by the status byte (section 5.2.6).

use std::io;

use log::warn;

use crate::limit::LogLimit;
use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;
use crate::virtio::session::Session;

/// Status (section 5.2.6), which is one byte.
#[allow(clippy::cast_possible_truncation)]
mod status {
    use virtio_bindings::virtio_blk as blk;

    pub(super) const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
    pub(super) const IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
    pub(super) const UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;
}

/// Why a request is not carried out.
pub(super) enum Refused {
    /// `VIRTIO_BLK_S_IOERR`.
    Error,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// `VIRTIO_BLK_S_IOERR`, because of the host.
    Host(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl From<io::ErrorKind> for Refused {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Host(kind.into())
    }
}

/// A buffer of the request that cannot be reached is the request's failure, not the queue's.
impl From<QueueError> for Refused {
    fn from(_: QueueError) -> Self {
        Self::Error
    }
}

/// How a request ended.
pub(super) enum Outcome {
    /// So many data bytes were written to the guest.
    Written(u64),
    /// It failed.
    Failed(Refused),
}

impl Outcome {
    /// Writes the status byte of `chain`, which has room for one. Returns how the chain is to be
    /// returned: its name, and how many bytes of it were written.
    pub(super) fn report(
        self,
        chain: &Chain,
        session: &mut Session,
        limit: &mut LogLimit,
    ) -> Result<(u16, u32), QueueError> {
        let data_length = chain.writable().checked_sub(1).ok_or(QueueError::Length)?;
        let (written, status) = match self {
            Self::Written(written) => (written, status::OK),
            Self::Failed(Refused::Error) => (0, status::IOERR),
            Self::Failed(Refused::Unsupported) => (0, status::UNSUPP),
            Self::Failed(Refused::Host(error)) => {
                if let Some(held_back) = limit.pass() {
                    warn!(
                        "virtio-blk: request failed on the host: {error} ({held_back} messages held back)"
                    );
                }
                (0, status::IOERR)
            }
        };
        // The used length counts from the start of the writable part, so it covers the status byte
        // only if everything before it was written. A driver must not rely on more than that
        // (section 2.7.8.2).
        let used = if written == data_length {
            written + 1
        } else {
            written
        };
        session.write(chain, data_length, &[status])?;
        Ok((chain.head(), u32::try_from(used).unwrap_or(u32::MAX)))
    }
}
