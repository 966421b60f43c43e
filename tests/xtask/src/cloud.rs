//! Debian's stock cloud kernel, with the modules that the guest's devices need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{self, State};
use crate::paths;

const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Drivers of the guest's devices; what is built in is left out, and dependencies are added.
const DRIVERS: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng"];

/// The unpacked kernel.
pub(crate) struct Cloud {
    /// The bzImage.
    pub(crate) image: PathBuf,
    modules: PathBuf,
}

/// A module to load.
pub(crate) struct Module {
    /// File name.
    pub(crate) name: String,
    /// The ELF file.
    pub(crate) content: Vec<u8>,
}

/// The kernel, from the cache or fetched now.
pub(crate) fn provide() -> Result<Cloud> {
    let directory = paths::cache()?.join("cloud");
    if let Some(cloud) = find(&directory) {
        return Ok(cloud);
    }
    apt::install(&["xz-utils"], "unpack Debian's cloud kernel")?;
    println!("fetching Debian's cloud kernel");
    let machine = State::machine();
    // A machine whose lists are empty is no reason to change them.
    let state = if machine.field(META_PACKAGE, "Depends").is_ok() {
        machine
    } else {
        State::of_suite("stable")?
    };
    let depends = state.field(META_PACKAGE, "Depends")?;
    let package = depends
        .split([',', ' '])
        .find(|word| word.starts_with("linux-image-"))
        .with_context(|| format!("{META_PACKAGE} depends on no image but on '{depends}'"))?;
    let work = directory.with_extension(format!("{}.partial", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    state.unpack(package, &work)?;
    // Trixie splits the modules off for some flavours.
    if find(&work).is_none() {
        bail!("{package} holds no kernel with modules");
    }
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&work, &directory)?;
    find(&directory).context("the cloud kernel vanished from the cache")
}

fn find(directory: &Path) -> Option<Cloud> {
    let image = fs::read_dir(directory.join("boot"))
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })?;
    let release = image
        .file_name()?
        .to_string_lossy()
        .strip_prefix("vmlinuz-")?
        .to_owned();
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|base| directory.join(base).join(&release))
        .into_iter()
        .find(|path| path.is_dir())?;
    Some(Cloud { image, modules })
}

/// Module names are the same with `-` and `_`.
fn canonical(name: &str) -> String {
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

impl Cloud {
    /// The drivers and what they depend on, in the order in which they load.
    pub(crate) fn modules(&self) -> Result<Vec<Module>> {
        let mut files = BTreeMap::new();
        collect(&self.modules, &mut files)?;
        let builtin = fs::read_to_string(self.modules.join("modules.builtin")).unwrap_or_default();
        let builtin: Vec<String> = builtin
            .lines()
            .filter_map(|line| Some(canonical(line.rsplit('/').next()?)))
            .collect();
        let mut loaded = Vec::new();
        for driver in DRIVERS {
            self.add(driver, &files, &builtin, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(
        &self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        builtin: &[String],
        loaded: &mut Vec<Module>,
    ) -> Result<()> {
        if builtin.iter().any(|builtin| builtin == name)
            || loaded.iter().any(|module| canonical(&module.name) == name)
        {
            return Ok(());
        }
        // virtio-rng's module is named so in some releases, virtio_rng in others; both are
        // `virtio_rng` here.
        let path = files
            .get(name)
            .with_context(|| format!("the cloud kernel has no module {name}"))?;
        let content = read_module(path)?;
        for dependency in dependencies(&content) {
            self.add(&canonical(&dependency), files, builtin, loaded)?;
        }
        loaded.push(Module {
            name: format!("{name}.ko"),
            content,
        });
        Ok(())
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            && name.contains(".ko")
        {
            files.insert(canonical(&name), path);
        }
    }
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let compressed = match path
        .extension()
        .map(|extension| extension.to_string_lossy().into_owned())
        .as_deref()
    {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| path.display().to_string()),
    };
    let output = Command::new(compressed)
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output();
    let output = output.with_context(|| format!("cannot start {compressed}"))?;
    if !output.status.success() {
        bail!("{compressed} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// What the module says in its section `.modinfo`: NUL-terminated `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module.get(start + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_depends_on() {
        assert_eq!(
            dependencies(b"x\0license=GPL\0depends=virtio_ring,net-failover\0name=y\0"),
            ["virtio_ring", "net-failover"]
        );
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert_eq!(canonical("virtio-rng.ko.xz"), "virtio_rng");
    }
}
