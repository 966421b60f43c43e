//! What a new nido is given first: open files, what each of them is for, and what is not the machine's.
//!
//! ```text
//! offset 0   MAGIC
//!        8   version, little-endian, as are all numbers
//!       12   length of what follows
//!       16   JSON
//! ```
//!
//! Then come the files, up to 64 with a byte of zero. Both are nidos of one user, one of which has started
//! the other, so what comes is believed; but it may be of another version, or of no nido. The first three
//! fields stay as they are in all versions.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::descriptors::{self, TOGETHER};
use crate::host_files::Role;
use crate::terminal;

const MAGIC: [u8; 8] = *b"nidoover";
/// Of all that follows it, the frames of a migration excepted, which have their own.
pub(super) const VERSION: u32 = 1;
/// Most bytes of JSON: of some thousand files with long names.
const LONGEST: u32 = 8 << 20;
/// Most files.
const MOST_FILES: usize = 16 << 10;
/// How long the other side may do nothing.
const STALL: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Handover {
    /// Who gives it: name and version.
    pub(super) writer: String,
    /// How often `-v` was given.
    pub(super) verbosity: u8,
    /// How long ago the machine was started, in milliseconds.
    pub(super) uptime: u64,
    /// Where the control socket is, if there is one: path, device and inode.
    pub(super) control: Option<(PathBuf, u64, u64)>,
    /// What the terminal is to be like at the end, if it is not like that.
    pub(super) terminal: Option<terminal::Saved>,
    /// What each file is for, in their order.
    pub(super) roles: Vec<Role>,
}

impl Handover {
    fn encode(&self) -> anyhow::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).ok();
        let length = length.filter(|length| *length <= LONGEST);
        let length = length.context("the machine has too many files to be handed over")?;
        let mut bytes = Vec::from(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(json);
        Ok(bytes)
    }

    /// Sends it with `files`, one for each of its roles.
    ///
    /// # Errors
    /// The other side is gone, or takes nothing.
    pub(super) fn send(&self, mut socket: &UnixStream, files: &[File]) -> anyhow::Result<()> {
        socket.set_write_timeout(Some(STALL))?;
        socket.write_all(&self.encode()?)?;
        let files: Vec<&File> = files.iter().collect();
        for files in files.chunks(TOGETHER) {
            descriptors::send(socket, files)?;
        }
        Ok(())
    }

    /// Receives what [`send`](Self::send) sends.
    ///
    /// # Errors
    /// It is something else, of another version, or does not come.
    pub(super) fn receive(socket: &UnixStream) -> anyhow::Result<(Self, Vec<(Role, File)>)> {
        socket.set_read_timeout(Some(STALL))?;
        let handover = Self::decode(socket)?;
        let count = handover.roles.len();
        ensure!(
            count <= MOST_FILES,
            "a handover of {count} files, which are too many"
        );
        let mut files = Vec::with_capacity(count);
        while files.len() < count {
            let some = descriptors::receive(socket).context("the files of the handover")?;
            ensure!(
                !some.is_empty(),
                "a handover without the file of {:?}",
                handover.roles.get(files.len())
            );
            files.extend(some);
        }
        ensure!(
            files.len() == count,
            "{} files in a handover of {count}",
            files.len()
        );
        let files = handover.roles.iter().cloned().zip(files).collect();
        Ok((handover, files))
    }

    fn decode(mut stream: impl io::Read) -> anyhow::Result<Self> {
        let mut head = [0; 16];
        stream
            .read_exact(&mut head)
            .context("the beginning of a handover")?;
        let [magic @ .., v0, v1, v2, v3, l0, l1, l2, l3] = head;
        ensure!(magic == MAGIC, "this is no handover of a nido");
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            bail!("version {version} of handovers, where this nido has {VERSION}");
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        ensure!(
            length <= LONGEST,
            "a handover of {length} bytes, which is too long"
        );
        let mut json = Vec::new();
        stream
            .take(length.into())
            .read_to_end(&mut json)
            .context("the handover")?;
        ensure!(
            json.len() == length as usize,
            "a handover that ends after {} of {length} bytes",
            json.len()
        );
        serde_json::from_slice(&json).context("the handover")
    }
}

#[cfg(test)]
mod handover_test;
