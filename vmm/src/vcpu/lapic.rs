//! A local APIC's registers (SDM volume 3, table 12-1), as KVM shows them: a page of which each
//! register has 16 bytes.

use kvm_bindings::kvm_lapic_state;
use state::SaveError;

use super::Vcpu;

/// Interrupts whose handlers run, and those that wait for theirs: bitmaps of 256 vectors.
pub(super) const IN_SERVICE: usize = 0x100;
pub(super) const REQUESTED: usize = 0x200;
/// The timer: its entry of the local vector table, and its counts.
pub(super) const TIMER: usize = 0x320;
pub(super) const INITIAL_COUNT: usize = 0x380;
pub(super) const CURRENT_COUNT: usize = 0x390;

/// The timer's entry: no interrupt is sent, and how it counts.
const MASKED: u32 = 1 << 16;
const MODE: u32 = 3 << 17;
const MODE_DEADLINE: u32 = 2 << 17;

/// A set of interrupt vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vectors([u32; 8]);

impl Vectors {
    /// Whether `vector` is one of them.
    pub(crate) fn contains(&self, vector: u8) -> bool {
        let word = self.0.get(usize::from(vector / 32));
        word.is_some_and(|word| word >> (vector % 32) & 1 != 0)
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(|vector| self.contains(*vector))
    }

    fn add(&mut self, other: Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }
}

/// The vectors of all interrupts that a local APIC of `vcpus` has not seen the end of.
///
/// An end of interrupt that a guest has written and that KVM has not told of is in no state that
/// KVM gives: an interrupt that the I/O APIC waits for the end of, and that is not among these, has
/// ended.
///
/// # Errors
/// KVM does not give the registers.
pub(crate) fn unfinished(vcpus: &[Vcpu]) -> Result<Vectors, SaveError> {
    let mut all = Vectors::default();
    for vcpu in vcpus {
        let lapic = vcpu.fd.get_lapic().map_err(|error| {
            let id = vcpu.id;
            SaveError::new(format_args!(
                "the local APIC of vCPU {id} cannot be read ({error})"
            ))
        })?;
        all.add(bitmap(&lapic, IN_SERVICE));
        all.add(bitmap(&lapic, REQUESTED));
    }
    Ok(all)
}

/// The register at `offset`.
pub(super) fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = lapic.regs.get(offset..offset + 4).unwrap_or_default();
    bytes.iter().rev().fold(0, |value, byte| {
        value << 8 | u32::from(byte.to_le_bytes()[0])
    })
}

/// The bitmap that begins at `offset`.
pub(super) fn bitmap(lapic: &kvm_lapic_state, offset: usize) -> Vectors {
    let mut vectors = Vectors::default();
    for (word, index) in vectors.0.iter_mut().zip(0..) {
        *word = register(lapic, offset + index * 16);
    }
    vectors
}

/// Whether the timer is to send an interrupt at a deadline.
pub(super) fn has_deadline(lapic: &kvm_lapic_state) -> bool {
    register(lapic, TIMER) & (MASKED | MODE) == MODE_DEADLINE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(registers: &[(usize, u32)]) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (offset, value) in registers {
            for (place, byte) in lapic.regs[*offset..].iter_mut().zip(value.to_le_bytes()) {
                *place = i8::from_le_bytes([byte]);
            }
        }
        lapic
    }

    #[test]
    fn vectors_are_told_by_their_bits() {
        let lapic = lapic(&[
            (0x110, 1 << 1 | 1 << 31),
            (0x170, 1 << 31),
            (0x200, 1 << 16),
        ]);
        let serving: Vec<u8> = bitmap(&lapic, IN_SERVICE).iter().collect();
        assert_eq!(serving, [33, 63, 255]);
        let mut all = bitmap(&lapic, IN_SERVICE);
        all.add(bitmap(&lapic, REQUESTED));
        assert_eq!(all.iter().collect::<Vec<u8>>(), [16, 33, 63, 255]);
        assert!(!all.contains(34) && !all.contains(0));
    }

    #[test]
    fn a_timer_has_a_deadline_in_one_mode_and_unless_it_is_masked() {
        for (entry, deadline) in [
            (0x0004_00ec, true),
            (0x0005_00ec, false),
            (0x0000_00ec, false),
            (0x0002_00ec, false),
            (0x0006_00ec, false),
        ] {
            assert_eq!(
                has_deadline(&lapic(&[(TIMER, entry)])),
                deadline,
                "{entry:#x}"
            );
        }
    }
}
