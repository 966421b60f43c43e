//! Guest memory as the driver writes it. Every store is noted, so that a model of memory can
//! follow.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Handle on guest memory, as the unit takes it.
pub type Memory = Arc<GuestMemoryMmap<()>>;

/// Guest memory with a journal of the driver's stores.
pub struct Ram {
    /// The memory itself.
    pub memory: Memory,
    journal: Vec<(u64, Vec<u8>)>,
}

impl Ram {
    /// Memory whose journal is empty.
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            journal: Vec::new(),
        }
    }

    /// Stores 64-bit words, as one edit. What is no memory is left alone.
    pub fn store(&mut self, address: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = GuestAddress(address);
        // A single word is stored at once, as a driver does that shares its tables with hardware.
        let stored = match words {
            [word] if address & 7 == 0 => self
                .memory
                .store(word.to_le(), at, Ordering::SeqCst)
                .is_ok(),
            _ => self.memory.write_slice(&bytes, at).is_ok(),
        };
        if stored {
            self.journal.push((address, bytes));
        }
    }

    /// Reads a 64-bit word; what is no memory reads as 0.
    pub fn load(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        match self.memory.read_slice(&mut bytes, GuestAddress(address)) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => 0,
        }
    }

    /// The stores since the last call.
    pub fn take_journal(&mut self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.journal)
    }
}
