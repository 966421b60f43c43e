//! Which kinds of page table are made.

use std::io;

use crate::PageTableOptions;
use crate::ioas::{Client, Space};
use crate::resources::Common;
use crate::shadow::ShadowKey;

/// Makes a page table over all guest memory: a nesting parent where the host can, as it is what pages are shared from, and what
/// first-stage tables are put upon.
pub(crate) fn add_memory_table(
    space: &mut Space,
    client: &Client<'_>,
    common: &mut Common,
) -> io::Result<()> {
    let plain = PageTableOptions::default();
    let kinds = [tracking(PARENT), PARENT, tracking(plain), plain];
    add_table(space, client, &kinds, common).map(|_| ())
}

/// Makes a page table for a shadow: one with dirty tracking where the host can, as that makes it one of the second stage.
pub(super) fn add_shadow_table(
    space: &mut Space,
    client: &Client<'_>,
    key: ShadowKey,
    common: &mut Common,
) -> io::Result<bool> {
    if key.parent {
        return add_parent(space, client, common);
    }
    let plain = PageTableOptions::default();
    add_table(space, client, &[tracking(plain), plain], common)
}

/// Makes a page table that nested ones can be put upon.
pub(super) fn add_parent(
    space: &mut Space,
    client: &Client<'_>,
    common: &mut Common,
) -> io::Result<bool> {
    add_table(space, client, &[tracking(PARENT), PARENT], common)
}

const PARENT: PageTableOptions = PageTableOptions {
    nesting_parent: true,
    dirty_tracking: false,
    pasid: false,
};

const fn tracking(kind: PageTableOptions) -> PageTableOptions {
    PageTableOptions {
        dirty_tracking: true,
        ..kind
    }
}

fn add_table(
    space: &mut Space,
    client: &Client<'_>,
    kinds: &[PageTableOptions],
    common: &mut Common,
) -> io::Result<bool> {
    let can_track = client.info.dirty_tracking;
    let kinds: Vec<_> = kinds
        .iter()
        .filter(|kind| can_track || !kind.dirty_tracking)
        .filter_map(|kind| client.needs.adapt(*kind))
        .collect();
    let less_exact = space.add_table(client, &kinds)?;
    if common.dirty.is_some()
        && let Some(table) = space.tables.last()
        && let Err(error) = crate::dirty::tracking::switch_table(space, table, true)
    {
        // All that it can write counts as written then.
        common.report(|| format!("{}: {error}", client.name));
    }
    Ok(less_exact)
}
