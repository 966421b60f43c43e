//! The builder of a configuration space: identity, BARs and the two capability lists.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::bar::{Bar, BarKind};
use crate::command::Command;
use crate::config::ConfigSpace;
use crate::config_layout::{CONFIG_SPACE_SIZE, Layout};
use crate::header::{
    BAR_COUNT, BAR0, CACHE_LINE_SIZE, CAPABILITIES_POINTER, CLASS, COMMAND, DEVICE_ID,
    FIRST_CAPABILITY, FIRST_EXTENDED, INTERRUPT_LINE, INTERRUPT_PIN, REVISION, STATUS,
    STATUS_CAPABILITIES, STATUS_ERRORS, STATUS_INTERRUPT, SUBSYSTEM_DEVICE, SUBSYSTEM_VENDOR,
    VENDOR_ID,
};

/// What a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Base class, sub-class, programming interface, in this order.
    pub class: [u8; 3],
    /// Revision id.
    pub revision: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem device id.
    pub subsystem_device: u16,
}

/// A configuration space under construction.
///
/// Every method panics when it is asked for what no configuration space can hold (a BAR that
/// exists, a full capability list): such a layout is a mistake in a device model, and no guest can
/// reach it.
pub struct ConfigBuilder {
    bytes: Box<[u8; CONFIG_SPACE_SIZE]>,
    writable: Box<[u8; CONFIG_SPACE_SIZE]>,
    clear: Box<[u8; CONFIG_SPACE_SIZE]>,
    own: Box<[u8; CONFIG_SPACE_SIZE]>,
    bars: [Option<Bar>; BAR_COUNT],
    layout: Layout,
    /// Where the next capability goes, and where its offset is to be linked.
    next: u16,
    link: u16,
    next_extended: u16,
    last_extended: Option<u16>,
}

impl ConfigBuilder {
    /// Starts a configuration space with a type 0 (endpoint) header.
    #[must_use]
    pub fn endpoint(identity: Identity) -> Self {
        let mut builder = Self::new(identity);
        builder.put(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        builder.put(SUBSYSTEM_DEVICE, &identity.subsystem_device.to_le_bytes());
        builder
    }

    /// What the headers of both types have in common.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut builder = Self {
            bytes: Box::new([0; CONFIG_SPACE_SIZE]),
            writable: Box::new([0; CONFIG_SPACE_SIZE]),
            clear: Box::new([0; CONFIG_SPACE_SIZE]),
            own: Box::new([0; CONFIG_SPACE_SIZE]),
            bars: [None; BAR_COUNT],
            layout: Layout::default(),
            next: FIRST_CAPABILITY,
            link: CAPABILITIES_POINTER,
            next_extended: FIRST_EXTENDED,
            last_extended: None,
        };
        let [class, sub_class, interface] = identity.class;
        builder.put(VENDOR_ID, &identity.vendor.to_le_bytes());
        builder.put(DEVICE_ID, &identity.device.to_le_bytes());
        builder.put(REVISION, &[identity.revision]);
        builder.put(CLASS, &[interface, sub_class, class]);
        builder.set_writable(COMMAND, &Command::WRITABLE.to_le_bytes());
        builder.set_write_one_to_clear(STATUS, &STATUS_ERRORS.to_le_bytes());
        builder.set_own(STATUS, &STATUS_INTERRUPT.to_le_bytes());
        builder.set_writable(CACHE_LINE_SIZE, &[0xff]);
        builder.set_writable(INTERRUPT_LINE, &[0xff]);
        builder
    }

    /// Adds a memory BAR of `size` bytes (a power of two, at least 16) at register `index`.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) -> &mut Self {
        assert!(
            size.is_power_of_two() && size >= 16,
            "BAR size {size:#x} is not a power of two of at least 16"
        );
        assert!(
            index + kind.registers() <= BAR_COUNT,
            "BAR {index} does not fit"
        );
        assert!(self.bars[index].is_none(), "BAR {index} exists");
        let mask = !(size - 1);
        let offset = BAR0 + 4 * u16::try_from(index).expect("below 6");
        self.put(offset, &kind.type_bits().to_le_bytes());
        match kind {
            BarKind::Memory32 => {
                let mask = u32::try_from(mask & 0xffff_ffff).expect("masked");
                assert!(
                    mask != 0,
                    "a 32-bit BAR of {size:#x} bytes cannot be placed"
                );
                self.set_writable(offset, &mask.to_le_bytes());
            }
            BarKind::Memory64 { .. } => {
                assert!(self.bars[index + 1].is_none(), "BAR {} exists", index + 1);
                self.set_writable(offset, &mask.to_le_bytes());
            }
        }
        self.bars[index] = Some(Bar { kind, size });
        self
    }

    /// Adds a capability whose bytes after the two header bytes are `body`; `writable` holds the
    /// body's write mask and may be shorter. Returns the capability's offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let offset = self.next;
        let length = u16::try_from(body.len() + 2).expect("capability fits");
        let end = (offset + length).next_multiple_of(4);
        assert!(end <= FIRST_EXTENDED, "no room for capability {id:#x}");
        self.put(offset, &[id, 0]);
        self.put(offset + 2, body);
        self.set_writable(offset + 2, writable);
        let link = self.link;
        self.put(link, &[u8::try_from(offset).expect("below 0x100")]);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = offset + 1;
        self.next = end;
        offset
    }

    /// Adds an extended capability whose bytes after the four header bytes are `body`; `writable`
    /// holds the body's write mask and may be shorter. Returns the capability's offset.
    pub fn add_ext_capability(
        &mut self,
        id: u16,
        version: u8,
        body: &[u8],
        writable: &[u8],
    ) -> u16 {
        let offset = self.next_extended;
        let end = (usize::from(offset) + 4 + body.len()).next_multiple_of(4);
        assert!(
            end <= CONFIG_SPACE_SIZE,
            "no room for extended capability {id:#x}"
        );
        let header = u32::from(id) | u32::from(version & 0xf) << 16;
        self.put(offset, &header.to_le_bytes());
        self.put(offset + 4, body);
        self.set_writable(offset + 4, writable);
        if let Some(last) = self.last_extended {
            // Next pointer: bits 31:20 of the predecessor's header.
            let high =
                (offset << 4 | u16::from(self.bytes[usize::from(last) + 2] & 0xf)).to_le_bytes();
            self.put(last + 2, &high);
        }
        self.last_extended = Some(offset);
        self.next_extended = u16::try_from(end).expect("at most 4096");
        offset
    }

    /// The function has an INTx pin: 1 for INTA to 4 for INTD.
    pub fn set_interrupt_pin(&mut self, pin: u8) -> &mut Self {
        assert!((1..=4).contains(&pin), "interrupt pin {pin}");
        self.put(INTERRUPT_PIN, &[pin]);
        self
    }

    /// Adds write-mask bits at `offset`.
    pub fn set_writable(&mut self, offset: u16, mask: &[u8]) -> &mut Self {
        for (byte, bits) in self.writable[usize::from(offset)..].iter_mut().zip(mask) {
            *byte |= bits;
        }
        self
    }

    /// Adds bits at `offset` that software clears by writing ones.
    pub fn set_write_one_to_clear(&mut self, offset: u16, mask: &[u8]) -> &mut Self {
        for (byte, bits) in self.clear[usize::from(offset)..].iter_mut().zip(mask) {
            *byte |= bits;
        }
        self
    }

    /// Adds bits at `offset` that the function changes by itself: see
    /// [`set_bytes`](ConfigSpace::set_bytes).
    pub fn set_own(&mut self, offset: u16, mask: &[u8]) -> &mut Self {
        for (byte, bits) in self.own[usize::from(offset)..].iter_mut().zip(mask) {
            *byte |= bits;
        }
        self
    }

    pub(crate) fn layout_mut(&mut self) -> &mut Layout {
        &mut self.layout
    }

    /// The configuration space in its reset state.
    #[must_use]
    pub fn build(self) -> ConfigSpace {
        ConfigSpace {
            reset_bytes: self.bytes.clone(),
            bytes: self.bytes,
            writable: self.writable,
            clear: self.clear,
            own: self.own,
            bars: self.bars,
            layout: self.layout,
            bus_master: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Sets initial values.
    pub(crate) fn put(&mut self, offset: u16, value: &[u8]) {
        let start = usize::from(offset);
        self.bytes[start..start + value.len()].copy_from_slice(value);
    }
}
