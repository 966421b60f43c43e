//! A function's configuration space: bytes, a write mask and a write-one-to-clear mask, and what a
//! write changed.

mod saved;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bar::{Bar, BarKind, BarWindow};
use crate::command::Command;
use crate::config_layout::{CONFIG_SPACE_SIZE, Layout};
use crate::header::{BAR_COUNT, BAR_END, BAR0, COMMAND, STATUS, STATUS_INTERRUPT};

pub use saved::ConfigState;

/// What a configuration write changed, for the function and the root complex to act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// A BAR moved or Memory Space was switched: the bus must decode anew.
    pub decode: bool,
    /// Bus Master Enable changed to this value.
    pub bus_master: Option<bool>,
    /// The MSI capability was written.
    pub msi: bool,
    /// The MSI-X message control was written.
    pub msix: bool,
    /// Function-level reset was requested. The function resets itself, [`ConfigSpace::reset`]
    /// included.
    pub function_reset: bool,
    /// Interrupt Disable changed.
    pub intx: bool,
}

/// The 4096 bytes of a function's configuration space.
///
/// Any access is allowed: bytes beyond the end read as ones and ignore writes, and reserved bits
/// ignore writes.
pub struct ConfigSpace {
    pub(crate) bytes: Box<[u8; CONFIG_SPACE_SIZE]>,
    pub(crate) reset_bytes: Box<[u8; CONFIG_SPACE_SIZE]>,
    pub(crate) writable: Box<[u8; CONFIG_SPACE_SIZE]>,
    pub(crate) clear: Box<[u8; CONFIG_SPACE_SIZE]>,
    /// What the function itself changes.
    pub(crate) own: Box<[u8; CONFIG_SPACE_SIZE]>,
    pub(crate) bars: [Option<Bar>; BAR_COUNT],
    pub(crate) layout: Layout,
    pub(crate) bus_master: Arc<AtomicBool>,
}

impl ConfigSpace {
    /// Reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let start = usize::from(offset);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(start + index).copied().unwrap_or(0xff);
        }
    }

    /// Writes `data` at `offset` through the masks, and tells what changed.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigChange {
        let before = self.command();
        let start = usize::from(offset);
        let mut bars_changed = false;
        for (at, &value) in (start..CONFIG_SPACE_SIZE).zip(data) {
            let (Some(byte), Some(writable), Some(clear)) = (
                self.bytes.get_mut(at),
                self.writable.get(at),
                self.clear.get(at),
            ) else {
                break;
            };
            let old = *byte;
            *byte = (old & !writable | value & writable) & !(value & clear);
            bars_changed |= *byte != old && (usize::from(BAR0)..usize::from(BAR_END)).contains(&at);
        }
        let touched = |at: u16, length: usize| {
            let at = usize::from(at);
            start < at + length && at < start + data.len()
        };
        let now = self.command();
        self.announce_bus_master();
        ConfigChange {
            decode: bars_changed || now.memory != before.memory,
            bus_master: (now.bus_master != before.bus_master).then_some(now.bus_master),
            msi: self
                .layout
                .msi
                .is_some_and(|msi| touched(msi + 2, self.msi_size())),
            msix: self.layout.msix.is_some_and(|msix| touched(msix + 2, 2)),
            function_reset: self.function_reset_written(start, data),
            intx: now.intx_disable != before.intx_disable,
        }
    }

    fn announce_bus_master(&self) {
        let enabled = self.command().bus_master;
        self.bus_master.store(enabled, Ordering::Release);
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::from_bits(self.read_u16(COMMAND))
    }

    /// Bus Master Enable, kept up to date by [`write`](Self::write) and [`reset`](Self::reset): the
    /// gate of the function's DMA and messages.
    #[must_use]
    pub fn bus_master_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.bus_master)
    }

    /// The address in BAR `index`, or `None` when there is no such BAR or it holds zero.
    #[must_use]
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = (*self.bars.get(index)?)?;
        let offset = bar_offset(index)?;
        let mut address = u64::from(self.read_u32(offset));
        if let BarKind::Memory64 { .. } = bar.kind {
            address |= u64::from(self.read_u32(offset + 4)) << 32;
        }
        address &= !(bar.size - 1);
        (address != 0).then_some(address)
    }

    /// Sets the address in BAR `index`, as firmware does; low bits that the BAR's size covers are
    /// dropped.
    pub fn set_bar_address(&mut self, index: usize, address: u64) {
        let Some(offset) = bar_offset(index) else {
            return;
        };
        match self.bars.get(index).copied().flatten().map(|bar| bar.kind) {
            Some(BarKind::Memory32) => {
                let [a, b, c, d, ..] = address.to_le_bytes();
                self.write(offset, &[a, b, c, d]);
            }
            Some(BarKind::Memory64 { .. }) => {
                self.write(offset, &address.to_le_bytes());
            }
            None => {}
        }
    }

    /// The BARs that exist: index, kind, size.
    pub fn bar_sizes(&self) -> impl Iterator<Item = (usize, BarKind, u64)> + '_ {
        self.bars
            .iter()
            .enumerate()
            .filter_map(|(index, bar)| bar.map(|bar| (index, bar.kind, bar.size)))
    }

    /// The windows that the BARs decode: none while Memory Space is disabled, none for a BAR that
    /// holds zero.
    pub fn decoded_bars(&self) -> impl Iterator<Item = BarWindow> + '_ {
        let enabled = self.command().memory;
        self.bar_sizes()
            .filter(move |_| enabled)
            .filter_map(|(bar, _, size)| {
                Some(BarWindow {
                    bar,
                    base: self.bar_address(bar)?,
                    size,
                })
            })
            .filter(|window| window.last().is_some())
    }

    /// Sets Interrupt Status, the read-only bit that says whether the function wants its INTx pin
    /// asserted.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let status = self.read_u16(STATUS);
        let status = if pending {
            status | STATUS_INTERRUPT
        } else {
            status & !STATUS_INTERRUPT
        };
        self.set_bytes(STATUS, &status.to_le_bytes());
    }

    /// The level of the INTx pin: Interrupt Status, unless Interrupt Disable, MSI or MSI-X keeps it
    /// quiet.
    #[must_use]
    pub fn intx_level(&self) -> bool {
        self.read_u16(STATUS) & STATUS_INTERRUPT != 0
            && !self.command().intx_disable
            && !self.msi_enabled()
            && !self.msix_control().is_some_and(|(enabled, _)| enabled)
    }

    /// Function-level reset (section 6.6.2): every register, BARs included, returns to its initial
    /// value.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.reset_bytes[..]);
        self.bus_master.store(false, Ordering::Release);
    }

    /// The byte at `offset`; ones beyond the end.
    #[must_use]
    pub fn read_u8(&self, offset: u16) -> u8 {
        let mut data = [0];
        self.read(offset, &mut data);
        u8::from_le_bytes(data)
    }

    /// The 16-bit word at `offset`.
    #[must_use]
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The 32-bit word at `offset`.
    #[must_use]
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Changes bytes from the function's side, without masks: how a device model updates a status
    /// field, whose bits that software does not write are its [own](crate::ConfigBuilder::set_own).
    /// Bytes beyond the end are dropped.
    pub fn set_bytes(&mut self, offset: u16, data: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().skip(usize::from(offset)).zip(data) {
            *byte = *value;
        }
    }
}

fn bar_offset(index: usize) -> Option<u16> {
    let index = u16::try_from(index)
        .ok()
        .filter(|index| usize::from(*index) < BAR_COUNT)?;
    Some(BAR0 + 4 * index)
}
