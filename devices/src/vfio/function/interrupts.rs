//! Which way the device interrupts, and what its vectors send: what the guest wrote, made true in the host.

use pci::{MsiMessage, MsixTable};

use super::{Control, Mode, VfioPci};
use crate::vfio::config::VirtualConfig;
use crate::vfio::image::{
    COMMAND_MEMORY, MSI_ENABLE, MSIX_ENABLE, MSIX_FUNCTION_MASK, MsiLayout, MsixLayout,
};
use crate::vfio::messages::{MessageError, Messages};

impl VfioPci {
    /// Makes the way of interrupting what configuration space says. `messages`: what is sent may have changed, too.
    pub(super) fn follow_interrupts(&self, control: &mut Control, messages: bool) {
        let config = &control.config;
        let msix = self.msix.as_ref();
        let msix_control = msix.map_or(0, |(layout, _)| config.u16(layout.offset + 2));
        let msi = self
            .msi
            .filter(|msi| config.u16(msi.offset + 2) & MSI_ENABLE != 0);
        if let Some((_, table)) = msix {
            table.set_control(
                msix_control & MSIX_ENABLE != 0,
                msix_control & MSIX_FUNCTION_MASK != 0,
            );
        }
        if let (Some((layout, _)), true) = (msix, msix_control & MSIX_ENABLE != 0) {
            if !matches!(control.mode, Mode::Msix(_)) {
                self.turn_off(control);
                let vectors = Messages::msix(self.bdf, &self.host, &self.routes, layout.vectors);
                control.mode = Mode::Msix(self.enabled("MSI-X", vectors));
            } else if !messages {
                return;
            }
            for vector in 0..layout.vectors {
                self.follow_vector(control, vector);
            }
        } else if let Some(msi) = msi {
            let wanted = msi_messages(config, msi);
            let count = u16::try_from(wanted.len()).unwrap_or(0);
            match &mut control.mode {
                Mode::Msi(Some(vectors), known) if *known == count => {
                    for (vector, message) in (0..).zip(wanted) {
                        if let Err(error) = vectors.set(vector, message) {
                            self.complain_vector(vector, &error);
                        }
                    }
                }
                // It failed, and would again.
                Mode::Msi(None, known) if *known == count => {}
                _ => {
                    self.turn_off(control);
                    let vectors = Messages::msi(
                        self.bdf,
                        &self.host,
                        &self.routes,
                        &wanted,
                        &mut |vector, error| self.complain_vector(vector, error),
                    );
                    control.mode = Mode::Msi(self.enabled("MSI", vectors), count);
                }
            }
        } else if config.command() & COMMAND_MEMORY != 0 && self.intx.is_connected() {
            // Drivers that use the pin switch the device's memory on first; a device without driver needs no interrupt.
            if !matches!(control.mode, Mode::Intx) {
                self.turn_off(control);
                control.mode = Mode::Intx;
                if let Err(error) = self.intx.enable() {
                    self.complain(format_args!(
                        "cannot enable INTx, the device will not interrupt: {error}"
                    ));
                }
            }
        } else {
            self.turn_off(control);
        }
    }

    fn enabled(&self, what: &str, vectors: Result<Messages, MessageError>) -> Option<Messages> {
        vectors
            .inspect_err(|error| {
                self.complain(format_args!(
                    "cannot enable {what}, the device will not interrupt: {error}"
                ));
            })
            .ok()
    }

    fn complain_vector(&self, vector: u16, error: &MessageError) {
        self.complain(format_args!(
            "interrupt vector {vector} stays silent: {error}"
        ));
    }

    /// The host takes one kind of interrupt at a time.
    pub(super) fn turn_off(&self, control: &mut Control) {
        if let Mode::Intx = std::mem::replace(&mut control.mode, Mode::Off) {
            self.intx.disable();
        }
    }

    /// Makes what a vector sends what its table entry says.
    fn follow_vector(&self, control: &mut Control, vector: u16) {
        let (Some((layout, table)), Mode::Msix(Some(vectors))) = (&self.msix, &mut control.mode)
        else {
            return;
        };
        let Some(entry) = table.entry(vector) else {
            return;
        };
        let function = control.config.u16(layout.offset + 2) & MSIX_FUNCTION_MASK != 0;
        let message = (!entry.masked && !function).then_some(entry.message);
        if let Err(error) = vectors.set(vector, message) {
            self.complain_vector(vector, &error);
        }
    }

    pub(super) fn write_table(
        &self,
        layout: &MsixLayout,
        table: &MsixTable,
        offset: u64,
        data: &[u8],
    ) {
        let mut control = self.control.lock();
        let at = offset - layout.table;
        table.write_table(at, data);
        let length = u64::try_from(data.len()).unwrap_or(0);
        let last = at.saturating_add(length.saturating_sub(1)) / 16;
        for vector in at / 16..=last {
            if let Ok(vector) = u16::try_from(vector) {
                self.follow_vector(&mut control, vector);
            }
        }
    }

    /// Pending bits, eight vectors in a byte.
    pub(super) fn read_pba(&self, layout: &MsixLayout, offset: u64, data: &mut [u8]) {
        let control = self.control.lock();
        data.fill(0);
        let Mode::Msix(Some(vectors)) = &control.mode else {
            return;
        };
        for (byte, at) in data.iter_mut().zip(offset - layout.pba..) {
            for bit in 0..8 {
                let vector = u16::try_from(at.saturating_mul(8) + bit);
                if vector.is_ok_and(|vector| vectors.is_pending(vector)) {
                    *byte |= 1 << bit;
                }
            }
        }
    }
}

/// What the vectors that software enabled send; `None` for those that it masked.
fn msi_messages(config: &VirtualConfig, msi: MsiLayout) -> Vec<Option<MsiMessage>> {
    let control = config.u16(msi.offset + 2);
    let (offered, enabled) = (control >> 1 & 7, control >> 4 & 7);
    let count = 1_u32 << u32::from(enabled.min(offered));
    let mut address = u64::from(config.u32(msi.offset + 4));
    if msi.wide {
        address |= u64::from(config.u32(msi.offset + 8)) << 32;
    }
    let data = u32::from(config.u16(msi.data()));
    let mask = if msi.maskable {
        config.u32(msi.mask())
    } else {
        0
    };
    let low = count - 1;
    (0..count)
        .map(|vector| {
            let data = data & !low | vector;
            (mask >> vector & 1 == 0).then_some(MsiMessage { address, data })
        })
        .collect()
}
