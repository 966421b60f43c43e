//! Interrupt remapping table entry, and the interrupt request that selects one (sections 5.1 and 9.9).

use bitfield_struct::bitfield;

/// Size in bytes of an entry.
pub const IRTE_SIZE: u64 = 16;

/// Interrupt remapping table entry of the remapped format (section 9.9).
///
/// The posted format (IM = 1) exists only with CAP.PI, which is not offered.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct Irte {
    /// P: present.
    pub present: bool,
    /// FPD: faults that this entry qualifies are not recorded, even with P = 0.
    pub fault_disable: bool,
    /// DM: the destination is logical.
    pub logical: bool,
    /// RH: redirection hint.
    pub redirection_hint: bool,
    /// TM: level-triggered.
    pub level: bool,
    /// DLM: delivery mode.
    #[bits(3)]
    pub delivery_mode: u8,
    /// For software.
    #[bits(4)]
    pub available: u8,
    #[bits(3)]
    pub reserved0: u8,
    /// IM: posted format.
    pub posted: bool,
    /// V: vector.
    pub vector: u8,
    /// Reserved.
    pub reserved1: u8,
    /// DST: an x2APIC id, or an xAPIC id in bits 15:8.
    pub destination: u32,
    /// SID: source id.
    pub source: u16,
    /// SQ: which bits of the source id count.
    #[bits(2)]
    pub qualifier: u8,
    /// SVT: how the source is verified.
    #[bits(2)]
    pub verification: u8,
    /// Reserved.
    #[bits(44)]
    pub reserved2: u64,
}

impl Irte {
    /// Whether an entry in the remapped format is well-formed; `extended` is IRTA.EIME.
    ///
    /// The posted format counts as malformed, since it is not offered, and so does SVT = 11.
    pub fn is_valid(&self, extended: bool) -> bool {
        let destination_bits = if extended { u32::MAX } else { 0x0000_FF00 };
        // Delivery modes 011 and 110 are reserved.
        !matches!(self.delivery_mode(), 0b011 | 0b110)
            && !self.posted()
            && self.reserved0() == 0
            && self.reserved1() == 0
            && self.reserved2() == 0
            && self.destination() & !destination_bits == 0
            && self.verification() != 0b11
    }

    /// Whether a request of `source` may use this entry (section 5.1.3, fields SVT, SQ and SID).
    pub fn accepts(&self, source: u16) -> bool {
        match self.verification() {
            0b00 => true,
            0b01 => {
                let ignored = match self.qualifier() {
                    0 => 0b000,
                    1 => 0b100,
                    2 => 0b110,
                    _ => 0b111,
                };
                (self.source() ^ source) & !ignored == 0
            }
            0b10 => {
                let [first, last] = self.source().to_be_bytes();
                let [bus, _] = source.to_be_bytes();
                (first..=last).contains(&bus)
            }
            _ => false,
        }
    }

    /// The 32-bit APIC id that the entry names; `extended` is IRTA.EIME.
    pub fn apic_id(&self, extended: bool) -> u32 {
        if extended {
            self.destination()
        } else {
            (self.destination() >> 8) & 0xFF
        }
    }
}

/// Address of an interrupt request (section 5.1.2): both formats share these bits.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct RequestAddress {
    #[bits(2)]
    __: u8,
    /// HANDLE[15].
    pub handle_high: bool,
    /// SHV: the data's low half is added to the handle.
    pub subhandle_valid: bool,
    /// Interrupt format: 1 is remappable, 0 is compatibility.
    pub remappable: bool,
    /// HANDLE[14:0].
    #[bits(15)]
    pub handle_low: u16,
    /// 0xFEE.
    #[bits(12)]
    pub prefix: u16,
}

impl RequestAddress {
    /// The 16-bit handle.
    pub fn handle(&self) -> u16 {
        self.handle_low() | u16::from(self.handle_high()) << 15
    }
}

#[cfg(test)]
mod irte_test;
