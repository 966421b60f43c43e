//! The state of a stopped machine: what each of its parts has to say, and the file that holds all of it.
//!
//! A part is a [`Section`] with a kind and a version of its own; its fields are described by a type that
//! is beside the part. A [`MachineState`] is all sections of a machine, and [`encode`] and [`decode`] are
//! the file. Nothing here knows a device.
//!
//! Whoever changes what a section holds raises its version, and reads older ones, too: a file that one
//! nido has written is read by each later one. A file of a later one is refused, by the name of what is
//! too new.

#![forbid(unsafe_code)]

mod bytes;
mod error;
mod file;
mod section;

pub use bytes::Bytes;
pub use error::{FileError, RestoreError, SaveError};
pub use file::{LIMIT, MachineState, MemoryFile, decode, encode, is_state, read};
pub use section::{Section, Sections};
