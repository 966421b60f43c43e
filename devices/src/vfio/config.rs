//! The configuration space that the guest sees of an assigned device: bytes of our own, with masks
//! that say what the guest may change, what is read from the host's device, and what goes to it.

mod saved;

use pci::capability::{msi, msix, pcie, pri};
use pci::header::{BAR_END, BAR0, COMMAND, INTERRUPT_PIN};
use pci::{BarKind, BarWindow, CONFIG_SPACE_SIZE, Command};

use super::bars::Bar;
use super::image::{Image, Layout, PM_CONTROL, PM_STATE, chunk, put};

/// What a write did, besides changing bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// The command register changed.
    pub(super) command: bool,
    /// The BARs, Memory Space or the power state changed: other windows are decoded.
    pub(super) decode: bool,
    /// The power state is this one now.
    pub(super) power: Option<u16>,
    /// Device control of PCI Express was written.
    pub(super) device_control: bool,
    /// A function-level reset is wanted.
    pub(super) reset: bool,
    /// MSI's capability was written.
    pub(super) msi: bool,
    /// MSI-X's message control was written.
    pub(super) msix: bool,
    /// Writes that go to the host's device.
    pub(super) forward: Vec<(u16, Vec<u8>)>,
}

/// The configuration space as the guest sees it.
pub(super) struct VirtualConfig {
    pub(super) bytes: Box<Image>,
    /// What [`reset`](Self::reset) goes back to.
    pub(super) initial: Box<Image>,
    /// Bits that the guest may change.
    pub(super) writable: Box<Image>,
    /// Bits that are read from the host's device.
    pub(super) live: Box<Image>,
    /// Bytes whose writes go to the host's device: any bit that is set makes it so.
    pub(super) forward: Box<Image>,
    pub(super) bars: Vec<Bar>,
    pub(super) layout: Layout,
}

impl VirtualConfig {
    /// The byte range of an access, or nothing when it leaves configuration space.
    fn span(offset: u16, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::from(offset);
        let end = start.checked_add(length)?;
        (end <= CONFIG_SPACE_SIZE).then_some(start..end)
    }

    /// Reads; `host` reads the host's configuration space, and leaves ones where it fails.
    pub(super) fn read(&self, offset: u16, data: &mut [u8], host: impl Fn(u16, &mut [u8])) {
        data.fill(0xff);
        let Some(span) = Self::span(offset, data.len()) else {
            return;
        };
        let live = self.live.get(span.clone()).unwrap_or_default();
        let own = self.bytes.get(span).unwrap_or_default();
        if live.iter().any(|mask| *mask != 0) {
            host(offset, data);
        }
        for ((byte, live), own) in data.iter_mut().zip(live).zip(own) {
            *byte = *byte & live | own & !live;
        }
    }

    /// Writes what the guest may change, and tells what is to be done about it.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let mut effects = Effects::default();
        let Some(span) = Self::span(offset, data.len()) else {
            return effects;
        };
        let (command, power) = (self.command(), self.power_state());
        let start = span.start;
        for (at, &value) in span.zip(data) {
            let (Some(byte), Some(writable), Some(forward)) = (
                self.bytes.get_mut(at),
                self.writable.get(at),
                self.forward.get(at),
            ) else {
                break;
            };
            let old = *byte;
            *byte = old & !writable | value & writable;
            effects.decode |=
                *byte != old && (usize::from(BAR0)..usize::from(BAR_END)).contains(&at);
            if *forward != 0 {
                push(&mut effects.forward, at, value);
            }
        }
        let touches = |at: u16, length: u16| {
            let at = usize::from(at);
            start < at + usize::from(length) && at < start + data.len()
        };
        let now = self.command();
        effects.command = now != command;
        effects.decode |= (now ^ command) & Command::MEMORY != 0;
        if self.power_state() != power {
            effects.power = self.settle_power(power);
            effects.decode |= effects.power.is_some();
        }
        if let Some(offset) = self.layout.pri {
            self.settle_page_requests(offset);
        }
        if let Some(offset) = self.layout.pcie {
            let control = offset + pcie::DEVICE_CONTROL;
            effects.device_control = touches(control, 2);
            let high = usize::from(control + 1).checked_sub(start);
            let high = high.and_then(|at| data.get(at)).copied().unwrap_or(0);
            effects.reset = u16::from(high) << 8 & pcie::INITIATE_FUNCTION_LEVEL_RESET != 0;
        }
        effects.msi = self
            .layout
            .msi
            .is_some_and(|msi| touches(msi.offset + msi::CONTROL, msi.size() - msi::CONTROL));
        effects.msix = self
            .layout
            .msix
            .is_some_and(|msix| touches(msix.offset + msix::CONTROL, 2));
        effects
    }

    /// After a write to the power state: a state that the device does not have changes nothing.
    /// Tells the new one.
    fn settle_power(&mut self, before: u16) -> Option<u16> {
        let power = self.layout.power?;
        let capabilities = self.u16(power + 2);
        let now = self.power_state();
        let known = match now {
            1 => capabilities & 1 << 9 != 0,
            2 => capabilities & 1 << 10 != 0,
            _ => true,
        };
        if known {
            return Some(now);
        }
        let register = self.u16(power + PM_CONTROL) & !PM_STATE | before;
        self.set_u16(power + PM_CONTROL, register);
        None
    }

    /// After a write to PRI's control register. A reset is done at once, and reads as 0.
    fn settle_page_requests(&mut self, offset: u16) {
        let control = self.u16(offset + pri::CONTROL) & !pri::RESET;
        let status = self.u16(offset + pri::STATUS) & !pri::STOPPED;
        let stopped = match control & pri::ENABLE {
            0 => pri::STOPPED,
            _ => 0,
        };
        self.set_u16(offset + pri::CONTROL, control);
        self.set_u16(offset + pri::STATUS, status | stopped);
    }

    /// The power state: 0 to 3.
    pub(super) fn power_state(&self) -> u16 {
        self.layout
            .power
            .map_or(0, |power| self.u16(power + PM_CONTROL) & PM_STATE)
    }

    pub(super) fn command(&self) -> u16 {
        self.u16(COMMAND)
    }

    /// Back to what it was at first.
    pub(super) fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial[..]);
    }

    /// Shows an interrupt pin (1 is INTA), from now on and after each reset.
    pub(super) fn set_interrupt_pin(&mut self, pin: u8) {
        for image in [&mut self.bytes, &mut self.initial] {
            if let Some(byte) = image.get_mut(usize::from(INTERRUPT_PIN)) {
                *byte = pin;
            }
        }
    }

    /// The windows that the BARs decode: none without Memory Space, and none in a power state other
    /// than D0.
    pub(super) fn windows(&self) -> Vec<BarWindow> {
        if self.command() & Command::MEMORY == 0 || self.power_state() != 0 {
            return Vec::new();
        }
        let windows = self.bars.iter().filter_map(|bar| {
            let base = self.bar_address(bar);
            let window = BarWindow {
                bar: bar.index,
                base,
                size: bar.size,
            };
            (base != 0 && window.last().is_some()).then_some(window)
        });
        windows.collect()
    }

    fn bar_address(&self, bar: &Bar) -> u64 {
        let register = bar.register();
        let mut address = u64::from(self.u32(register));
        if let BarKind::Memory64 { .. } = bar.kind {
            address |= u64::from(self.u32(register + 4)) << 32;
        }
        address & !(bar.size - 1)
    }

    /// Sets the address of BAR `index`, as firmware does.
    pub(super) fn assign_bar(&mut self, index: usize, address: u64) {
        let Some(bar) = self.bars.iter().find(|bar| bar.index == index) else {
            return;
        };
        let (register, kind) = (bar.register(), bar.kind);
        let bytes = address.to_le_bytes();
        let length = match kind {
            BarKind::Memory32 => 4,
            BarKind::Memory64 { .. } => 8,
        };
        let _ = self.write(register, bytes.get(..length).unwrap_or_default());
    }

    pub(super) fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(chunk(&self.bytes[..], offset))
    }

    pub(super) fn u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(chunk(&self.bytes[..], offset))
    }

    pub(super) fn set_u16(&mut self, offset: u16, value: u16) {
        put(&mut self.bytes[..], offset, &value.to_le_bytes());
    }

    pub(super) fn set_u32(&mut self, offset: u16, value: u32) {
        put(&mut self.bytes[..], offset, &value.to_le_bytes());
    }
}

/// Adds a byte to the last run if it continues that, else begins a new one.
fn push(runs: &mut Vec<(u16, Vec<u8>)>, at: usize, value: u8) {
    if let Some((offset, run)) = runs.last_mut()
        && usize::from(*offset) + run.len() == at
    {
        run.push(value);
    } else if let Ok(offset) = u16::try_from(at) {
        runs.push((offset, vec![value]));
    }
}

#[cfg(test)]
mod config_test;
