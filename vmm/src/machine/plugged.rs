//! What is behind a virtio-mem: guest memory that goes back to the host, once no device of the host reaches it.

use std::io;
use std::sync::Arc;

use devices::virtio::balloon::Reclaim;
use devices::virtio::mem::Plug;
use vm_memory::GuestAddress;

use crate::assign::Assigner;
use crate::memory::reclaim::Reclaimer;
use crate::memory::{self, Memory};

/// See the module.
pub(super) struct PluggedMemory {
    pub(super) reclaimer: Arc<Reclaimer>,
    /// If there are iommufds.
    pub(super) assigner: Option<Arc<Assigner>>,
    pub(super) memory: Memory,
}

impl Reclaim for PluggedMemory {
    fn reclaim(&self, start: GuestAddress, length: u64) -> io::Result<u64> {
        self.reclaimer.reclaim(start, length)
    }
}

impl Plug for PluggedMemory {
    fn hold(&self, start: GuestAddress, length: u64, block: u64) -> io::Result<()> {
        let Some(assigner) = &self.assigner else {
            return Ok(());
        };
        let blocks = memory::blocks(&self.memory, start, length, block);
        assigner.plug(&blocks).map_err(io::Error::other)
    }

    fn release(&self, start: GuestAddress, length: u64) -> io::Result<()> {
        let Some(assigner) = &self.assigner else {
            return Ok(());
        };
        let range = start.0..start.0.saturating_add(length);
        assigner.unplug(&range).map_err(io::Error::other)
    }
}
