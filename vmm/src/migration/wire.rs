//! The frames of a stream.
//!
//! ```text
//! offset 0   kind
//!        1   three bytes of zero
//!        4   length of the payload, little-endian, as are all numbers
//!        8   CRC-32 (IEEE 802.3) of the eight bytes before and of the payload
//!       12   payload
//! ```
//!
//! | source to target | payload |
//! |---|---|
//! | HELLO | [`MAGIC`], u32 [`VERSION`], [`Hello`] as JSON |
//! | PAGES | u64 guest-physical address, u64 of zero, whole pages |
//! | ZEROS | u64 guest-physical address, u64 number of pages that hold zeros |
//! | ROUND | u32 number of the round that is all sent, from 1 |
//! | STATE | the next bytes of the state of the machine |
//! | LAST | u8: 1 if the guest is paused, and is to stay so |
//! | YOURS | |
//!
//! | source to target, on a connection beside the first | payload |
//! |---|---|
//! | JOIN | [`Others::key`] |
//! | PAGES, ZEROS | as above |
//! | ROUND | u32 how often the source has waited for this connection, from 1; answered by HEARD |
//!
//! | target to source | payload |
//! |---|---|
//! | ACCEPTED | text: what tells the host from others, and the files of disks |
//! | REFUSED | text |
//! | HEARD | u32 number of the round |
//! | READY | |
//! | FAILED | text |
//! | RUNNING | |
//!
//! The form of a frame, and what HELLO begins with, stay as they are in all versions, so that each nido
//! can tell any other that it is too new or too old.

use std::ops::RangeInclusive;

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};

use super::error::{Result, StreamError, wrong};
use crate::config::MigrateConfig;

/// What HELLO begins with.
pub(crate) const MAGIC: [u8; 8] = *b"nidomove";
/// The version of all that follows.
pub(crate) const VERSION: u32 = 1;

/// Bytes of a page of guest memory.
pub(crate) const PAGE: usize = 4096;
/// Bytes before the payload.
pub(super) const HEADER: usize = 12;
/// Bytes of PAGES before the pages, and of ZEROS.
pub(super) const RUN: usize = 16;
/// Most bytes of pages in a frame, and of state, and of HELLO.
pub(super) const PIECE: usize = 1 << 20;
/// Most bytes of a payload.
pub(super) const LONGEST: usize = PIECE + RUN;
/// Most pages that one ZEROS names: its work is bounded, too.
pub(super) const ZEROS_MOST: u64 = 1 << 16;
/// Most bytes of a text.
pub(super) const TEXT: usize = 4096;
/// Most bytes of all STATE together: that of a state, and its first line.
pub(super) const STATE_MOST: usize = state::LIMIT + (1 << 10);

/// What a source says of its guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    /// Who sends it: name and version.
    pub(crate) writer: String,
    /// The command line of such a machine.
    pub(crate) options: Vec<String>,
    /// Bytes of guest memory.
    pub(crate) memory: u64,
    /// Connections beside this one, if there are to be some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) others: Option<Others>,
}

/// Connections that carry pages beside the first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Others {
    /// How many.
    pub(crate) count: u32,
    /// What they begin with, which nobody else knows.
    pub(crate) key: String,
}

/// Bytes of a key.
pub(super) const KEY: usize = 36;

impl Hello {
    /// The payload of HELLO.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut payload = Vec::from(MAGIC);
        payload.extend(VERSION.to_le_bytes());
        let json = serde_json::to_vec(self);
        payload.extend(json.map_err(|error| StreamError::Unfit(error.to_string()))?);
        if payload.len() > PIECE {
            return Err(StreamError::Unfit(format!(
                "its options have {} bytes, and {PIECE} are the most; give it fewer or shorter ones",
                payload.len()
            )));
        }
        Ok(payload)
    }

    /// What a payload of HELLO says.
    pub(super) fn decode(payload: &[u8]) -> Result<Self> {
        let Some((version, json)) = payload
            .strip_prefix(&MAGIC)
            .and_then(|rest| rest.split_first_chunk())
        else {
            return wrong("it begins like no migration");
        };
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return wrong(format!(
                "version {version} of migration, where this nido has {VERSION}"
            ));
        }
        let hello: Self = serde_json::from_slice(json)
            .or_else(|error| wrong(format!("a description of no machine ({error})")))?;
        match &hello.others {
            Some(others)
                if others.count >= MigrateConfig::STREAMS_MOST || others.key.len() != KEY =>
            {
                wrong("connections beside it of another number, or by another key")
            }
            _ => Ok(hello),
        }
    }
}

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 0x01,
    Pages = 0x02,
    Zeros = 0x03,
    Round = 0x04,
    State = 0x05,
    Last = 0x06,
    Yours = 0x07,
    Join = 0x08,
    Accepted = 0x81,
    Refused = 0x82,
    Heard = 0x83,
    Ready = 0x84,
    Failed = 0x85,
    Running = 0x86,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Hello,
            0x02 => Self::Pages,
            0x03 => Self::Zeros,
            0x04 => Self::Round,
            0x05 => Self::State,
            0x06 => Self::Last,
            0x07 => Self::Yours,
            0x08 => Self::Join,
            0x81 => Self::Accepted,
            0x82 => Self::Refused,
            0x83 => Self::Heard,
            0x84 => Self::Ready,
            0x85 => Self::Failed,
            0x86 => Self::Running,
            _ => return None,
        })
    }

    /// Its name, as messages have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hello => "HELLO",
            Self::Pages => "PAGES",
            Self::Zeros => "ZEROS",
            Self::Round => "ROUND",
            Self::State => "STATE",
            Self::Last => "LAST",
            Self::Yours => "YOURS",
            Self::Join => "JOIN",
            Self::Accepted => "ACCEPTED",
            Self::Refused => "REFUSED",
            Self::Heard => "HEARD",
            Self::Ready => "READY",
            Self::Failed => "FAILED",
            Self::Running => "RUNNING",
        }
    }

    /// How long its payload may be.
    pub(super) fn lengths(self) -> RangeInclusive<usize> {
        match self {
            Self::Hello => MAGIC.len() + 4..=PIECE,
            Self::Pages => RUN + PAGE..=LONGEST,
            Self::Zeros => RUN..=RUN,
            Self::Round | Self::Heard => 4..=4,
            Self::State => 1..=PIECE,
            Self::Accepted | Self::Refused | Self::Failed => 0..=TEXT,
            Self::Last => 1..=1,
            Self::Join => KEY..=KEY,
            Self::Yours | Self::Ready | Self::Running => 0..=0,
        }
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Bytes of the payload, which its kind may have.
    pub(super) length: usize,
    checksum: u32,
}

impl Header {
    /// Reads a header. No more than [`LONGEST`] follows one that is good.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Result<Self> {
        let [kind, reserved @ .., l0, l1, l2, l3, c0, c1, c2, c3] = *bytes;
        let Some(kind) = Kind::from_byte(kind) else {
            return wrong(format!("a frame of the unknown kind {kind:#04x}"));
        };
        if reserved != [0; 3] {
            return wrong(format!("{} with reserved bits", kind.name()));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if !kind.lengths().contains(&length) {
            return wrong(format!("{} of {length} bytes", kind.name()));
        }
        Ok(Self {
            kind,
            length,
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }

    /// Whether the checksum is that of `frame`, which this is the header of.
    pub(super) fn check(&self, frame: &[u8]) -> Result<()> {
        match checksum(frame) == Some(self.checksum) {
            true => Ok(()),
            false => wrong(format!("{} with a wrong checksum", self.kind.name())),
        }
    }
}

/// Of a frame, from its header on.
pub(super) fn checksum(frame: &[u8]) -> Option<u32> {
    let (head, payload) = frame.split_at_checked(HEADER)?;
    let mut hasher = Hasher::new();
    hasher.update(head.first_chunk::<8>()?);
    hasher.update(payload);
    Some(hasher.finalize())
}

/// A text as it is sent: no longer than [`TEXT`].
pub(super) fn encode_text(text: &str) -> &[u8] {
    text.get(..text.floor_char_boundary(TEXT))
        .unwrap_or_default()
        .as_bytes()
}

/// A text that came. It may end up on a terminal, so control characters are shown as what they are.
pub(super) fn decode_text(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod wire_test;
