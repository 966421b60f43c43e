//! The guest's configuration space, made from the host's: which capabilities are shown, and what of
//! them is real.
//!
//! Registers stay at the host's offsets, as some drivers know theirs by heart. Shown are power
//! management, MSI, MSI-X, PCI Express and vendor-specific capabilities, and of the extended ones
//! the device serial number, error reporting and vendor-specific ones; ATS, PASID and PRI if they
//! are asked for. Everything else, known or not, is left out of the lists and reads as zero: SR-IOV
//! and resizable BARs would need the VMM's help, access control, virtual channels, link and latency
//! management are the host's.

mod extended;

pub(super) use extended::host_services;

use pci::capability::{id, msi, msix, pcie};
use pci::header::{
    CACHE_LINE_SIZE, CAPABILITIES_POINTER, COMMAND, FIRST_CAPABILITY, FIRST_EXTENDED,
    INTERRUPT_LINE, REVISION, STATUS, STATUS_CAPABILITIES, STATUS_INTERRUPT, SUBSYSTEM_VENDOR,
    VENDOR_ID,
};
use pci::{CONFIG_SPACE_SIZE, Command};

use super::bars::Bar;
use super::config::VirtualConfig;
use super::image::{Image, Layout, MsiLayout, MsixLayout, PM_CONTROL, chunk, put};
use super::services::Shown;

/// Device capabilities 2 (7.5.3.15): End-End TLP prefixes, which PASIDs travel in, and how many of
/// them (0 for 4).
const PREFIXES: u32 = 1 << 21;
const PREFIX_COUNT: u32 = 3 << 22;

/// Device control bits that the guest may change (7.5.3.4): error reporting, relaxed ordering,
/// extended tags, no-snoop, the size of read requests.
const CONTROL_WRITABLE: u16 = 0x791f;
/// Those of them that the host's device follows: relaxed ordering, no-snoop, the size of read
/// requests. What errors the host hears of, and the tags that its ports understand, are the host's.
pub(super) const CONTROL_FORWARDED: u16 = 0x7810;

/// What is known of the host's device besides its configuration space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// The guest sees the function on the root bus: an integrated endpoint, without a link.
    pub(super) on_root_bus: bool,
    /// It can be reset.
    pub(super) has_reset: bool,
    /// What is shown of PASIDs and ATS.
    pub(super) shown: Shown,
    /// Vectors that VFIO offers.
    pub(super) msi: u32,
    pub(super) msix: u32,
}

/// The guest's configuration space.
pub(super) fn build(host: &Image, bars: Vec<Bar>, facts: Facts) -> VirtualConfig {
    let mut builder = Builder {
        host,
        bytes: Box::new([0; CONFIG_SPACE_SIZE]),
        writable: Box::new([0; CONFIG_SPACE_SIZE]),
        live: Box::new([0; CONFIG_SPACE_SIZE]),
        forward: Box::new([0; CONFIG_SPACE_SIZE]),
        layout: Layout::default(),
        facts,
    };
    builder.header(&bars);
    builder.standard(&bars);
    if builder.layout.pcie.is_some() {
        builder.extended();
    }
    VirtualConfig {
        initial: builder.bytes.clone(),
        bytes: builder.bytes,
        writable: builder.writable,
        live: builder.live,
        forward: builder.forward,
        bars,
        layout: builder.layout,
    }
}

struct Builder<'a> {
    host: &'a Image,
    bytes: Box<Image>,
    writable: Box<Image>,
    live: Box<Image>,
    forward: Box<Image>,
    layout: Layout,
    facts: Facts,
}

impl Builder<'_> {
    fn host16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(chunk(self.host, offset))
    }

    fn host32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(chunk(self.host, offset))
    }

    fn set16(&mut self, offset: u16, value: u16) {
        put(&mut self.bytes[..], offset, &value.to_le_bytes());
    }

    fn set32(&mut self, offset: u16, value: u32) {
        put(&mut self.bytes[..], offset, &value.to_le_bytes());
    }

    fn writable16(&mut self, offset: u16, mask: u16) {
        put(&mut self.writable[..], offset, &mask.to_le_bytes());
    }

    fn writable32(&mut self, offset: u16, mask: u32) {
        put(&mut self.writable[..], offset, &mask.to_le_bytes());
    }

    fn live16(&mut self, offset: u16, mask: u16) {
        put(&mut self.live[..], offset, &mask.to_le_bytes());
    }

    fn copy(&mut self, offset: u16, length: u16) {
        for at in offset..offset.saturating_add(length) {
            let [byte] = chunk(self.host, at);
            put(&mut self.bytes[..], at, &[byte]);
        }
    }

    fn fill(image: &mut Image, offset: u16, length: u16, value: u8) {
        let start = usize::from(offset);
        image
            .iter_mut()
            .skip(start)
            .take(usize::from(length))
            .for_each(|byte| *byte = value);
    }

    fn header(&mut self, bars: &[Bar]) {
        // Identity; class and revision; subsystem. The header type stays 0: an endpoint of one
        // function.
        self.copy(VENDOR_ID, 4);
        self.copy(REVISION, 4);
        self.copy(SUBSYSTEM_VENDOR, 4);
        self.writable16(
            COMMAND,
            Command::MEMORY
                | Command::BUS_MASTER
                | Command::PARITY_RESPONSE
                | Command::SERR
                | Command::INTX_DISABLE,
        );
        self.live16(STATUS, STATUS_INTERRUPT);
        // Cache line size and interrupt line mean nothing to the device.
        Self::fill(&mut self.writable, CACHE_LINE_SIZE, 1, 0xff);
        Self::fill(&mut self.writable, INTERRUPT_LINE, 1, 0xff);
        for bar in bars {
            let register = bar.register();
            self.set32(register, bar.type_bits());
            let [a, b, c, d, upper @ ..] = (!(bar.size - 1)).to_le_bytes();
            self.writable32(register, u32::from_le_bytes([a, b, c, d]));
            if let pci::BarKind::Memory64 { .. } = bar.kind {
                self.writable32(register + 4, u32::from_le_bytes(upper));
            }
        }
    }

    fn standard(&mut self, bars: &[Bar]) {
        let all = standard_list(self.host);
        // What belongs to no capability may be registers that a driver reads; it sees the host's.
        Self::fill(
            &mut self.live,
            FIRST_CAPABILITY,
            FIRST_EXTENDED - FIRST_CAPABILITY,
            0xff,
        );
        let mut link = CAPABILITIES_POINTER;
        for &(offset, id) in &all {
            let end = all
                .iter()
                .map(|(other, _)| *other)
                .filter(|other| *other > offset)
                .min()
                .unwrap_or(FIRST_EXTENDED);
            let room = end - offset;
            let length = self.standard_length(offset, id).unwrap_or(room).min(room);
            Self::fill(&mut self.live, offset, length, 0);
            if !self.show(offset, id, length, bars) {
                continue;
            }
            let [low, _] = offset.to_le_bytes();
            put(&mut self.bytes[..], link, &[low]);
            put(&mut self.bytes[..], offset, &[id]);
            link = offset + 1;
        }
        if link != CAPABILITIES_POINTER {
            self.set16(STATUS, STATUS_CAPABILITIES);
        }
    }

    /// Bytes of a capability whose kind says how long it is.
    fn standard_length(&self, offset: u16, id: u8) -> Option<u16> {
        let length = match id {
            id::POWER_MANAGEMENT => 8,
            id::MSI => self.msi_layout(offset).size(),
            id::VENDOR => {
                let [length] = chunk(self.host, offset + 2);
                u16::from(length).max(3)
            }
            id::PCIE if self.pcie_version(offset) == 1 => 0x14,
            id::PCIE => 0x3c,
            id::MSIX => 12,
            _ => return None,
        };
        Some(length)
    }

    /// Puts a capability into the guest's image; `false` for one that the guest does not see.
    fn show(&mut self, offset: u16, id: u8, length: u16, bars: &[Bar]) -> bool {
        match id {
            id::POWER_MANAGEMENT if length == 8 && self.layout.power.is_none() => {
                self.power(offset)
            }
            id::MSI if self.layout.msi.is_none() => return self.msi(offset, length),
            id::MSIX if length == 12 && self.layout.msix.is_none() => {
                return self.msix(offset, bars);
            }
            id::PCIE if length >= 0x14 && self.layout.pcie.is_none() => self.pcie(offset, length),
            id::VENDOR if length > 3 => {
                self.copy(offset + 2, 1);
                Self::fill(&mut self.live, offset + 3, length - 3, 0xff);
                Self::fill(&mut self.forward, offset + 3, length - 3, 0xff);
            }
            _ => return false,
        }
        true
    }

    fn power(&mut self, offset: u16) {
        // Version, soft-reset behaviour and D1, D2 are the device's; it wakes nobody.
        let capabilities = self.host16(offset + 2) & 0x0627;
        let control = self.host16(offset + PM_CONTROL) & 1 << 3;
        self.set16(offset + 2, capabilities);
        self.set16(offset + PM_CONTROL, control);
        self.writable16(offset + PM_CONTROL, 3);
        self.layout.power = Some(offset);
    }

    fn msi_layout(&self, offset: u16) -> MsiLayout {
        let control = self.host16(offset + msi::CONTROL);
        MsiLayout {
            offset,
            wide: control & 1 << 7 != 0,
            maskable: control & 1 << 8 != 0,
        }
    }

    fn msi(&mut self, offset: u16, length: u16) -> bool {
        let layout = self.msi_layout(offset);
        if length < layout.size() || self.facts.msi == 0 {
            return false;
        }
        let control = self.host16(offset + msi::CONTROL);
        let offered = u32::from(control >> 1 & 7)
            .min(self.facts.msi.ilog2())
            .min(5);
        let vectors = u32::MAX >> (32 - (1 << offered));
        let offered = u16::try_from(offered).unwrap_or(0);
        self.set16(offset + msi::CONTROL, control & 0x0180 | offered << 1);
        self.writable16(offset + msi::CONTROL, 0x70 | msi::ENABLE);
        self.writable32(offset + 4, 0xffff_fffc);
        if layout.wide {
            self.writable32(offset + 8, u32::MAX);
        }
        self.writable16(layout.data(), 0xffff);
        if layout.maskable {
            self.writable32(layout.mask(), vectors);
        }
        self.layout.msi = Some(layout);
        true
    }

    fn msix(&mut self, offset: u16, bars: &[Bar]) -> bool {
        let control = self.host16(offset + msix::CONTROL);
        let vectors = u32::from(control & 0x7ff) + 1;
        let Ok(vectors) = u16::try_from(vectors.min(self.facts.msix)) else {
            return false;
        };
        let (table, pba) = (self.host32(offset + 4), self.host32(offset + 8));
        let layout = MsixLayout {
            offset,
            vectors,
            table_bar: usize::from(table.to_le_bytes()[0] & 7),
            table: u64::from(table & !7),
            pba_bar: usize::from(pba.to_le_bytes()[0] & 7),
            pba: u64::from(pba & !7),
        };
        let fits = |index: usize, start: u64, size: u64| {
            let mut bars = bars.iter();
            bars.any(|bar| bar.index == index && start + size <= bar.size)
        };
        if vectors == 0
            || !fits(layout.table_bar, layout.table, layout.table_size())
            || !fits(layout.pba_bar, layout.pba, layout.pba_size())
        {
            return false;
        }
        self.set16(offset + msix::CONTROL, vectors - 1);
        self.writable16(offset + msix::CONTROL, msix::ENABLE | msix::FUNCTION_MASK);
        self.set32(offset + 4, table);
        self.set32(offset + 8, pba);
        self.layout.msix = Some(layout);
        true
    }

    fn pcie_version(&self, offset: u16) -> u16 {
        self.host16(offset + pcie::CAPABILITIES) & 0xf
    }

    fn pcie(&mut self, offset: u16, length: u16) {
        let version = self.pcie_version(offset).clamp(1, 2);
        // Device/port type: 9 is an integrated endpoint, 0 an endpoint behind a port.
        let kind = if self.facts.on_root_bus { 9 } else { 0 };
        self.set16(offset + pcie::CAPABILITIES, version | kind << 4);
        // Extended tags and role-based error reporting are kept. Payloads of 128 bytes fit any
        // port; the host decides.
        let capabilities = self.host32(offset + pcie::DEVICE_CAPABILITIES) & 0x0000_8020;
        let reset = u32::from(self.facts.has_reset) << 28;
        self.set32(offset + pcie::DEVICE_CAPABILITIES, capabilities | reset);
        let control = self.host16(offset + pcie::DEVICE_CONTROL) & 0x7910;
        self.set16(offset + pcie::DEVICE_CONTROL, control);
        self.writable16(offset + pcie::DEVICE_CONTROL, CONTROL_WRITABLE);
        if self.facts.shown.pasids.is_some() && length >= pcie::DEVICE_CAPABILITIES_2 + 4 {
            let count = self.host32(offset + pcie::DEVICE_CAPABILITIES_2) & PREFIX_COUNT;
            self.set32(offset + pcie::DEVICE_CAPABILITIES_2, PREFIXES | count);
        }
        // Device status: transactions pending, which software waits for before a reset.
        self.live16(offset + pcie::DEVICE_STATUS, 1 << 5);
        if !self.facts.on_root_bus {
            // Link: port number, width and speed, without power management.
            let link = self.host32(offset + pcie::LINK_CAPABILITIES) & 0xff00_03ff;
            self.set32(offset + pcie::LINK_CAPABILITIES, link);
            self.writable16(offset + pcie::LINK_CONTROL, 0x00c0);
            self.live16(offset + pcie::LINK_STATUS, 0x13ff);
            if version == 2 && length >= 0x34 {
                let speeds = self.host32(offset + pcie::LINK_CAPABILITIES_2) & 0xfe;
                self.set32(offset + pcie::LINK_CAPABILITIES_2, speeds);
                let target = self.host16(offset + pcie::LINK_CONTROL_2) & 0xf;
                self.set16(offset + pcie::LINK_CONTROL_2, target);
            }
        }
        self.layout.pcie = Some(offset);
    }
}

/// Device/Port Type of the PCI Express capability (7.5.3.2), if there is one.
pub(super) fn express_type(host: &Image) -> Option<u8> {
    let list = standard_list(host);
    let (offset, _) = list.iter().find(|(_, id)| *id == id::PCIE)?;
    let [flags] = chunk(host, offset + pcie::CAPABILITIES);
    Some(flags >> 4)
}

/// Offsets and ids of the standard capabilities, in the list's order. A list that loops or leaves
/// its place ends there.
fn standard_list(host: &Image) -> Vec<(u16, u8)> {
    let mut list: Vec<(u16, u8)> = Vec::new();
    if u16::from_le_bytes(chunk(host, STATUS)) & STATUS_CAPABILITIES == 0 {
        return list;
    }
    let [mut pointer] = chunk(host, CAPABILITIES_POINTER);
    loop {
        let offset = u16::from(pointer & 0xfc);
        if offset < FIRST_CAPABILITY || list.iter().any(|(seen, _)| *seen == offset) {
            return list;
        }
        let [id, next] = chunk(host, offset);
        if id == 0xff {
            return list;
        }
        list.push((offset, id));
        pointer = next;
    }
}

#[cfg(test)]
mod capabilities_test;
