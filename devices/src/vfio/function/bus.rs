//! The function on the bus: accesses of the guest, and what the root complex asks of it.

use pci::header::COMMAND;
use pci::{BarKind, BarWindow, Command, ConfigChange, PciFunction};
use state::{RestoreError, SaveError, Section};

use super::{Mode, VfioPci};
use crate::vfio::image::MsiLayout;

impl PciFunction for VfioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut control = self.control.lock();
        let end = offset.saturating_add(u16::try_from(data.len()).unwrap_or(u16::MAX));
        let pending_read = |msi: &MsiLayout| {
            let pending = msi.mask() + 4;
            msi.maskable && offset < pending + 4 && pending < end
        };
        if let Some(msi) = self.msi.filter(pending_read) {
            let pending = match &control.mode {
                Mode::Msi(Some(vectors), count) => (0..*count)
                    .filter(|vector| vectors.is_pending(*vector))
                    .fold(0, |bits, vector| bits | 1 << vector),
                _ => 0,
            };
            control.config.set_u32(msi.mask() + 4, pending);
        }
        control.config.read(offset, data, |offset, data| {
            self.read_host(offset, data);
        });
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        let mut control = self.control.lock();
        let before = control.config.command();
        let effects = control.config.write(offset, data);
        if effects.reset && self.has_reset {
            self.reset_all(&mut control);
            self.show_windows(&control);
            return ConfigChange {
                decode: true,
                function_reset: true,
                ..ConfigChange::default()
            };
        }
        self.apply(&mut control, &effects);
        self.show_windows(&control);
        let after = control.config.command();
        let changed = before ^ after;
        ConfigChange {
            decode: effects.decode,
            bus_master: (changed & Command::BUS_MASTER != 0)
                .then_some(after & Command::BUS_MASTER != 0),
            msi: effects.msi,
            msix: effects.msix,
            function_reset: false,
            intx: changed & Command::INTX_DISABLE != 0,
        }
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        if let Some((layout, table)) = &self.msix {
            if bar == layout.table_bar && within(offset, layout.table, layout.table_size()) {
                return table.read_table(offset - layout.table, data);
            }
            if bar == layout.pba_bar && within(offset, layout.pba, layout.pba_size()) {
                return self.read_pba(layout, offset, data);
            }
        }
        let region = u32::try_from(bar).unwrap_or(u32::MAX);
        if let Err(error) = self.host.read(region, offset, data) {
            data.fill(0xff);
            self.complain(format_args!(
                "cannot read BAR {bar} at {offset:#x}: {error}"
            ));
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        if let Some((layout, table)) = &self.msix {
            if bar == layout.table_bar && within(offset, layout.table, layout.table_size()) {
                return self.write_table(layout, table, offset, data);
            }
            if bar == layout.pba_bar && within(offset, layout.pba, layout.pba_size()) {
                return;
            }
        }
        let region = u32::try_from(bar).unwrap_or(u32::MAX);
        if let Err(error) = self.host.write(region, offset, data) {
            self.complain(format_args!(
                "cannot write BAR {bar} at {offset:#x}: {error}"
            ));
        }
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.windows.lock().clone()
    }

    fn bar_sizes(&self) -> Vec<(usize, BarKind, u64)> {
        let control = self.control.lock();
        let bars = control.config.bars.iter();
        bars.map(|bar| (bar.index, bar.kind, bar.size)).collect()
    }

    fn assign_bar(&self, bar: usize, address: u64) {
        let mut control = self.control.lock();
        control.config.assign_bar(bar, address);
        self.show_windows(&control);
    }

    fn windows_changed(&self, windows: &[BarWindow]) {
        self.direct.follow(windows, |error| {
            self.complain(format_args!(
                "the hypervisor does not map a BAR, accesses to it will be slow: {error}"
            ));
        });
    }

    /// No DMA and no messages from now on.
    fn quiesce(&self) {
        let control = self.control.lock();
        self.write_host(COMMAND, &control.command.to_le_bytes());
    }

    fn parkable(&self) -> Result<(), String> {
        self.can_stop()
    }

    fn park(&self) {
        self.quiet_down();
    }

    fn parked(&self) -> Result<(), String> {
        self.stand_still()
    }

    fn resume(&self) {
        self.go_on();
    }

    fn save(&self) -> Result<Section, SaveError> {
        self.save_function()
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.restore_function(section)
    }

    fn reset(&self) {
        let mut control = self.control.lock();
        self.reset_all(&mut control);
        self.show_windows(&control);
    }
}

fn within(offset: u64, start: u64, size: u64) -> bool {
    offset.checked_sub(start).is_some_and(|at| at < size)
}
