//! The lab's kernel: built once from Debian's source package, kept in the cache.
//!
//! The cache is keyed by the package's version, by the configuration, and by what is changed of the
//! source and added to it. What is complete there is used without asking anybody: no network, no
//! package tools.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::sys;

use crate::apt::{self, State};
use crate::paths;
use crate::process::{Logged, PROGRESS, seconds};

/// Where Debian 12 and newer find a kernel source with everything that the lab uses.
pub(crate) const SUITE: &str = "trixie-backports";
/// The release that they are for, which has what they need.
pub(crate) const RELEASE: &str = "trixie";
const SOURCES: &str = "^linux-source-7\\.[0-9]+$";
const FALLBACK_SOURCES: &str = "^linux-source-[0-9]+\\.[0-9]+$";
/// Tools of a kernel build.
const TOOLS: &[&str] = &[
    "gcc",
    "libc6-dev",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "xz-utils",
    "binutils",
];
/// Longest time that one waits for another process's build.
const LONGEST: Duration = Duration::from_secs(4 * 3600);
/// Changes of the source: file, text, replacement.
///
/// KVM takes an intercept for one that came while an event was being delivered when EXITINTINFO has
/// a type, whether or not its valid bit is set (APM volume 2, 15.7.2). QEMU's emulation of SVM
/// clears only the valid bit after delivery, so that in level 1 KVM refuses to emulate the first
/// MMIO access after any exception, and the guest is lost.
///
/// The others make [the driver that is added](DRIVERS) part of the kernel.
const QUIRKS: &[(&str, &str, &str)] = &[
    (
        "arch/x86/kvm/svm/svm.c",
        "control.exit_int_info & SVM_EXITINTINFO_TYPE_MASK) &&",
        "control.exit_int_info & SVM_EXITINTINFO_VALID) &&",
    ),
    (
        "drivers/vfio/pci/Kconfig",
        "source \"drivers/vfio/pci/mlx5/Kconfig\"",
        "config EDU_VFIO_PCI\n\tbool \"VFIO support for the educational device, with migration\"\n\tselect VFIO_PCI_CORE\n\n\
         source \"drivers/vfio/pci/mlx5/Kconfig\"",
    ),
    (
        "drivers/vfio/pci/Makefile",
        "obj-$(CONFIG_MLX5_VFIO_PCI)",
        "obj-$(CONFIG_EDU_VFIO_PCI) += edu-vfio-pci.o\n\nobj-$(CONFIG_MLX5_VFIO_PCI)",
    ),
];
/// Drivers of our own: a file of `resources/kernel`, and the directory of the source that it goes to.
const DRIVERS: &[(&str, &str)] = &[("edu-vfio-pci.c", "drivers/vfio/pci")];

/// A built kernel.
pub(crate) struct Kernel {
    /// Holds `bzImage`, `vmlinux` (ELF with a PVH entry), `System.map` and `config`.
    pub(crate) directory: PathBuf,
}

impl Kernel {
    /// The compressed image.
    pub(crate) fn bz_image(&self) -> PathBuf {
        self.directory.join("bzImage")
    }

    /// The ELF image.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }
}

fn config_path() -> PathBuf {
    paths::root().join("resources/kernel.config")
}

fn driver_path(name: &str) -> PathBuf {
    paths::root().join("resources/kernel").join(name)
}

/// What the cache is keyed by, besides the version: all that is not the package's.
fn ingredients() -> Result<String> {
    let read =
        |path: PathBuf| fs::read_to_string(&path).with_context(|| path.display().to_string());
    let mut all = format!("{}{QUIRKS:?}", read(config_path())?);
    for (name, directory) in DRIVERS {
        all.push_str(directory);
        all.push_str(&read(driver_path(name))?);
    }
    Ok(all)
}

/// The newest cached kernel of this configuration.
fn cached(kernels: &Path, key: &str) -> Option<Kernel> {
    let mut found: Vec<PathBuf> = fs::read_dir(kernels)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().ends_with(key))
        })
        .collect();
    found.sort_by_key(|path| numbers(&path.to_string_lossy()));
    found.pop().map(|directory| Kernel { directory })
}

/// The numbers in a text, for ordering versions.
fn numbers(text: &str) -> Vec<u64> {
    let name = text.rsplit('/').next().unwrap_or(text);
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// The kernel, from the cache or built now. With `update`, from the newest source package that
/// there is.
pub(crate) fn provide(update: bool) -> Result<Kernel> {
    let hash = lab::hash::sha256(ingredients()?.as_bytes());
    let key = format!("-config-{}", hash.get(..12).unwrap_or(&hash));
    let kernels = paths::cache()?.join("kernel");
    fs::create_dir_all(&kernels)?;
    if !update && let Some(kernel) = cached(&kernels, &key) {
        return Ok(kernel);
    }
    // Whoever wants a kernel while another is built waits for it: two builds take twice as long.
    let _turn = turn(&kernels.join("lock"))?;
    if !update && let Some(kernel) = cached(&kernels, &key) {
        return Ok(kernel);
    }
    remove_abandoned(&kernels);
    apt::install(TOOLS, "build the guest kernel")?;
    let (state, package) = source()?;
    let version = state.field(&package, "Version")?;
    let name: String = version
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || ".-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let finished = kernels.join(format!("{name}{key}"));
    if finished.exists() {
        println!("kernel {version} is in the cache already");
        return Ok(Kernel {
            directory: finished,
        });
    }
    println!(
        "building the guest kernel from {package} {version}; this happens once and takes minutes"
    );
    let start = Instant::now();
    let work = kernels.join(format!(".building-{}", std::process::id()));
    let built = build(&state, &package, &work);
    if built.is_ok() {
        fs::rename(work.join("result"), &finished)
            .context("cannot put the kernel into the cache")?;
        fs::remove_dir_all(&work)?;
    }
    built.with_context(|| {
        format!(
            "cannot build the guest kernel; what there is of it is in {}",
            work.display()
        )
    })?;
    println!("guest kernel built in {}", seconds(start.elapsed()));
    Ok(Kernel {
        directory: finished,
    })
}

/// The right to build, once whoever has it is done. It ends with its process.
fn turn(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let start = Instant::now();
    let mut told = None;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cache"),
            Err(TryLockError::WouldBlock) => {}
        }
        if sys::interrupted() {
            bail!("interrupted");
        }
        if start.elapsed() > LONGEST {
            bail!(
                "another process has been building a kernel for {}; stop it",
                seconds(LONGEST)
            );
        }
        if told.is_none_or(|told: Instant| told.elapsed() >= PROGRESS) {
            told = Some(Instant::now());
            let waited = seconds(start.elapsed());
            println!("  waiting for another process that builds a kernel: {waited}");
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Removes what builds left that were killed.
fn remove_abandoned(kernels: &Path) {
    for entry in fs::read_dir(kernels).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(process) = name.strip_prefix(".building-")
            && !Path::new("/proc").join(process).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn newest(mut names: Vec<String>) -> Option<String> {
    names.sort_by_key(|name| numbers(name));
    names.pop()
}

/// The source package to build, and the state that knows it.
fn source() -> Result<(State, String)> {
    let private = State::of_suite(SUITE).and_then(|state| {
        let package = newest(state.search(SOURCES)?)
            .with_context(|| format!("no linux-source-7 in {SUITE}"))?;
        Ok((state, package))
    });
    let reason = match private {
        Ok(found) => return Ok(found),
        Err(reason) => reason,
    };
    println!(
        "notice: {reason:#}; taking the newest kernel source of this machine's own release instead"
    );
    let state = State::machine();
    match newest(state.search(FALLBACK_SOURCES)?) {
        Some(package) => Ok((state, package)),
        None => bail!("no package linux-source-* in this machine's lists: run apt-get update"),
    }
}

fn is_object(line: &str) -> bool {
    ["  CC ", "  AS ", "  LD ", "  AR ", "  HOSTCC "]
        .iter()
        .any(|kind| line.starts_with(kind))
}

/// Says which options the source does not have, or not under these conditions: an older source
/// lacks some.
fn tell_missing(wanted: &str, got: &str) {
    let missing: Vec<&str> = wanted
        .lines()
        .filter(|line| line.ends_with("=y") && !got.lines().any(|other| other == *line))
        .collect();
    if !missing.is_empty() {
        println!("  notice: this source does not take {}", missing.join(" "));
    }
}

fn build(state: &State, package: &str, work: &Path) -> Result<()> {
    let unpacked = work.join("package");
    state.unpack(package, &unpacked)?;
    let tree = work.join("tree");
    fs::create_dir_all(&tree)?;
    let archive = unpacked.join("usr/src").join(format!("{package}.tar.xz"));
    let step =
        |title: &'static str, log: &'static str, minutes: u64| (title, work.join(log), minutes);
    let run = |(title, log, minutes): (&str, PathBuf, u64), command: &mut Command| {
        let limit = Duration::from_secs(minutes * 60);
        Logged {
            title,
            log: &log,
            limit,
            count: Some((is_object, "objects")),
        }
        .run(command)
    };
    println!("  unpacking the source");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--directory"])
        .arg(&tree)
        .arg("--file")
        .arg(&archive);
    run(step("unpacking", "tar.log", 20), &mut tar)?;
    fs::remove_dir_all(&unpacked)?;

    for (file, text, replacement) in QUIRKS {
        let path = tree.join(file);
        let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, source.replace(text, replacement))?;
    }
    for (name, directory) in DRIVERS {
        let path = tree.join(directory).join(name);
        fs::copy(driver_path(name), &path).with_context(|| path.display().to_string())?;
    }

    let make = || {
        let mut make = Command::new("make");
        make.arg("--directory")
            .arg(&tree)
            .env_remove("MAKEFLAGS")
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01");
        make.env("KBUILD_BUILD_USER", "lab")
            .env("KBUILD_BUILD_HOST", "lab");
        make
    };
    let mut configure = make();
    configure
        .arg("allnoconfig")
        .arg(format!("KCONFIG_ALLCONFIG={}", config_path().display()));
    run(step("configuring", "configure.log", 10), &mut configure)?;
    tell_missing(
        &fs::read_to_string(config_path())?,
        &fs::read_to_string(tree.join(".config"))?,
    );
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut compile = make();
    compile
        .arg(format!("--jobs={jobs}"))
        .args(["bzImage", "vmlinux"]);
    run(step("compiling", "build.log", 180), &mut compile)?;

    let result = work.join("result");
    fs::create_dir_all(&result)?;
    fs::copy(tree.join("arch/x86/boot/bzImage"), result.join("bzImage"))?;
    fs::copy(tree.join("System.map"), result.join("System.map"))?;
    fs::copy(tree.join(".config"), result.join("config"))?;
    let mut strip = Command::new("strip");
    strip
        .args(["--strip-all", "--keep-section=.notes", "-o"])
        .arg(result.join("vmlinux"))
        .arg(tree.join("vmlinux"));
    run(step("stripping", "strip.log", 5), &mut strip)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_the_greatest_by_number() {
        let names = ["linux-source-7.9", "linux-source-7.10", "linux-source-7.3"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(newest(names).as_deref(), Some("linux-source-7.10"));
    }
}
