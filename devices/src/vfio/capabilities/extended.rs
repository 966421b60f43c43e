//! The extended capabilities (PCI Express 7.6.3), from 0x100 on.

use pci::capability::{ats, pri};
use pci::header::FIRST_EXTENDED;
use pci::{
    ATS_EXTENDED_ID, CONFIG_SPACE_SIZE, ExtendedRegisters, PASID_EXTENDED_ID, PRI_EXTENDED_ID,
};

use super::Builder;
use crate::vfio::image::{Image, chunk, put};
use crate::vfio::services::{HostServices, HostState, Pasids};

/// Bytes of ATS, and of PASID.
const REGISTERS: u16 = 8;
/// Bytes of PRI.
const PRI_LENGTH: u16 = 16;

/// A header: the id, and where the next one is. Between them is the version.
const ID_MASK: u32 = 0xffff;
const NEXT_MASK: u32 = 0xfff0_0000;
/// PASID's, without the next.
const PASID_HEADER: u32 = 1 << 16 | PASID_EXTENDED_ID as u32;
/// Bits of its first byte of capabilities that are reserved: all but execute, privileged,
/// translated requests.
const PASID_RESERVED: u8 = 0xf1;

/// Ids of those that are shown.
const ERRORS: u16 = 0x01;
const SERIAL: u16 = 0x03;
const VENDOR: u16 = 0x0b;
const DESIGNATED: u16 = 0x23;

impl Builder<'_> {
    pub(super) fn extended(&mut self) {
        let all = extended_list(self.host);
        let mut chain = Vec::new();
        let mut taken = Vec::new();
        for &(offset, header) in &all {
            let end = all
                .iter()
                .map(|(other, _)| *other)
                .filter(|other| *other > offset)
                .min()
                .unwrap_or(0x1000);
            if let Some(length) = self.show_extended(offset, header, end - offset) {
                chain.push((offset, header));
                taken.push((offset, length));
            }
        }
        if let Some(pasids) = self.facts.shown.pasids
            && let Some(offset) = pasid_place(self.host, &all, &taken, pasids)
        {
            let registers = ExtendedRegisters::pasid(pasids.bits, false, pasids.privileged);
            self.show_registers(offset, registers);
            chain.push((offset, PASID_HEADER));
        }
        // The list begins at its fixed place: a null capability stands there for one that is not
        // shown.
        if chain
            .first()
            .is_some_and(|(first, _)| *first != FIRST_EXTENDED)
        {
            chain.retain(|(offset, _)| *offset != FIRST_EXTENDED);
            chain.insert(0, (FIRST_EXTENDED, 0x0001_0000));
        }
        let nexts = chain.iter().skip(1).map(|(next, _)| *next).chain([0]);
        let headers: Vec<_> = chain
            .iter()
            .zip(nexts)
            .map(|((offset, header), next)| (*offset, header & !NEXT_MASK | u32::from(next) << 20))
            .collect();
        for (offset, header) in headers {
            self.set32(offset, header);
        }
    }

    /// Puts registers of our own behind a header.
    fn show_registers<const N: usize>(&mut self, offset: u16, registers: ExtendedRegisters<N>) {
        put(&mut self.bytes[..], offset + 4, &registers.values);
        put(&mut self.writable[..], offset + 4, &registers.writable);
    }

    /// Puts a capability into the guest's image, and tells its length; nothing for one that the
    /// guest does not see.
    fn show_extended(&mut self, offset: u16, header: u32, room: u16) -> Option<u16> {
        let [a, b, ..] = header.to_le_bytes();
        let vendor_length = || {
            let length = u16::try_from(self.host32(offset + 4) >> 20).unwrap_or(0);
            length.min(room)
        };
        match u16::from_le_bytes([a, b]) {
            // What the host's device reports can be seen; its registers stay as the host set them.
            ERRORS if room >= 0x2c => {
                Self::fill(&mut self.live, offset + 4, 0x28, 0xff);
                Some(0x2c)
            }
            SERIAL if room >= 12 => {
                self.copy(offset + 4, 8);
                Some(12)
            }
            ATS_EXTENDED_ID if room >= REGISTERS && self.facts.shown.ats => {
                let [capability] = chunk(self.host, offset + ats::CAPABILITY);
                self.show_registers(offset, ExtendedRegisters::ats(capability));
                Some(REGISTERS)
            }
            PRI_EXTENDED_ID
                if room >= PRI_LENGTH && self.facts.shown.pri && self.layout.pri.is_none() =>
            {
                let capacity = self.host32(offset + pri::CAPACITY);
                let pasid = self.host16(offset + pri::STATUS) & pri::PASID_IN_RESPONSE != 0;
                self.show_registers(offset, ExtendedRegisters::pri(capacity, pasid));
                self.layout.pri = Some(offset);
                Some(PRI_LENGTH)
            }
            kind @ (VENDOR | DESIGNATED) => {
                let length = vendor_length();
                if length < 8 {
                    return None;
                }
                self.copy(offset + 4, 4);
                Self::fill(&mut self.live, offset + 8, length - 8, 0xff);
                if kind == VENDOR {
                    Self::fill(&mut self.forward, offset + 8, length - 8, 0xff);
                }
                Some(length)
            }
            _ => None,
        }
    }
}

/// What the host has enabled, by the configuration space that vfio-pci shows.
pub(in crate::vfio) fn host_services(host: &Image) -> HostServices {
    let list = extended_list(host);
    let state = |id: u16, control: u16, enable: u16| {
        let place = list
            .iter()
            .find(|(_, header)| header & ID_MASK == u32::from(id));
        let control = place.map(|(offset, _)| u16::from_le_bytes(chunk(host, offset + control)));
        match control.map(|control| control & enable) {
            None => HostState::Absent,
            Some(0) => HostState::Disabled,
            Some(_) => HostState::Enabled,
        }
    };
    HostServices {
        ats: state(ATS_EXTENDED_ID, ats::CONTROL, ats::ENABLE),
        pri: state(PRI_EXTENDED_ID, pri::CONTROL, pri::ENABLE),
    }
}

/// Where PASID goes: where the device has it, if that can be seen, else where the guest finds
/// nothing and the host's device has zeroes, else where the guest finds nothing. What the guest
/// does not find reads as zero, so nothing is hidden by that. `taken` are places and lengths of
/// what the guest finds.
fn pasid_place(
    host: &Image,
    all: &[(u16, u32)],
    taken: &[(u16, u16)],
    pasids: Pasids,
) -> Option<u16> {
    let free = |offset: &u16| {
        let ends_before = |start: u16| *offset + REGISTERS <= start;
        let mut taken = taken.iter();
        taken.all(|(start, length)| ends_before(*start) || start + length <= *offset)
    };
    let all_zero = |offset: &u16| chunk(host, *offset) == [0; REGISTERS as usize];
    let end = u16::try_from(CONFIG_SPACE_SIZE).unwrap_or(0);
    // At the list's fixed place there may be a null capability.
    let places = (FIRST_EXTENDED + REGISTERS..end).step_by(usize::from(REGISTERS));
    hidden_pasid(host, all, pasids)
        .filter(free)
        .or_else(|| {
            places
                .clone()
                .find(|offset| free(offset) && all_zero(offset))
        })
        .or_else(|| places.clone().find(free))
}

/// Where the host's device has PASID. vfio-pci takes it out of the list, and its bytes can be read:
/// it is enabled, not narrower than what the host says of it, and leads to a capability of the list
/// or ends it.
fn hidden_pasid(host: &Image, all: &[(u16, u32)], pasids: Pasids) -> Option<u16> {
    let listed = |offset: u16| all.iter().any(|(other, _)| *other == offset);
    let end = u16::try_from(CONFIG_SPACE_SIZE).unwrap_or(0) - REGISTERS;
    (FIRST_EXTENDED..=end).step_by(4).find(|&offset| {
        let header = u32::from_le_bytes(chunk(host, offset));
        let next = u16::try_from(header >> 20).unwrap_or(0);
        let [capability, width, enabled, _] = chunk(host, offset + 4);
        header & !NEXT_MASK == PASID_HEADER
            && (next == 0 || listed(next))
            && !listed(offset)
            && (pasids.bits..=20).contains(&width)
            && capability & PASID_RESERVED == 0
            && enabled & 1 != 0
    })
}

/// Offsets and headers of the extended capabilities, in the list's order.
fn extended_list(host: &Image) -> Vec<(u16, u32)> {
    let mut list: Vec<(u16, u32)> = Vec::new();
    let mut offset = FIRST_EXTENDED;
    loop {
        let header = u32::from_le_bytes(chunk(host, offset));
        if header == 0 || header == u32::MAX {
            return list;
        }
        list.push((offset, header));
        offset = u16::try_from(header >> 20 & 0xffc).unwrap_or(0);
        if offset < FIRST_EXTENDED || list.iter().any(|(seen, _)| *seen == offset) {
            return list;
        }
    }
}
