//! Which kinds of page table are made.

use std::io;

use crate::host_iommu::HwptOptions;
use crate::ioas::{Client, Ioas};
use crate::resources::Common;
use crate::shadow::ShadowKey;

/// Makes a page table over all guest memory: a nesting parent where the host can, as it is what pages are shared from, and what
/// first-stage tables are put upon.
pub(crate) fn add_memory_table(
    ioas: &mut Ioas,
    client: &Client<'_>,
    common: &mut Common,
) -> io::Result<()> {
    let plain = HwptOptions::default();
    let kinds = [tracking(PARENT), PARENT, tracking(plain), plain];
    add_table(ioas, client, &kinds, common).map(|_| ())
}

/// Makes a page table for a shadow: one with dirty tracking where the host can, as that makes it one of the second stage.
pub(super) fn add_shadow_table(
    ioas: &mut Ioas,
    client: &Client<'_>,
    key: ShadowKey,
    common: &mut Common,
) -> io::Result<bool> {
    if key.parent {
        return add_parent(ioas, client, common);
    }
    let plain = HwptOptions::default();
    add_table(ioas, client, &[tracking(plain), plain], common)
}

/// Makes a page table that nested ones can be put upon.
pub(super) fn add_parent(
    ioas: &mut Ioas,
    client: &Client<'_>,
    common: &mut Common,
) -> io::Result<bool> {
    add_table(ioas, client, &[tracking(PARENT), PARENT], common)
}

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

fn add_table(
    ioas: &mut Ioas,
    client: &Client<'_>,
    kinds: &[HwptOptions],
    common: &mut Common,
) -> io::Result<bool> {
    let can_track = client.info.dirty_tracking;
    let kinds: Vec<_> = kinds
        .iter()
        .filter(|kind| can_track || !kind.dirty_tracking)
        .filter_map(|kind| client.needs.adapt(*kind))
        .collect();
    let less_exact = ioas.add_table(client, &kinds)?;
    if common.dirty.is_some()
        && let Some(table) = ioas.tables.last()
        && let Err(error) = crate::dirty::tracking::switch_table(ioas, table, true)
    {
        // All that it can write counts as written then.
        common.report(|| format!("{}: {error}", client.name));
    }
    Ok(less_exact)
}
