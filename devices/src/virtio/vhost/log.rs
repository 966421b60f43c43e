//! What the kernel's devices write to guest memory, for whoever sends the memory of a running machine
//! elsewhere: neither [`Marks`](crate::marks) nor the hypervisor see that.
//!
//! vhost-net logs it (`VHOST_F_LOG_ALL`): a bit for each page, set after the write. vhost-vsock logs
//! nothing but its rings, and not what is in packets. So its device rests while memory is followed: its
//! connections end with a move in any case, and if there is none after all, they go on.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use log::error;
use parking_lot::Mutex;
use vm_memory::{Address as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::shared::Shared;
use crate::GuestRam;
use crate::marks::Marks;

/// Bits of a word of the log.
const WORD: u64 = u64::BITS as u64;
/// Bytes of guest memory that a word of the log is for.
const SPAN: u64 = WORD * Marks::PAGE as u64;

/// A bit for each page of guest-physical memory, which the kernel sets.
#[derive(Debug)]
pub(in crate::virtio) struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// For memory that ends at `last`.
    fn new(last: GuestAddress) -> io::Result<Self> {
        let words = usize::try_from(last.raw_value() / SPAN + 1).map_err(io::Error::other)?;
        Ok(Self((0..words).map(|_| AtomicU64::new(0)).collect()))
    }

    /// Where the kernel finds it.
    pub(super) fn address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    /// Takes the bits of `pages` pages from `first` on, which is where a word begins.
    fn take(&self, first: GuestAddress, pages: usize) -> Vec<u64> {
        let first = usize::try_from(first.raw_value() / SPAN).unwrap_or(usize::MAX);
        let words = self.0.iter().skip(first);
        let words = words.take(pages.div_ceil(u64::BITS as usize));
        // Few are set: what is clear stays in the caches of all.
        let take = |word: &AtomicU64| match word.load(Ordering::Acquire) {
            0 => 0,
            _ => word.swap(0, Ordering::AcqRel),
        };
        words.map(take).collect()
    }

    /// As the kernel does.
    #[cfg(test)]
    pub(in crate::virtio) fn set(&self, address: u64) {
        let word = usize::try_from(address / SPAN).unwrap();
        let bit = 1 << (address % SPAN / Marks::PAGE as u64);
        self.0[word].fetch_or(bit, Ordering::AcqRel);
    }
}

/// A device of the kernel's that may be gone.
pub struct Writer(pub(in crate::virtio) Weak<Shared>);

/// What devices of the kernel's write. A machine without any has nothing to do for it.
#[derive(Default)]
pub struct WriteLog {
    /// Held while the kernel is told to log, or to log no more. Devices do not take it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    writers: Vec<Writer>,
    /// While it is kept.
    bits: Option<Arc<Bits>>,
}

impl WriteLog {
    /// Devices have come. None does while the log is kept.
    pub fn add(&self, writers: impl IntoIterator<Item = Writer>) {
        let mut state = self.state.lock();
        state.writers.retain(|writer| writer.0.strong_count() > 0);
        state.writers.extend(writers);
    }

    /// Begins with what is written to `memory` from here on. The devices stand still.
    ///
    /// # Errors
    /// One of them cannot log. None does then.
    pub fn begin(&self, memory: &GuestRam) -> io::Result<()> {
        let mut state = self.state.lock();
        let devices = state.devices();
        if devices.is_empty() {
            return Ok(());
        }
        let odd = |start: &u64| !start.is_multiple_of(SPAN);
        let mut starts = memory.iter().map(|region| region.start_addr().raw_value());
        if let Some(start) = starts.find(odd) {
            return Err(io::Error::other(format!(
                "vhost's log has no word that begins at {start:#x}, where guest memory does"
            )));
        }
        let bits = Arc::new(Bits::new(memory.last_addr())?);
        for device in &devices {
            if let Err(error) = device.set_log(Some(&bits)) {
                stop(&devices);
                return Err(error);
            }
        }
        state.bits = Some(bits);
        Ok(())
    }

    /// What was written to the `pages` pages from `first` on since the last call, or the beginning: a bit
    /// for each, from the lowest of the first word on. What is written meanwhile is in these, or in the
    /// next. Nothing if no log is kept.
    pub fn take(&self, first: GuestAddress, pages: usize) -> Vec<u64> {
        let bits = self.state.lock().bits.clone();
        bits.map_or_else(Vec::new, |bits| bits.take(first, pages))
    }

    /// Ends the log, if one is kept. The devices may be at work.
    pub fn end(&self) {
        let mut state = self.state.lock();
        if state.bits.take().is_some() {
            stop(&state.devices());
        }
    }
}

impl State {
    fn devices(&self) -> Vec<Arc<Shared>> {
        let writers = self.writers.iter();
        writers.filter_map(|writer| writer.0.upgrade()).collect()
    }
}

/// Has `devices` log no more. One that goes on nevertheless keeps its log.
fn stop(devices: &[Arc<Shared>]) {
    for device in devices {
        if let Err(error) = device.set_log(None) {
            error!("vhost goes on to log what it writes, which slows it down: {error}");
        }
    }
}

#[cfg(test)]
mod log_test;
