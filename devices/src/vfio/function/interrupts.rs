//! Interrupts of the function: what the guest wrote about them, made true in the host.

use std::ops::Range;

use pci::capability::msix;
use pci::{MsiMessage, MsixTable};

use super::wanted::{Wanted, wanted};
use super::{Control, Mode, VfioPci};
use crate::vfio::image::MsixLayout;
use crate::vfio::messages::{MessageError, Messages};

impl VfioPci {
    /// Makes the way of interrupting what configuration space says. `messages`: what is sent may
    /// have changed, too.
    pub(super) fn follow_interrupts(&self, control: &mut Control, messages: bool) {
        if let Some((layout, table)) = &self.msix {
            let bits = control.config.u16(layout.offset + msix::CONTROL);
            table.set_control(bits & msix::ENABLE != 0, bits & msix::FUNCTION_MASK != 0);
        }
        match wanted(&control.config, self.intx.is_connected()) {
            Wanted::Off => self.turn_off(control),
            Wanted::Intx => self.follow_intx(control),
            Wanted::Msi(wanted) => self.follow_msi(control, &wanted),
            Wanted::Msix => self.follow_msix(control, messages),
        }
    }

    fn follow_intx(&self, control: &mut Control) {
        if matches!(control.mode, Mode::Intx) {
            return;
        }
        self.turn_off(control);
        control.mode = Mode::Intx;
        if let Err(error) = self.intx.enable() {
            self.complain(format_args!(
                "cannot enable INTx, the device will not interrupt: {error}"
            ));
        }
    }

    fn follow_msi(&self, control: &mut Control, wanted: &[Option<MsiMessage>]) {
        let count = u16::try_from(wanted.len()).unwrap_or(0);
        if let Mode::Msi(vectors, known) = &mut control.mode
            && *known == count
        {
            // Without vectors, it failed, and would again.
            let Some(vectors) = vectors else { return };
            let wanted = (0..).zip(wanted.iter().copied());
            vectors.set(wanted, &mut |vector, error| {
                self.complain_vector(vector, error);
            });
            return;
        }
        self.turn_off(control);
        let vectors = Messages::msi(
            self.bdf,
            &self.host,
            &self.routes,
            wanted,
            &mut |vector, error| self.complain_vector(vector, error),
        );
        control.mode = Mode::Msi(self.enabled("MSI", vectors), count);
    }

    fn follow_msix(&self, control: &mut Control, messages: bool) {
        let Some((layout, _)) = &self.msix else {
            return;
        };
        if !matches!(control.mode, Mode::Msix(_)) {
            self.turn_off(control);
            let vectors = Messages::msix(self.bdf, &self.host, &self.routes, layout.vectors);
            control.mode = Mode::Msix(self.enabled("MSI-X", vectors));
        } else if !messages {
            return;
        }
        self.follow_vectors(control, 0..layout.vectors);
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

    /// Makes what vectors send what their table entries say.
    fn follow_vectors(&self, control: &mut Control, range: Range<u16>) {
        let (Some((layout, table)), Mode::Msix(Some(vectors))) = (&self.msix, &mut control.mode)
        else {
            return;
        };
        let function = control.config.u16(layout.offset + msix::CONTROL) & msix::FUNCTION_MASK != 0;
        let wanted = range.filter_map(|vector| {
            let entry = table.entry(vector)?;
            let message = (!entry.masked && !function).then_some(entry.message);
            Some((vector, message))
        });
        vectors.set(wanted, &mut |vector, error| {
            self.complain_vector(vector, error);
        });
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
        let end = at.saturating_add(length).div_ceil(16);
        let vector = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        self.follow_vectors(&mut control, vector(at / 16)..vector(end));
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
