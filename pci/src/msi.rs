//! The MSI capability (section 7.7.1): 64-bit addresses, per-vector masking. Its state lives in
//! configuration space.

use crate::builder::ConfigBuilder;
use crate::capability::id;
use crate::capability::msi::{CONTROL, ENABLE};
use crate::config::ConfigSpace;

/// Bytes of the structure with 64-bit address and per-vector masking.
const SIZE: usize = 0x18;

const ADDRESS: u16 = 0x04;
const ADDRESS_HIGH: u16 = 0x08;
const DATA: u16 = 0x0c;
const MASK: u16 = 0x10;
const PENDING: u16 = 0x14;

/// 64-bit address capable, per-vector masking capable.
const CONTROL_FEATURES: u16 = 1 << 7 | 1 << 8;
const CONTROL_WRITABLE: u16 = ENABLE | 0x70;

/// One memory write that is an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

impl ConfigBuilder {
    /// Adds an MSI capability with `1 << log2_vectors` vectors (at most 32). Returns its offset.
    pub fn add_msi(&mut self, log2_vectors: u8) -> u16 {
        assert!(log2_vectors <= 5, "MSI has at most 32 vectors");
        let vectors = u32::MAX >> (32 - (1_u32 << log2_vectors));
        let mut body = [0; SIZE - 2];
        let mut writable = [0; SIZE - 2];
        let put = |bytes: &mut [u8], register: u16, value: &[u8]| {
            let start = usize::from(register) - 2;
            bytes[start..start + value.len()].copy_from_slice(value);
        };
        put(
            &mut body,
            CONTROL,
            &(CONTROL_FEATURES | u16::from(log2_vectors) << 1).to_le_bytes(),
        );
        put(&mut writable, CONTROL, &CONTROL_WRITABLE.to_le_bytes());
        put(&mut writable, ADDRESS, &0xffff_fffc_u32.to_le_bytes());
        put(&mut writable, ADDRESS_HIGH, &u32::MAX.to_le_bytes());
        put(&mut writable, DATA, &0xffff_u16.to_le_bytes());
        put(&mut writable, MASK, &vectors.to_le_bytes());
        let offset = self.add_capability(id::MSI, &body, &writable);
        self.set_own(offset + PENDING, &vectors.to_le_bytes());
        self.layout_mut().msi = Some(offset);
        offset
    }
}

impl ConfigSpace {
    pub(crate) const fn msi_size(&self) -> usize {
        SIZE - 2
    }

    /// Whether MSI is enabled: the function then never uses INTx.
    #[must_use]
    pub fn msi_enabled(&self) -> bool {
        self.layout
            .msi
            .is_some_and(|msi| self.read_u16(msi + CONTROL) & ENABLE != 0)
    }

    /// The message to send for an event on `vector`. `None` when MSI or bus mastering is off,
    /// software allocated fewer vectors, or the vector is masked; a masked vector becomes
    /// pending. Send it after releasing the lock around `self`.
    #[must_use]
    pub fn msi_notify(&mut self, vector: u8) -> Option<MsiMessage> {
        let msi = self.layout.msi?;
        if !self.msi_enabled() || u32::from(vector) >= self.msi_allocated(msi) {
            return None;
        }
        let bit = 1_u32 << vector;
        if self.read_u32(msi + MASK) & bit != 0 {
            let pending = self.read_u32(msi + PENDING) | bit;
            self.set_bytes(msi + PENDING, &pending.to_le_bytes());
            return None;
        }
        self.command()
            .bus_master
            .then(|| self.msi_message(msi, vector))
    }

    /// The messages of vectors that were pending and are not masked any more, which are pending no
    /// longer. To be called after a write whose [`ConfigChange`](crate::ConfigChange) says
    /// `msi` or changed bus mastering.
    #[must_use]
    pub fn take_pending_msi(&mut self) -> Vec<MsiMessage> {
        let Some(msi) = self.layout.msi else {
            return Vec::new();
        };
        if !self.msi_enabled() || !self.command().bus_master {
            return Vec::new();
        }
        let pending = self.read_u32(msi + PENDING);
        let ready = pending & !self.read_u32(msi + MASK);
        self.set_bytes(msi + PENDING, &(pending & !ready).to_le_bytes());
        (0..32)
            .filter(|vector| ready >> vector & 1 != 0)
            .map(|vector| self.msi_message(msi, vector))
            .collect()
    }

    /// Vectors that software allocated, a power of two; 0 of a function without MSI.
    #[must_use]
    pub fn msi_vectors(&self) -> u32 {
        self.layout.msi.map_or(0, |msi| self.msi_allocated(msi))
    }

    /// Vectors that software allocated: Multiple Message Enable, bounded by what the capability
    /// offers.
    fn msi_allocated(&self, msi: u16) -> u32 {
        let control = self.read_u16(msi + CONTROL);
        let (offered, enabled) = (control >> 1 & 7, control >> 4 & 7);
        1 << u32::from(enabled.min(offered))
    }

    fn msi_message(&self, msi: u16, vector: u8) -> MsiMessage {
        let address = u64::from(self.read_u32(msi + ADDRESS))
            | u64::from(self.read_u32(msi + ADDRESS_HIGH)) << 32;
        // The function replaces the low bits of the data by the vector (section 6.1.4.2).
        let low = self.msi_allocated(msi) - 1;
        let data = u32::from(self.read_u16(msi + DATA)) & !low | u32::from(vector) & low;
        MsiMessage { address, data }
    }
}
