//! The programs that serve devices of a guest by vhost-user, for level 1: QEMU's storage daemon, as this
//! machine has it, and passt of the first release of Debian whose passt speaks vhost-user.

use std::fs;
use std::path::Path;

use anyhow::Result;
use lab::agent::back_ends::{DIRECTORY, NETWORK, STORAGE};

use crate::bench::{PROGRAM, bundle_program, copy};
use crate::kernel;
use crate::newer::Wanted;

/// Puts both into `stage`.
pub(crate) fn bundle(stage: &Path) -> Result<()> {
    let target = stage.join(DIRECTORY);
    // It is in one of the packages that QEMU needs.
    let storage = Path::new(PROGRAM).with_file_name(STORAGE);
    bundle_program(&storage, &target.join(STORAGE))?;
    let wanted = Wanted {
        package: NETWORK,
        programs: &[NETWORK],
        suites: &[kernel::RELEASE],
    };
    let cached = wanted.provide(NETWORK, |_, _| Ok(()))?;
    let (target, libraries) = (target.join(NETWORK), target.join(NETWORK).join("lib"));
    let _ = fs::remove_dir_all(&target);
    fs::create_dir_all(&libraries)?;
    copy(&cached.join(NETWORK), &target.join(NETWORK))?;
    for library in fs::read_dir(cached.join("lib"))?.flatten() {
        copy(&library.path(), &libraries.join(library.file_name()))?;
    }
    Ok(())
}
