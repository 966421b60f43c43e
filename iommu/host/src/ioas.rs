//! An I/O address space of the host, with the page tables that translate by it.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::attach::EINVAL;
use crate::host_iommu::{
    HardwareInfo, HostDeviceId, HostIommu, HwptId, HwptOptions, IoasId, Rights, SharedMapping,
};
use crate::ram::INTERRUPTS;
use crate::resources::{Remains, Resources};
use crate::run::PAGE;

/// An I/O address space and its page tables.
pub(crate) struct Ioas {
    pub(crate) host: Arc<dyn HostIommu>,
    pub(crate) id: IoasId,
    pub(crate) hwpts: Vec<Hwpt>,
    /// Nothing is mapped that can only be read: some nesting parent over it would not take that.
    pub(crate) no_read_only: bool,
    /// What can be mapped, in ascending order, in whole pages.
    aperture: Vec<Range<u64>>,
}

/// A page table over a [`Ioas`].
pub(crate) struct Hwpt {
    pub(crate) id: HwptId,
    pub(crate) options: HwptOptions,
    /// The device that it was made for.
    pub(crate) made_for: Arc<str>,
    /// Others that are made for it could tell which pages were written.
    pub(crate) can_track: bool,
    /// It tells which pages were written since it was asked for last. The kernel does not say whether it
    /// does: of a table that does not, it says that nothing was written.
    pub(crate) is_tracked: Cell<bool>,
    /// What is writable is not readable just for that.
    exact_rights: bool,
}

/// Who a page table is made for.
pub(crate) struct Client<'a> {
    pub(crate) name: &'a Arc<str>,
    pub(crate) device: HostDeviceId,
    pub(crate) info: &'a HardwareInfo,
    pub(crate) needs: Needs,
}

/// Which page tables are for the requests of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The device has PASIDs. While any is attached, all that the device is behind must be page
    /// tables for PASIDs.
    pub(crate) pasids: bool,
    /// They are for requests with a PASID, for which the host was found to take no page tables with
    /// dirty tracking, nor nested ones upon such, as Linux before 7.1.
    pub(crate) untracked: bool,
}

impl Needs {
    /// Whether a page table with these options is for them.
    pub(crate) const fn takes(self, options: HwptOptions) -> bool {
        let is_for_pasids = options.pasid || !self.pasids;
        is_for_pasids && !(options.dirty_tracking && self.untracked)
    }

    /// `kind` as it is for them, if there is such a one.
    pub(crate) fn adapt(self, kind: HwptOptions) -> Option<HwptOptions> {
        let kind = HwptOptions {
            pasid: self.pasids,
            ..kind
        };
        self.takes(kind).then_some(kind)
    }
}

impl Ioas {
    /// An empty one without page tables.
    pub(crate) fn allocate(host: &Arc<dyn HostIommu>) -> io::Result<Self> {
        let id = host.allocate_ioas()?;
        Ok(Self {
            host: Arc::clone(host),
            id,
            hwpts: Vec::new(),
            no_read_only: false,
            aperture: Vec::new(),
        })
    }

    /// Makes one more page table, of the first of `kinds` that the host can make.
    pub(crate) fn add_hwpt(
        &mut self,
        client: &Client<'_>,
        kinds: &[HwptOptions],
    ) -> io::Result<HwptId> {
        let mut outcome = Err(io::Error::from_raw_os_error(EINVAL));
        for &options in kinds {
            outcome = self
                .host
                .allocate_hwpt(client.device, self.id, options)
                .map(|id| (id, options));
            if outcome.is_ok() {
                break;
            }
        }
        let (id, options) = outcome?;
        let exact_rights = has_exact_rights(client.info, options);
        self.hwpts.push(Hwpt {
            id,
            options,
            made_for: Arc::clone(client.name),
            can_track: client.info.dirty_tracking,
            is_tracked: Cell::new(false),
            exact_rights,
        });
        self.update_aperture()?;
        Ok(id)
    }

    /// Asks the host what can be mapped: page tables and devices make it less.
    pub(crate) fn update_aperture(&mut self) -> io::Result<()> {
        let (ranges, _) = self.host.address_ranges(self.id)?;
        self.aperture.clear();
        for range in ranges {
            let start = range.start().next_multiple_of(PAGE);
            let end = range.end().saturating_add(1) / PAGE * PAGE;
            for part in [
                start..end.min(INTERRUPTS.start),
                start.max(INTERRUPTS.end)..end,
            ] {
                if !part.is_empty() {
                    self.aperture.push(part);
                }
            }
        }
        self.aperture.sort_unstable_by_key(|range| range.start);
        Ok(())
    }

    /// The parts of `range` that can be mapped, in ascending order.
    pub(crate) fn mappable(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self
            .aperture
            .partition_point(|part| part.end <= range.start);
        let end = range.end;
        self.aperture
            .iter()
            .skip(first)
            .take_while(move |part| part.start < end)
            .map(move |part| part.start.max(range.start)..part.end.min(range.end))
    }

    /// The parts of `range` that cannot be mapped, in ascending order, but for what an interrupt is:
    /// no IOMMU translates that (3.14), so nobody is to reach it.
    pub(crate) fn unmappable(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut at = range.start;
        let end = range.end..range.end;
        let parts = self.mappable(range.clone()).chain([end]);
        let holes = parts.map(move |part| std::mem::replace(&mut at, part.end)..part.start);
        holes
            .flat_map(|hole| {
                [
                    hole.start..hole.end.min(INTERRUPTS.start),
                    hole.start.max(INTERRUPTS.end)..hole.end,
                ]
            })
            .filter(|hole| !hole.is_empty())
    }

    /// Whether pages that can only be written are not made readable by any of the page tables.
    pub(crate) fn has_exact_rights(&self) -> bool {
        self.hwpts.iter().all(|hwpt| hwpt.exact_rights)
    }

    /// Maps what `source` has at `output`.
    pub(crate) fn share(
        &self,
        source: IoasId,
        output: u64,
        input: u64,
        length: u64,
        rights: Rights,
    ) -> io::Result<()> {
        self.host.share(&SharedMapping {
            source,
            source_address: output,
            target: self.id,
            target_address: input,
            length,
            rights,
        })
    }

    /// The page tables that are for these requests.
    pub(crate) fn suitable(&self, needs: Needs) -> Vec<HwptId> {
        let suitable = self.hwpts.iter().filter(|hwpt| needs.takes(hwpt.options));
        suitable.map(|hwpt| hwpt.id).collect()
    }

    /// The page tables that nested ones for these requests can be on top of.
    pub(crate) fn parents(&self, needs: Needs) -> Vec<HwptId> {
        let parents = self
            .hwpts
            .iter()
            .filter(|hwpt| hwpt.options.nesting_parent && needs.takes(hwpt.options));
        parents.map(|hwpt| hwpt.id).collect()
    }

    /// Gives one page table back to the host, behind which nobody is.
    pub(crate) fn remove_hwpt(&mut self, id: HwptId, resources: &mut Resources) {
        self.hwpts.retain(|hwpt| hwpt.id != id);
        if self.host.destroy(id.into()).is_err() {
            resources
                .remains
                .push(Remains::new(Arc::clone(&self.host), id.into()));
        }
    }

    /// Gives it back to the host. What is still in use is kept to be tried again, after everything
    /// was unmapped.
    pub(crate) fn destroy(self, resources: &mut Resources) {
        let (remains, trouble) = self.give_back();
        if let Some(trouble) = trouble {
            resources.report(|| trouble);
        }
        resources.remains.extend(remains);
    }

    /// As [`destroy`](Self::destroy); returns what is still in use, and what is to be said of it.
    pub(crate) fn give_back(self) -> (Vec<Remains>, Option<String>) {
        let objects = self.hwpts.iter().map(|hwpt| hwpt.id.into());
        let objects = objects.chain([self.id.into()]);
        let left: Vec<_> = objects
            .filter(|object| self.host.destroy(*object).is_err())
            .collect();
        let mut trouble = None;
        if left.contains(&self.id.into())
            && let Err(error) = self.host.unmap(self.id, 0, u64::MAX)
        {
            trouble = Some(format!(
                "the host neither destroys nor empties I/O address space {}: {error}",
                self.id.0
            ));
        }
        let remains = left
            .into_iter()
            .map(|object| Remains::new(Arc::clone(&self.host), object));
        (remains.collect(), trouble)
    }
}

/// Whether a page table keeps pages unreadable that can only be written. First-stage tables cannot:
/// a kernel with scalable mode uses them where nothing is asked for that only second-stage tables
/// have. Of other IOMMUs it is not known.
fn has_exact_rights(info: &HardwareInfo, options: HwptOptions) -> bool {
    let Some(intel) = &info.intel else {
        return false;
    };
    options.nesting_parent || options.dirty_tracking || !intel.caps.ecap.fsts()
}
