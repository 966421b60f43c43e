//! The extended capabilities (PCI Express 7.6.3), from 0x100 on.

use super::Builder;
use crate::vfio::config::{Image, chunk};

const FIRST: u16 = super::FIRST_EXTENDED;

/// Ids of those that are shown.
const ERRORS: u16 = 0x01;
const SERIAL: u16 = 0x03;
const VENDOR: u16 = 0x0b;
const DESIGNATED: u16 = 0x23;

impl Builder<'_> {
    pub(super) fn extended(&mut self) {
        let all = extended_list(self.host);
        let shown: Vec<_> = all
            .iter()
            .filter_map(|&(offset, header)| {
                let end = all
                    .iter()
                    .map(|(other, _)| *other)
                    .filter(|other| *other > offset)
                    .min()
                    .unwrap_or(0x1000);
                self.show_extended(offset, header, end - offset)
                    .then_some((offset, header))
            })
            .collect();
        // The list begins at its fixed place: a null capability stands there for one that is not shown.
        let mut chain = shown;
        if chain.first().is_some_and(|(first, _)| *first != FIRST) {
            chain.retain(|(offset, _)| *offset != FIRST);
            chain.insert(0, (FIRST, 0x0001_0000));
        }
        let nexts = chain.iter().skip(1).map(|(next, _)| *next).chain([0]);
        let headers: Vec<_> = chain
            .iter()
            .zip(nexts)
            .map(|((offset, header), next)| (*offset, header & 0x000f_ffff | u32::from(next) << 20))
            .collect();
        for (offset, header) in headers {
            self.set32(offset, header);
        }
    }

    fn show_extended(&mut self, offset: u16, header: u32, room: u16) -> bool {
        let [a, b, ..] = header.to_le_bytes();
        let vendor_length = || {
            let length = u16::try_from(self.host32(offset + 4) >> 20).unwrap_or(0);
            length.min(room)
        };
        match u16::from_le_bytes([a, b]) {
            // What the host's device reports can be seen; its registers stay as the host set them.
            ERRORS if room >= 0x2c => {
                Self::fill(&mut self.live, offset + 4, 0x28, 0xff);
            }
            SERIAL if room >= 12 => self.copy(offset + 4, 8),
            kind @ (VENDOR | DESIGNATED) => {
                let length = vendor_length();
                if length < 8 {
                    return false;
                }
                self.copy(offset + 4, 4);
                Self::fill(&mut self.live, offset + 8, length - 8, 0xff);
                if kind == VENDOR {
                    Self::fill(&mut self.forward, offset + 8, length - 8, 0xff);
                }
            }
            _ => return false,
        }
        true
    }
}

/// Offsets and headers of the extended capabilities, in the list's order.
fn extended_list(host: &Image) -> Vec<(u16, u32)> {
    let mut list: Vec<(u16, u32)> = Vec::new();
    let mut offset = FIRST;
    loop {
        let header = u32::from_le_bytes(chunk(host, offset));
        if header == 0 || header == u32::MAX {
            return list;
        }
        list.push((offset, header));
        offset = u16::try_from(header >> 20 & 0xffc).unwrap_or(0);
        if offset < FIRST || list.iter().any(|(seen, _)| *seen == offset) {
            return list;
        }
    }
}
