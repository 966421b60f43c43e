//! An I/O address space of the fake.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use super::errno::{EEXIST, EINVAL, ENOENT};
use crate::host_iommu::Rights;

/// What interrupts are written to.
const INTERRUPTS: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// An area; it is removed as a whole.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub(super) length: u64,
    /// Where its first byte is in the file.
    pub(super) offset: u64,
    pub(super) rights: Rights,
}

pub(super) struct FakeIoas {
    areas: BTreeMap<u64, Area>,
    /// The last address that page tables have.
    last: u64,
    /// No device has been attached yet.
    interrupts_free: bool,
}

impl Default for FakeIoas {
    fn default() -> Self {
        Self {
            areas: BTreeMap::new(),
            last: u64::MAX,
            interrupts_free: true,
        }
    }
}

impl FakeIoas {
    /// What can be mapped, besides what devices have `reserved`.
    pub(super) fn ranges(&self, reserved: &[RangeInclusive<u64>]) -> Vec<RangeInclusive<u64>> {
        let interrupts = (!self.interrupts_free).then_some(INTERRUPTS);
        let mut holes: Vec<_> = reserved.iter().cloned().chain(interrupts).collect();
        holes.sort_by_key(|hole| *hole.start());
        let mut ranges = Vec::new();
        let mut at = 0;
        for hole in holes {
            if at < *hole.start() {
                ranges.push(at..=hole.start() - 1);
            }
            at = at.max(hole.end() + 1);
        }
        ranges.push(at..=self.last);
        ranges
    }

    /// Takes the interrupt range out; `false` if something is mapped there.
    pub(super) fn reserve_interrupts(&mut self) -> bool {
        if self.overlaps(*INTERRUPTS.start(), 0x10_0000) {
            return false;
        }
        self.interrupts_free = false;
        true
    }

    /// Leaves `bits` of address; `false` if something is mapped beyond.
    pub(super) fn narrow(&mut self, bits: u32) -> bool {
        let last = u64::MAX >> (64 - bits);
        let used = self.areas.last_key_value();
        if used.is_some_and(|(address, area)| address + (area.length - 1) > last) {
            return false;
        }
        self.last = self.last.min(last);
        true
    }

    pub(super) fn has_read_only(&self) -> bool {
        self.areas.values().any(|area| !area.rights.write)
    }

    pub(super) fn overlaps(&self, address: u64, length: u64) -> bool {
        self.areas
            .range(..address + length)
            .next_back()
            .is_some_and(|(start, area)| start + area.length > address)
    }

    pub(super) fn map(
        &mut self,
        address: u64,
        areas: &[Area],
        reserved: &[RangeInclusive<u64>],
    ) -> Result<(), i32> {
        let length: u64 = areas.iter().map(|area| area.length).sum();
        let end = address.checked_add(length).ok_or(EINVAL)?;
        let allowed = self
            .ranges(reserved)
            .iter()
            .any(|range| *range.start() <= address && end - 1 <= *range.end());
        if length == 0 || !allowed || (address | length) & 0xfff != 0 {
            return Err(EINVAL);
        }
        if self.overlaps(address, length) {
            return Err(EEXIST);
        }
        let mut at = address;
        for area in areas {
            self.areas.insert(at, *area);
            at += area.length;
        }
        Ok(())
    }

    /// What is mapped from `address` on, in as many pieces as it has areas.
    pub(super) fn pieces(
        &self,
        address: u64,
        length: u64,
        rights: Rights,
    ) -> Result<Vec<Area>, i32> {
        let mut pieces = Vec::new();
        let (mut at, end) = (address, address + length);
        while at < end {
            let (start, area) = self.areas.range(..=at).next_back().ok_or(ENOENT)?;
            let area_end = start + area.length;
            if area_end <= at {
                return Err(ENOENT);
            }
            let length = area_end.min(end) - at;
            pieces.push(Area {
                length,
                offset: area.offset + (at - start),
                rights,
            });
            at += length;
        }
        Ok(pieces)
    }

    pub(super) fn is_mapped(&self, address: u64, length: u64) -> bool {
        self.pieces(address, length, Rights::ALL).is_ok()
    }

    /// Removes whole areas, up to the first that is only partly in the range. Returns what went,
    /// and how the call ends.
    pub(super) fn unmap(
        &mut self,
        address: u64,
        length: u64,
    ) -> (Vec<Range<u64>>, Result<u64, i32>) {
        let everything = address == 0 && length == u64::MAX;
        let end = address.saturating_add(length);
        let mut gone = Vec::new();
        let mut bytes = 0;
        let found: Vec<_> = self
            .areas
            .iter()
            .map(|(start, area)| (*start, start + area.length))
            .filter(|(start, area_end)| *start < end && *area_end > address)
            .collect();
        for (start, area_end) in found {
            if start < address || area_end > end {
                return (gone, Err(ENOENT));
            }
            self.areas.remove(&start);
            bytes += area_end - start;
            gone.push(start..area_end);
        }
        let outcome = if bytes == 0 && !everything {
            Err(ENOENT)
        } else {
            Ok(bytes)
        };
        (gone, outcome)
    }

    /// Where `address` is mapped to.
    pub(super) fn find(&self, address: u64) -> Option<(u64, Rights)> {
        let (start, area) = self.areas.range(..=address).next_back()?;
        let within = address - start;
        (within < area.length).then(|| (area.offset + within, area.rights))
    }
}
