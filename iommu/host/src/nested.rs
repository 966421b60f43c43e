//! Nested page tables: first-stage tables of the guest, which the host's IOMMU walks on top of
//! guest memory, or on top of a shadow of the guest's second-stage tables
//! (`IOMMU_HWPT_DATA_VTD_S1`).
//!
//! One serves all devices of an iommufd that the same tables translate on top of the same. It never
//! changes: other tables, or other flags, are another one. What the guest maps costs nothing; what
//! it unmaps is passed on when the guest says so.

pub(crate) mod batch;
pub(crate) mod users;

use std::io;
use std::sync::Arc;

use crate::host_iommu::{
    HardwareInfo, HostDeviceId, HostIommu, HwptId, NestedInvalidation, NestedOptions, NestedTable,
};
use crate::resources::{Remains, Resources};
use batch::ALL;
use intel_vtd::{FirstStage, SecondStage};

/// What makes nested page tables the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NestedKey {
    /// The guest's second-stage tables of whose shadow it is on top; `None` for guest memory.
    pub(crate) below: Option<SecondStage>,
    pub(crate) first: FirstStage,
}

/// A nested page table.
pub(crate) struct Nested {
    pub(crate) id: HwptId,
    pub(crate) key: NestedKey,
    /// The page table that it is on top of.
    pub(crate) parent: HwptId,
    pub(crate) options: NestedOptions,
    iommu: Arc<dyn HostIommu>,
}

impl Nested {
    /// One on top of `parent`, made for `device`.
    pub(crate) fn allocate(
        iommu: &Arc<dyn HostIommu>,
        device: HostDeviceId,
        parent: HwptId,
        key: NestedKey,
        options: NestedOptions,
    ) -> io::Result<Self> {
        let FirstStage {
            table,
            levels,
            supervisor_requests,
            write_protect,
            extended_accessed,
            // The host walks as its own IOMMU does best.
            snooped_walk: _,
        } = key.first;
        let table = NestedTable {
            table,
            address_width: 12 + 9 * levels,
            supervisor_requests,
            write_protect,
            extended_accessed,
        };
        Ok(Self {
            id: iommu.allocate_nested(device, parent, &table, options)?,
            key,
            parent,
            options,
            iommu: Arc::clone(iommu),
        })
    }

    /// Has the host forget what `list` names. If it does not, it is to forget all.
    ///
    /// # Errors
    /// It does not do that either: devices behind the table may still reach what was there before.
    pub(crate) fn invalidate(
        &self,
        list: &[NestedInvalidation],
        resources: &mut Resources,
    ) -> io::Result<()> {
        let Err((done, error)) = self.call(list, resources) else {
            return Ok(());
        };
        resources.statistics.full_invalidations += 1;
        resources.details(|| {
            format!(
                "the host rejects invalidation {} of {} for {}: {error}; all translations are invalidated instead",
                done + 1,
                list.len(),
                self.key.first,
            )
        });
        self.call(&[ALL], resources).map_err(|(_, error)| error)
    }

    fn call(
        &self,
        list: &[NestedInvalidation],
        resources: &mut Resources,
    ) -> Result<(), (usize, io::Error)> {
        let (done, outcome) = self.iommu.invalidate(self.id, list);
        resources.statistics.invalidation_calls += 1;
        resources.statistics.invalidations += u64::try_from(done).unwrap_or(u64::MAX);
        outcome.map_err(|error| (done, error))
    }

    /// Gives it back to the host; what is still in use is kept to be tried again.
    pub(crate) fn destroy(&self, resources: &mut Resources) {
        if self.iommu.destroy(self.id.into()).is_err() {
            resources
                .remains
                .push(Remains::new(Arc::clone(&self.iommu), self.id.into()));
        }
    }
}

/// What the host lacks to walk such tables, which it says only after it has taken the device from
/// where it was.
pub(crate) fn missing(first: &FirstStage, info: &HardwareInfo) -> Option<&'static str> {
    let Some(intel) = &info.intel else {
        return Some("VT-d");
    };
    let needs = [
        (
            first.levels != 4,
            intel.caps.cap.fs5lp(),
            "five-level first stage (FS5LP)",
        ),
        (
            first.supervisor_requests,
            intel.caps.ecap.srs(),
            "supervisor requests (SRS)",
        ),
        (
            first.extended_accessed,
            intel.caps.ecap.eafs(),
            "extended accessed flag (EAFS)",
        ),
    ];
    needs
        .into_iter()
        .find(|(needed, there, _)| *needed && !there)
        .map(|(.., what)| what)
}

#[cfg(test)]
mod nested_test;
