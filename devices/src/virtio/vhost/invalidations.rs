//! Invalidations of the guest, for all devices that the kernel serves.

use std::ops::RangeInclusive;
use std::sync::Arc;

use intel_vtd::{Invalidation, Patience, TranslationObserver, Unfinished};
use parking_lot::Mutex;

use super::shared::Shared;

/// [Steps](Patience::STEP) that taking back a range is taken for: 20 µs. The kernel waits for a turn
/// of the device's queues.
const STEPS: u64 = 400;
/// Ranges that are taken back one by one; if there are more, it is everything.
const RANGES: usize = 16;

/// Has the kernel's IOTLBs follow the unit. The unit is to have it as an observer of translations.
#[derive(Default)]
pub struct Invalidations {
    /// The devices that run. A leaf lock: copied before anyone is called.
    devices: Mutex<Vec<Arc<Shared>>>,
}

impl Invalidations {
    pub(super) fn add(&self, device: &Arc<Shared>) {
        self.devices.lock().push(Arc::clone(device));
    }

    /// Tells whether it was there.
    pub(super) fn remove(&self, device: &Arc<Shared>) -> bool {
        let mut devices = self.devices.lock();
        let before = devices.len();
        devices.retain(|other| !Arc::ptr_eq(other, device));
        devices.len() != before
    }

    fn devices(&self) -> Vec<Arc<Shared>> {
        self.devices.lock().clone()
    }
}

impl TranslationObserver for Invalidations {
    fn translation_changed(&self, patience: &Patience) -> Result<(), Unfinished> {
        self.invalidated(&[Invalidation::All], patience)
    }

    fn invalidated(
        &self,
        invalidations: &[Invalidation],
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        let mut work = Vec::new();
        for device in self.devices() {
            let ranges = device.concerned(invalidations);
            work.extend(
                together(ranges)
                    .into_iter()
                    .map(|range| (Arc::clone(&device), range)),
            );
        }
        let steps = STEPS.saturating_mul(work.len() as u64);
        if steps > patience.steps() {
            return Err(Unfinished);
        }
        for (device, range) in work {
            if patience.is_over() {
                return Err(Unfinished);
            }
            device.take_back(range);
        }
        Ok(())
    }
}

/// Joins neighbours, and all of them if they are many.
fn together(ranges: impl Iterator<Item = RangeInclusive<u64>>) -> Vec<RangeInclusive<u64>> {
    let mut joined: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        let last = joined.last_mut().filter(|last| {
            *range.start() <= last.end().saturating_add(1) && range.end() >= last.start()
        });
        if let Some(last) = last {
            let start = *last.start().min(range.start());
            *last = start..=*last.end().max(range.end());
        } else if joined.len() == RANGES {
            return vec![0..=u64::MAX];
        } else {
            joined.push(range);
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_taken_back_together_and_many_as_everything() {
        let ranges = [
            0x1000..=0x1fff,
            0x2000..=0x2fff,
            0x9000..=0x9fff,
            0x8000..=0x8fff,
        ];
        let joined = together(ranges.into_iter());
        assert_eq!(joined, [0x1000..=0x2fff, 0x9000..=0x9fff, 0x8000..=0x8fff]);
        let many = (0..17).map(|page| page << 20..=page << 20 | 0xfff);
        assert_eq!(together(many), [0..=u64::MAX]);
        let few = (0..16).map(|page| page << 20..=page << 20 | 0xfff);
        assert_eq!(together(few).len(), 16);
    }
}
