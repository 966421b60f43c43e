//! Puts a VT-d unit's register window on the machine's MMIO bus.

use std::sync::Arc;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::Memory;

/// The register window of a remapping unit. The unit decides what an access of any offset and length means.
pub struct VtdMmio(pub Arc<intel_vtd::Unit<Memory>>);

impl DeviceMmio for VtdMmio {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use intel_vtd::{EventSink, InterruptMessage, Unit, UnitConfig};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    struct Nobody;

    impl EventSink for Nobody {
        fn deliver(&self, _message: InterruptMessage) {}
    }

    const BASE: MmioAddress = MmioAddress(0xfed9_0000);

    fn window() -> VtdMmio {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]);
        let config = UnitConfig::scalable(46);
        let unit = Unit::new(
            Arc::new(memory.expect("mappable")),
            &config,
            Arc::new(Nobody),
        );
        VtdMmio(unit.expect("a valid configuration"))
    }

    fn read<const N: usize>(window: &VtdMmio, offset: u64) -> [u8; N] {
        let mut data = [0xa5; N];
        window.mmio_read(BASE, offset, &mut data);
        data
    }

    #[test]
    fn offsets_count_from_the_start_of_the_window() {
        let window = window();
        let capabilities = window.0.capabilities();
        assert_eq!(
            read(&window, 0x08),
            u64::from(capabilities.cap).to_le_bytes()
        );
        assert_eq!(
            read(&window, 0x10),
            u64::from(capabilities.ecap).to_le_bytes()
        );
        let [low, high] = [read::<4>(&window, 0x08), read::<4>(&window, 0x0c)];
        assert_eq!(
            [low, high].concat(),
            u64::from(capabilities.cap).to_le_bytes()
        );
    }

    #[test]
    fn a_register_keeps_what_the_guest_writes() {
        let window = window();
        // FEDATA_REG (VT-d 11.4.9.3).
        window.mmio_write(BASE, 0x3c, &0x1234_u32.to_le_bytes());
        assert_eq!(read(&window, 0x3c), 0x1234_u32.to_le_bytes());
    }

    #[test]
    fn no_offset_and_no_length_breaks_anything() {
        let window = window();
        for offset in [0, 1, 7, 0xffc, 0xfff, 0x1000, u64::MAX - 3, u64::MAX] {
            for length in [0, 1, 2, 3, 4, 8, 16] {
                let mut data = vec![0xff; length];
                window.mmio_write(BASE, offset, &data);
                window.mmio_read(BASE, offset, &mut data);
            }
        }
    }
}
