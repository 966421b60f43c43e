//! Errors of the command line, in the words that the user reads.

use super::keys::ListError;

/// A command line that is not valid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    /// clap's message, with its own formatting; help and version are "errors" too.
    #[error(transparent)]
    Clap(#[from] clap::Error),
    /// A message of ours.
    #[error("{0}")]
    Message(String),
}

/// Why a `--device` was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error(
        "--device: unknown type `{name}`; valid types: {valid} (`--device help` describes them)"
    )]
    UnknownType { name: String, valid: String },
    #[error(transparent)]
    List(#[from] ListError),
}

impl From<ListError> for UsageError {
    fn from(error: ListError) -> Self {
        UsageError::Message(error.to_string())
    }
}

impl From<DeviceError> for UsageError {
    fn from(error: DeviceError) -> Self {
        UsageError::Message(error.to_string())
    }
}
