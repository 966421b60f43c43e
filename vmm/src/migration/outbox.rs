//! Frames on their way out.

use super::wire::{HEADER, Kind, checksum};

/// Frames that are to be sent, one after the other.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Where the frame begins that is not complete.
    open: usize,
}

impl Outbox {
    /// Begins a frame.
    pub(super) fn begin(&mut self) {
        self.open = self.bytes.len();
        self.bytes.extend([0; HEADER]);
    }

    /// Adds to the payload of the frame that was begun.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends the frame that was begun.
    pub(super) fn end(&mut self, kind: Kind) {
        let frame = self.bytes.get_mut(self.open..).unwrap_or_default();
        let length = frame.len().saturating_sub(HEADER);
        debug_assert!(kind.lengths().contains(&length), "{kind:?} of {length}");
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if let Some(head) = frame.first_chunk_mut::<8>() {
            let [l0, l1, l2, l3] = length.to_le_bytes();
            *head = [kind as u8, 0, 0, 0, l0, l1, l2, l3];
        }
        let checksum = checksum(frame).unwrap_or_default();
        if let Some(place) = frame.get_mut(8..HEADER) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
        self.open = self.bytes.len();
    }

    /// Adds a whole frame.
    pub(super) fn frame(&mut self, kind: Kind, payload: &[u8]) {
        self.begin();
        self.add(payload);
        self.end(kind);
    }

    /// All frames.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets all frames.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.open = 0;
    }
}
