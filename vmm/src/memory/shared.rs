//! Guest memory that is in a file of its own, which another process can map as well.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use vm_memory::GuestMemoryBackend as _;

use super::{GuestRam, Memory, MemoryError, Source, lay_out};
use crate::config::MemoryConfig;

/// Has the size of a memory file stay as it is, whoever is given it: whoever maps what is cut off
/// would be killed. It can be written.
pub(super) fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// The file, if guest memory is in one.
pub(crate) fn file(memory: &GuestRam) -> Option<Arc<File>> {
    let mut files = memory.iter().map(|region| region.file_offset());
    files.next()?.map(|offset| Arc::clone(offset.arc()))
}

/// Maps guest memory that is in a `file` already, which another process has mapped, too, with `further` bytes behind
/// RAM.
///
/// # Errors
/// The host refuses, or the file has another size.
pub(crate) fn map_again(
    config: &MemoryConfig,
    further: u64,
    file: &Arc<File>,
) -> Result<Memory, MemoryError> {
    let error = |cause| MemoryError::Host {
        wanted_mib: config.size >> 20,
        what: "mapping the memory again",
        cause,
        hint: "",
    };
    let size = file.metadata().map_err(error)?.len();
    if size != config.size.saturating_add(further) {
        return Err(error(io::Error::other(format!("it has {size} bytes"))));
    }
    // What is there was allocated, and collapsed, when it was made.
    let config = MemoryConfig {
        prefault: false,
        ..*config
    };
    Ok(Arc::new(lay_out(&config, further, Source::Shared(file))?))
}

#[cfg(test)]
mod shared_test;
