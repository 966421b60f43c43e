//! Why a state is not saved, or is of no use here.

use std::fmt::Display;
use std::io;

use thiserror::Error;

/// Why the state of a part is not saved.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct SaveError(String);

impl SaveError {
    /// An error that says `why`, and what to do.
    pub fn new(why: impl Display) -> Self {
        Self(why.to_string())
    }
}

/// Why a saved state does not become that of the part that is here.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RestoreError {
    /// The saved machine has something else in this place.
    #[error("the saved machine has {saved} there, and this one {here}")]
    Kind {
        /// What was saved.
        saved: String,
        /// What is here.
        here: &'static str,
    },
    /// A later nido has written it.
    #[error(
        "{kind} was saved in version {saved}, and this nido reads {reads} at the most: use the nido that wrote it, or a later one"
    )]
    Version {
        /// What was saved.
        kind: &'static str,
        /// Its version.
        saved: u32,
        /// The last version that is known here.
        reads: u32,
    },
    /// The saved machine has nothing that could be put there.
    #[error("the saved machine has nothing for it")]
    Missing,
    /// No nido has written this.
    #[error("{what} cannot be: {why}")]
    Damaged {
        /// The field.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The part that is here is not like the one that was saved.
    #[error("{what} is {saved} in the saved machine and {here} here")]
    Differs {
        /// What is compared.
        what: String,
        /// The saved value.
        saved: String,
        /// The value here.
        here: String,
    },
    /// The host does not let it be restored.
    #[error("{what}: {why}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        why: String,
    },
}

impl RestoreError {
    /// A value that no nido writes, and what is wrong with it.
    pub fn damaged(what: impl Display, why: impl Display) -> Self {
        Self::Damaged {
            what: what.to_string(),
            why: why.to_string(),
        }
    }

    /// Something that the host refuses.
    pub fn host(what: impl Display, why: impl Display) -> Self {
        Self::Host {
            what: what.to_string(),
            why: why.to_string(),
        }
    }

    /// Nothing if what was saved is what is here.
    ///
    /// # Errors
    /// Both values.
    pub fn unless_equal<T: PartialEq + Display>(
        what: impl Display,
        saved: T,
        here: T,
    ) -> Result<(), Self> {
        if saved == here {
            return Ok(());
        }
        Err(Self::Differs {
            what: what.to_string(),
            saved: saved.to_string(),
            here: here.to_string(),
        })
    }
}

/// Why a file is no state of a machine.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The first line is another one.
    #[error("this is no state of nido: it begins with {0:?}")]
    Foreign(String),
    /// A later nido has written it.
    #[error(
        "it is written in format {0}, and this nido reads 1: use the nido that wrote it, or a later one"
    )]
    Format(u32),
    /// It has more or fewer bytes than it says.
    #[error("it is damaged: {announced} bytes are announced, and {found} are there")]
    Length {
        /// What the first line says.
        announced: usize,
        /// What is behind it.
        found: usize,
    },
    /// It is larger than any state.
    #[error("it is damaged: a state has {LIMIT} bytes at the most", LIMIT = crate::LIMIT)]
    TooLarge,
    /// Its checksum is another one.
    #[error("it is damaged: its checksum is {found}, and {announced} is announced")]
    Checksum {
        /// What the first line says.
        announced: String,
        /// What the bytes have.
        found: String,
    },
    /// What it holds is no state.
    #[error("it is damaged: {0}")]
    Body(serde_json::Error),
}
