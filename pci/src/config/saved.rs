//! The state of a configuration space: its bytes. What software can change, and what the function
//! changes itself, is as it was saved; all else has to be the same here.

use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError};

use super::ConfigSpace;
use crate::capability::id;
use crate::config_layout::CONFIG_SPACE_SIZE;
use crate::header::{
    BAR_COUNT, BAR_END, BAR0, CAPABILITIES_POINTER, CLASS, COMMAND, DEVICE_ID, FIRST_CAPABILITY,
    FIRST_EXTENDED, HEADER_TYPE, INTERRUPT_PIN, REVISION, STATUS, SUBSYSTEM_DEVICE,
    SUBSYSTEM_VENDOR, VENDOR_ID,
};

/// What a configuration space is like: part of the state of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigState {
    bytes: Bytes,
    /// By index: bytes of the BAR, 0 if there is none.
    bars: [u64; BAR_COUNT],
}

impl ConfigSpace {
    /// What it is like.
    #[must_use]
    pub fn save(&self) -> ConfigState {
        ConfigState {
            bytes: Bytes::new(&self.bytes[..]),
            bars: self.sizes(),
        }
    }

    /// Makes one of a function that was just created like the one that was [saved](Self::save).
    /// Nothing else is told, but the [gate](Self::bus_master_flag) of the function.
    ///
    /// # Errors
    /// The first thing in which the functions differ; nothing has changed then.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), RestoreError> {
        let saved: [u8; CONFIG_SPACE_SIZE] = state.bytes.array("configuration space")?;
        let dwords = saved.chunks_exact(4).zip(self.fixed());
        for (register, (saved, (mask, here))) in (0..).step_by(4).zip(dwords) {
            let saved = word(saved) & mask;
            if saved != here {
                let what = self.name(register, saved ^ here);
                let [saved, here] = [saved, here].map(|value| format!("{value:#010x}"));
                return RestoreError::unless_equal(what, saved, here);
            }
        }
        for (index, (saved, here)) in state.bars.iter().zip(self.sizes()).enumerate() {
            let what = format_args!("the size of BAR {index}");
            RestoreError::unless_equal(what, format!("{saved:#x}"), format!("{here:#x}"))?;
        }
        self.bytes.copy_from_slice(&saved);
        self.announce_bus_master();
        Ok(())
    }

    fn sizes(&self) -> [u64; BAR_COUNT] {
        self.bars.map(|bar| bar.map_or(0, |bar| bar.size))
    }

    /// By dword: which bits never change, and their values.
    fn fixed(&self) -> Vec<(u32, u32)> {
        let changes = self.writable.iter().zip(&self.clear[..]).zip(&self.own[..]);
        let masks = changes.map(|((writable, clear), own)| !(writable | clear | own));
        let masks: Vec<u8> = masks.collect();
        let values = self.reset_bytes.chunks_exact(4).map(word);
        let masks = masks.chunks_exact(4).map(word);
        masks
            .zip(values)
            .map(|(mask, value)| (mask, value & mask))
            .collect()
    }

    /// What is in the dword at `register`, in the bits of `bits`.
    fn name(&self, register: u16, bits: u32) -> String {
        let byte = u16::try_from(bits.trailing_zeros() / 8).unwrap_or(0);
        let at = register + byte;
        if at < FIRST_CAPABILITY {
            return header_name(at, self.read_u8(HEADER_TYPE));
        }
        let (first, extended) = if at < FIRST_EXTENDED {
            (CAPABILITIES_POINTER, false)
        } else {
            (FIRST_EXTENDED, true)
        };
        match self.capability_at(at, first, extended) {
            Some((offset, id)) => {
                let kind = if extended {
                    "extended capability"
                } else {
                    "capability"
                };
                let name = capability_name(id, extended);
                format!("register {:#x} of {kind} {id:#x}{name}", register - offset)
            }
            None => format!("configuration register {register:#x}"),
        }
    }

    /// The offset and the id of the capability here that `at` is in.
    fn capability_at(&self, at: u16, first: u16, extended: bool) -> Option<(u16, u16)> {
        let mut found = None;
        let mut next = match extended {
            true => first,
            false => self.read_u8(first).into(),
        };
        // The builder puts each behind the one before.
        while next != 0 && next <= at {
            let following;
            let id;
            if extended {
                id = self.read_u16(next);
                following = self.read_u16(next + 2) >> 4;
            } else {
                id = self.read_u8(next).into();
                following = self.read_u8(next + 1).into();
            }
            found = (id != 0).then_some((next, id));
            if following <= next {
                break;
            }
            next = following;
        }
        found
    }
}

/// What is at `at` of the header.
fn header_name(at: u16, header_type: u8) -> String {
    let endpoint = header_type & 0x7f == 0;
    let name = match at {
        VENDOR_ID..DEVICE_ID => "the vendor id",
        DEVICE_ID..COMMAND => "the device id",
        STATUS..REVISION => "the status register",
        REVISION => "the revision",
        CLASS..0x0c => "the class",
        HEADER_TYPE => "the header type",
        BAR0..BAR_END if endpoint => return format!("the kind of BAR {}", (at - BAR0) / 4),
        SUBSYSTEM_VENDOR..SUBSYSTEM_DEVICE if endpoint => "the subsystem vendor id",
        SUBSYSTEM_DEVICE..0x30 if endpoint => "the subsystem device id",
        CAPABILITIES_POINTER => "the place of the first capability",
        INTERRUPT_PIN => "the interrupt pin",
        _ => return format!("configuration register {at:#x}"),
    };
    name.to_owned()
}

/// The name behind the id of a capability.
fn capability_name(id: u16, extended: bool) -> &'static str {
    if extended {
        return match id {
            crate::ACS_EXTENDED_ID => " (ACS)",
            crate::ATS_EXTENDED_ID => " (ATS)",
            crate::PASID_EXTENDED_ID => " (PASID)",
            crate::PRI_EXTENDED_ID => " (PRI)",
            _ => "",
        };
    }
    match u8::try_from(id) {
        Ok(id::MSI) => " (MSI)",
        Ok(id::MSIX) => " (MSI-X)",
        Ok(id::PCIE) => " (PCI Express)",
        _ => "",
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod saved_test;
