//! Programs of a newer release of Debian than this machine's, unpacked into the cache with their
//! libraries: they run by their own dynamic loader, on this machine and in level 1.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::State;
use crate::bench::copy;
use crate::{bundle, paths};

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A package, and what is taken of it.
pub(crate) struct Wanted {
    pub(crate) package: &'static str,
    /// Of `/usr/bin`.
    pub(crate) programs: &'static [&'static str],
    /// The first is where the package is, the others have what it needs.
    pub(crate) suites: &'static [&'static str],
}

impl Wanted {
    /// The directory of the cache with this name: it holds the programs, `lib` with their libraries and
    /// `ld.so`, and what `also` has put into its second argument of what is unpacked in its first.
    pub(crate) fn provide(
        &self,
        name: &str,
        also: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let directory = paths::cache()?.join(name);
        if directory.exists() {
            return Ok(directory);
        }
        let suite = self.suites.first().copied().unwrap_or_default();
        println!("fetching the newest {name} of {suite}; this happens once");
        let state = State::of_suites(self.suites)?;
        let work = directory.with_extension(format!("{}.partial", std::process::id()));
        let _ = fs::remove_dir_all(&work);
        let (packages, result) = (work.join("packages"), work.join("result"));
        fs::create_dir_all(&work)?;
        state.unpack_all(self.package, &packages)?;
        self.collect(&packages, &result)?;
        also(&packages, &result)?;
        fs::rename(&result, &directory)
            .with_context(|| format!("cannot put {name} into the cache"))?;
        fs::remove_dir_all(&work)?;
        Ok(directory)
    }

    /// Of what the packages hold, takes the programs and what they load.
    fn collect(&self, packages: &Path, result: &Path) -> Result<()> {
        fs::create_dir_all(result.join("lib"))?;
        let libraries = packages.join(LIBRARIES);
        let loader = libraries.join("ld-linux-x86-64.so.2");
        copy(&loader, &result.join("lib/ld.so"))?;
        for name in self.programs {
            let program = packages.join("usr/bin").join(name);
            copy(&program, &result.join(name))?;
            for library in bundle::libraries_of(&loader, &libraries, &program)? {
                let name = bundle::name(&library)?;
                if !name.starts_with("ld-linux") {
                    copy(&libraries.join(&name), &result.join("lib").join(name))?;
                }
            }
        }
        Ok(())
    }
}
