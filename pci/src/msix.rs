//! MSI-X (section 7.7.2): the capability, and the table and pending bits behind a BAR.

mod saved;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::bdf::Bdf;
use crate::builder::ConfigBuilder;
use crate::capability::id;
use crate::capability::msix::{ENABLE, FUNCTION_MASK};
use crate::config::ConfigSpace;
use crate::function::MsiSink;
use crate::msi::MsiMessage;

/// Largest table.
const MAX_VECTORS: u16 = 2048;

/// Bytes of a table entry.
pub const MSIX_ENTRY_SIZE: usize = 16;

impl ConfigBuilder {
    /// Adds an MSI-X capability of `vectors` entries whose table and pending bits lie in BAR
    /// `table_bar`, at offsets that are multiples of eight. Returns the capability's offset.
    pub fn add_msix(
        &mut self,
        vectors: u16,
        table_bar: u8,
        table_offset: u32,
        pba_offset: u32,
    ) -> u16 {
        assert!(
            (1..=MAX_VECTORS).contains(&vectors),
            "MSI-X has 1 to 2048 vectors"
        );
        assert!(
            table_bar < 6 && table_offset & 7 == 0 && pba_offset & 7 == 0,
            "MSI-X table misplaced"
        );
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset | u32::from(table_bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pba_offset | u32::from(table_bar)).to_le_bytes());
        let offset = self.add_capability(id::MSIX, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes());
        self.layout_mut().msix = Some(offset);
        offset
    }
}

impl ConfigSpace {
    /// MSI-X Enable and Function Mask, for [`MsixTable::set_control`]; `None` without the
    /// capability.
    #[must_use]
    pub fn msix_control(&self) -> Option<(bool, bool)> {
        let control = self.read_u16(self.layout.msix? + 2);
        Some((control & ENABLE != 0, control & FUNCTION_MASK != 0))
    }
}

pub use saved::MsixState;

/// A table entry as software wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixEntry {
    /// Address and data of the message.
    pub message: MsiMessage,
    /// Vector Control's mask bit.
    pub masked: bool,
}

/// The table and the pending bits of a function's MSI-X vectors.
///
/// Messages are sent after the table's lock is released. A message is sent only while MSI-X is
/// enabled and the bus-master flag, if one was given, is set; an event on a masked vector stays
/// pending until the vector is unmasked.
pub struct MsixTable {
    requester: Bdf,
    sink: Arc<dyn MsiSink>,
    bus_master: Option<Arc<AtomicBool>>,
    /// Leaf lock: nothing is called while it is held.
    state: Mutex<State>,
}

struct State {
    entries: Vec<[u8; MSIX_ENTRY_SIZE]>,
    pending: Vec<u64>,
    enabled: bool,
    function_masked: bool,
}

/// An entry's reset value: zero, but masked.
const RESET_ENTRY: [u8; MSIX_ENTRY_SIZE] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
/// What software may change in an entry: the address' bits 1:0 and Vector Control's reserved bits
/// are zero.
const WRITABLE_ENTRY: [u8; MSIX_ENTRY_SIZE] = [
    0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
];

impl MsixTable {
    /// A table of `vectors` masked entries (1 to 2048) whose messages come from `requester`.
    #[must_use]
    pub fn new(vectors: u16, requester: Bdf, sink: Arc<dyn MsiSink>) -> Self {
        let vectors = usize::from(vectors.clamp(1, MAX_VECTORS));
        let state = State {
            entries: vec![RESET_ENTRY; vectors],
            pending: vec![0; vectors.div_ceil(64)],
            enabled: false,
            function_masked: false,
        };
        Self {
            requester,
            sink,
            bus_master: None,
            state: Mutex::new(state),
        }
    }

    /// Sends only while `bus_master` is set; see [`ConfigSpace::bus_master_flag`].
    #[must_use]
    pub fn gated(mut self, bus_master: Arc<AtomicBool>) -> Self {
        self.bus_master = Some(bus_master);
        self
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.lock().entries.len()).unwrap_or(MAX_VECTORS)
    }

    /// Reads the table; bytes beyond it read as zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = entry_position(at)
                .and_then(|(entry, at)| state.entries.get(entry)?.get(at))
                .copied()
                .unwrap_or(0);
        }
    }

    /// Writes the table; bytes beyond it are dropped. An unmasked vector that was pending is sent.
    /// Returns the vector whose entry was written, for whoever mirrors entries elsewhere.
    pub fn write_table(&self, offset: u64, data: &[u8]) -> Option<u16> {
        let mut written = None;
        let mut state = self.lock();
        for (value, at) in data.iter().zip(offset..) {
            let Some((entry, at)) = entry_position(at) else {
                break;
            };
            let (Some(byte), Some(mask)) = (
                state
                    .entries
                    .get_mut(entry)
                    .and_then(|bytes| bytes.get_mut(at)),
                WRITABLE_ENTRY.get(at),
            ) else {
                break;
            };
            *byte = *byte & !mask | value & mask;
            written = u16::try_from(entry).ok();
        }
        self.send_ready(state);
        written
    }

    /// Reads the pending bits; bytes beyond them read as zero.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let word = usize::try_from(at / 8)
                .ok()
                .and_then(|word| state.pending.get(word))
                .copied()
                .unwrap_or(0);
            let lane = usize::try_from(at % 8).unwrap_or(0);
            *byte = word.to_le_bytes().get(lane).copied().unwrap_or(0);
        }
    }

    /// Ignored: pending bits are read-only.
    pub fn write_pba(&self, _offset: u64, _data: &[u8]) {}

    /// Message Control's enable and function mask, after a write to configuration space.
    pub fn set_control(&self, enabled: bool, function_masked: bool) {
        let mut state = self.lock();
        state.enabled = enabled;
        state.function_masked = function_masked;
        self.send_ready(state);
    }

    /// Whether software enabled MSI-X.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.lock().enabled
    }

    /// An event on `vector`: sends its message, or makes it pending when masked. A vector that does
    /// not exist is ignored.
    pub fn notify(&self, vector: u16) {
        let mut state = self.lock();
        let vector = usize::from(vector);
        if !state.enabled {
            return;
        }
        let Some(entry) = state.entry(vector) else {
            return;
        };
        if entry.masked || state.function_masked {
            if let Some(word) = state.pending.get_mut(vector / 64) {
                *word |= 1 << (vector % 64);
            }
            return;
        }
        drop(state);
        self.send(entry.message);
    }

    /// What an event on `vector` sends as things are; `None` if it is dropped, or becomes pending.
    #[must_use]
    pub fn message(&self, vector: u16) -> Option<MsiMessage> {
        let state = self.lock();
        let entry = state.entry(usize::from(vector))?;
        let sends = state.enabled && !state.function_masked && !entry.masked && self.may_send();
        sends.then_some(entry.message)
    }

    /// The entry of `vector`.
    #[must_use]
    pub fn entry(&self, vector: u16) -> Option<MsixEntry> {
        self.lock().entry(usize::from(vector))
    }

    /// Back to the reset state: disabled, every entry zero and masked, nothing pending.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.entries.fill(RESET_ENTRY);
        state.pending.fill(0);
        state.enabled = false;
        state.function_masked = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Sends what is pending and not masked, after releasing the lock.
    fn send_ready(&self, mut state: MutexGuard<'_, State>) {
        let ready = state.take_ready();
        drop(state);
        for message in ready {
            self.send(message);
        }
    }

    fn may_send(&self) -> bool {
        let flag = self.bus_master.as_ref();
        flag.is_none_or(|flag| flag.load(Ordering::Acquire))
    }

    fn send(&self, message: MsiMessage) {
        if self.may_send() {
            self.sink
                .signal(self.requester, message.address, message.data);
        }
    }
}

impl State {
    fn entry(&self, vector: usize) -> Option<MsixEntry> {
        let bytes = self.entries.get(vector)?;
        let [address @ .., _, _, _, _, _, _, _, _] = *bytes;
        let [_, _, _, _, _, _, _, _, d0, d1, d2, d3, control, ..] = *bytes;
        let message = MsiMessage {
            address: u64::from_le_bytes(address),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        };
        Some(MsixEntry {
            message,
            masked: control & 1 != 0,
        })
    }

    fn take_ready(&mut self) -> Vec<MsiMessage> {
        if !self.enabled || self.function_masked || self.pending.iter().all(|word| *word == 0) {
            return Vec::new();
        }
        let mut ready = Vec::new();
        for vector in 0..self.entries.len() {
            let bit = 1_u64 << (vector % 64);
            let Some(entry) = self.entry(vector) else {
                break;
            };
            match self.pending.get_mut(vector / 64) {
                Some(word) if *word & bit != 0 && !entry.masked => *word &= !bit,
                _ => continue,
            }
            ready.push(entry.message);
        }
        ready
    }
}

/// The entry that a table offset falls into, and the byte inside it.
fn entry_position(offset: u64) -> Option<(usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    Some((offset / MSIX_ENTRY_SIZE, offset % MSIX_ENTRY_SIZE))
}
