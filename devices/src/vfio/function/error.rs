//! The errors of assigning a device of the host.

use std::io;

use thiserror::Error;

/// A device cannot be assigned.
#[derive(Debug, Error)]
pub enum VfioPciError {
    /// It is a bridge, or what its configuration space says makes no sense.
    #[error("{device} has a header of type {header:#04x}; only endpoints (type 0) can be assigned")]
    NotAnEndpoint {
        /// The device.
        device: String,
        /// The header type.
        header: u8,
    },
    /// It does not answer.
    #[error(
        "{device} does not answer (its configuration space reads as ones); it may have been removed, or need a power cycle"
    )]
    Gone {
        /// The device.
        device: String,
    },
    /// VFIO refused something.
    #[error("{device}: {what} failed: {source}")]
    Io {
        /// The device.
        device: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl VfioPciError {
    /// An error of VFIO in doing `what`.
    pub(super) fn failed(
        device: &str,
        what: &'static str,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let device = device.to_owned();
        move |source| Self::Io {
            device,
            what,
            source,
        }
    }
}
