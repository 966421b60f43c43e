//! The PCI Express capability (section 7.5.3), version 2, of a root-complex integrated endpoint.
//!
//! Integrated endpoints have no link, so the link, slot and root registers are hardwired to zero. A
//! single-function integrated endpoint on the root bus forms an IOMMU group of its own.

use crate::builder::ConfigBuilder;
use crate::capability::id;
use crate::capability::pcie::{self, INITIATE_FUNCTION_LEVEL_RESET, SIZE};
use crate::config::ConfigSpace;

/// Capabilities register: version 2, device/port type 9 (root-complex integrated endpoint).
const CAPABILITIES: u16 = 0x0092;
/// Device Capabilities: 128-byte payloads, role-based error reporting (bit 15), function-level
/// reset (bit 28).
const DEVICE_CAPABILITIES: u32 = 0x1000_8000;
/// Device Control's reset value: relaxed ordering and no-snoop allowed, 512-byte read requests.
const DEVICE_CONTROL: u16 = 0x2810;
/// Error reporting enables, relaxed ordering, no-snoop, maximum read request size. The payload size
/// is hardwired.
const DEVICE_CONTROL_WRITABLE: u16 = 0x781f;
/// Device Capabilities 2: End-End TLP prefixes supported (bit 21), at most one of them (bits
/// 23:22).
const DEVICE_CAPABILITIES_2: u32 = 0x0060_0000;

impl ConfigBuilder {
    /// Adds the PCI Express capability of an integrated endpoint that can be reset by itself.
    /// Returns its offset.
    pub fn add_pcie_endpoint(&mut self) -> u16 {
        let mut body = [0; SIZE - 2];
        let mut writable = [0; SIZE - 2];
        let put = |bytes: &mut [u8], register: u16, value: &[u8]| {
            let start = usize::from(register) - 2;
            bytes[start..start + value.len()].copy_from_slice(value);
        };
        put(&mut body, pcie::CAPABILITIES, &CAPABILITIES.to_le_bytes());
        put(
            &mut body,
            pcie::DEVICE_CAPABILITIES,
            &DEVICE_CAPABILITIES.to_le_bytes(),
        );
        put(
            &mut body,
            pcie::DEVICE_CONTROL,
            &DEVICE_CONTROL.to_le_bytes(),
        );
        put(
            &mut body,
            pcie::DEVICE_CAPABILITIES_2,
            &DEVICE_CAPABILITIES_2.to_le_bytes(),
        );
        put(
            &mut writable,
            pcie::DEVICE_CONTROL,
            &DEVICE_CONTROL_WRITABLE.to_le_bytes(),
        );
        let offset = self.add_capability(id::PCIE, &body, &writable);
        self.layout_mut().pcie = Some(offset);
        offset
    }
}

impl ConfigSpace {
    /// Whether a write of `data` at `start` initiates a function-level reset.
    pub(crate) fn function_reset_written(&self, start: usize, data: &[u8]) -> bool {
        self.layout
            .pcie
            // The bit is in the high byte, which may be written by itself.
            .and_then(|offset| usize::from(offset + pcie::DEVICE_CONTROL + 1).checked_sub(start))
            .and_then(|index| data.get(index))
            .is_some_and(|byte| u16::from(*byte) << 8 & INITIATE_FUNCTION_LEVEL_RESET != 0)
    }
}
