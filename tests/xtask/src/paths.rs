//! Paths: the checkout, the target directory, logs, and the cache.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Triple that `.cargo/config.toml` builds for.
pub(crate) const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The checkout.
pub(crate) fn root() -> PathBuf {
    // tests/xtask -> tests -> checkout
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .to_owned()
}

/// Cargo's target directory: the one that this program was built into.
pub(crate) fn target() -> Result<PathBuf> {
    if let Some(directory) = env::var_os("CARGO_TARGET_DIR") {
        return std::path::absolute(PathBuf::from(directory)).context("CARGO_TARGET_DIR");
    }
    let program = env::current_exe().context("own path")?;
    // <target>/<triple>/<profile>/xtask
    let directory = program
        .ancestors()
        .nth(2)
        .context("xtask lies in no target directory")?;
    Ok(if directory.ends_with(TRIPLE) {
        directory.parent().unwrap_or(directory).to_owned()
    } else {
        directory.to_owned()
    })
}

/// Release binaries.
pub(crate) fn release() -> Result<PathBuf> {
    Ok(target()?.join(TRIPLE).join("release"))
}

/// Logs of the lab, a directory for each scenario.
pub(crate) fn logs() -> Result<PathBuf> {
    Ok(target()?.join("lab"))
}

/// What outlives checkouts: kernels and packages. `NIDO_CACHE`, else the user's cache directory.
pub(crate) fn cache() -> Result<PathBuf> {
    let chosen = env::var_os("NIDO_CACHE")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let standard = || {
        let base = env::var_os("XDG_CACHE_HOME")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        base.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
            .map(|base| base.join("nido"))
    };
    chosen
        .or_else(standard)
        .context("neither NIDO_CACHE, XDG_CACHE_HOME nor HOME is set: set NIDO_CACHE")
}
