//! Kinds of HWPT that are made over the IOAS of guest memory and over shadows.

use std::io;

use crate::dirty::tracking::start_hwpt;
use crate::host_iommu::{HwptId, HwptOptions};
use crate::ioas::{Client, Ioas};
use crate::resources::Resources;
use crate::shadow::ShadowKey;

/// Makes a page table over all guest memory: a nesting parent where the host can, as it is what
/// pages are shared from, and what first-stage tables are put upon.
pub(crate) fn add_memory_hwpt(
    ioas: &mut Ioas,
    client: &Client<'_>,
    resources: &mut Resources,
) -> io::Result<HwptId> {
    add_hwpt(ioas, client, &MEMORY_KINDS, resources)
}

/// As [`add_memory_hwpt`], which does not tell yet what is written.
pub(in crate::assigned) fn make_memory_hwpt(
    ioas: &mut Ioas,
    client: &Client<'_>,
) -> io::Result<HwptId> {
    make_hwpt(ioas, client, &MEMORY_KINDS)
}

/// Makes a page table for a shadow: one with dirty tracking where the host can, as that makes it
/// one of the second stage.
pub(super) fn add_shadow_hwpt(
    ioas: &mut Ioas,
    client: &Client<'_>,
    key: ShadowKey,
    resources: &mut Resources,
) -> io::Result<HwptId> {
    if key.parent {
        return add_parent(ioas, client, resources);
    }
    add_hwpt(ioas, client, &[tracking(PLAIN), PLAIN], resources)
}

/// Makes a page table that nested ones can be put upon.
pub(super) fn add_parent(
    ioas: &mut Ioas,
    client: &Client<'_>,
    resources: &mut Resources,
) -> io::Result<HwptId> {
    add_hwpt(ioas, client, &[tracking(PARENT), PARENT], resources)
}

const PLAIN: HwptOptions = HwptOptions {
    nesting_parent: false,
    dirty_tracking: false,
    pasid: false,
};

const MEMORY_KINDS: [HwptOptions; 4] = [tracking(PARENT), PARENT, tracking(PLAIN), PLAIN];

const PARENT: HwptOptions = HwptOptions {
    nesting_parent: true,
    dirty_tracking: false,
    pasid: false,
};

const fn tracking(kind: HwptOptions) -> HwptOptions {
    HwptOptions {
        dirty_tracking: true,
        ..kind
    }
}

fn add_hwpt(
    ioas: &mut Ioas,
    client: &Client<'_>,
    kinds: &[HwptOptions],
    resources: &mut Resources,
) -> io::Result<HwptId> {
    let added = make_hwpt(ioas, client, kinds)?;
    if resources.dirty.is_some()
        && let Some(hwpt) = ioas.hwpts.last()
        && let Err(error) = start_hwpt(ioas, hwpt)
    {
        // All that it can write counts as written then.
        resources.report(|| format!("{}: {error}", client.name));
    }
    Ok(added)
}

fn make_hwpt(ioas: &mut Ioas, client: &Client<'_>, kinds: &[HwptOptions]) -> io::Result<HwptId> {
    let can_track = client.info.dirty_tracking;
    let kinds: Vec<_> = kinds
        .iter()
        .filter(|kind| can_track || !kind.dirty_tracking)
        .filter_map(|kind| client.needs.adapt(*kind))
        .collect();
    ioas.add_hwpt(client, &kinds)
}
