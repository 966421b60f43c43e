//! The report on assigned devices that the control socket prints (`assigned`).

use std::fmt;

use super::Assigner;
use super::services::Description;

/// Every device and where it is, what was done for all of them, and what was asked of each iommufd.
impl fmt::Display for Assigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reports = self.assigned.describe();
        if reports.is_empty() {
            writeln!(f, "no assigned devices")?;
        }
        for report in reports {
            writeln!(f, "{report}")?;
            if let Some(device) = self.devices.lock().get(&report.source.0) {
                writeln!(f, "  host: {}", device.capabilities)?;
                writeln!(f, "  shown: {}", Description(device.shown))?;
            }
        }
        let (areas, bytes) = self.assigned.mapped();
        writeln!(f, "shadows: {} KiB in {areas} areas", bytes / 1024)?;
        writeln!(f, "nested page tables: {}", self.assigned.nested())?;
        for (name, value) in self.assigned.statistics().entries() {
            writeln!(f, "{name}: {value}")?;
        }
        for (name, iommufd, _) in &self.host.iommufds {
            let counts = iommufd.ioctl_counts();
            writeln!(f, "iommufd {name}:")?;
            for (kind, count) in counts.entries().filter(|(_, count)| *count != 0) {
                writeln!(f, "  {kind}: {count}")?;
            }
            writeln!(f, "  failed: {}", counts.failed)?;
        }
        Ok(())
    }
}
