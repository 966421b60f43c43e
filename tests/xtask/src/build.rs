//! Builds the programs and stages the files that a run needs.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use lab::agent::stock::{PROGRAM_DISK, ROOT_DISK};
use lab::cpio::Archive;

use crate::kernel::Kernel;
use crate::process::Logged;
use crate::{apt, back_ends, bundle, cloud, debian, kernel, paths};

/// The program that makes file systems.
pub(crate) const MKFS: &str = "/sbin/mkfs.ext4";

/// What a stage must hold besides nido, the lab's kernel and the plain initramfs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extras {
    /// Initramfs with a kernel for kexec.
    pub(crate) kexec: bool,
    /// Debian's cloud kernel.
    pub(crate) cloud: bool,
    /// Debian: its kernel, its initramfs, and its disk.
    pub(crate) debian: bool,
    /// Initramfs with busybox.
    pub(crate) shell: bool,
    /// The bare-metal payload.
    pub(crate) payload: bool,
    /// Initramfs with mkfs.ext4.
    pub(crate) tools: bool,
    /// Back ends of vhost-user.
    pub(crate) back_ends: bool,
    /// Initramfs with nido and all that it needs.
    pub(crate) host: bool,
}

/// Directory with everything that nido and level 1 are given.
pub(crate) struct Stage {
    /// `nido`, `vmlinux`, `bzImage`, `guest.cpio`, `level1.cpio` and what [`Extras`] adds.
    pub(crate) directory: PathBuf,
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// cargo in the checkout, with the target directory that this program was built into.
pub(crate) fn cargo_here() -> Result<Command> {
    let mut command = cargo();
    command
        .current_dir(paths::root())
        .env("CARGO_TARGET_DIR", paths::target()?);
    // Set by `cargo run` for this program; they would make cargo rebuild others.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    Ok(command)
}

pub(crate) fn is_compiled(line: &str) -> bool {
    line.trim_start().starts_with("Compiling")
}

/// Builds everything and fills the stage.
pub(crate) fn stage(extras: Extras) -> Result<Stage> {
    let kernel = kernel::provide(false)?;
    let directory = paths::logs()?.join("stage");
    fs::create_dir_all(&directory)?;
    programs(&directory, &["nido", "lab"])?;
    if extras.payload {
        payload(&directory)?;
    }
    let stage = Stage { directory };
    stage.fill(&kernel, extras)?;
    Ok(stage)
}

/// Builds the programs of `packages` for a release.
fn programs(directory: &Path, packages: &[&str]) -> Result<()> {
    let log = directory.join("build.log");
    let step = Logged {
        title: "building nido",
        log: &log,
        limit: Duration::from_secs(3600),
        count: Some((is_compiled, "crates")),
    };
    let mut command = cargo_here()?;
    command.args(["build", "--release"]);
    for package in packages {
        command.args(["--package", package]);
    }
    step.run(&mut command)?;
    Ok(())
}

/// Builds nido and the bare-metal payload for what needs nothing else, and puts the latter into
/// `directory`. Returns where both are.
pub(crate) fn bare(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    programs(directory, &["nido"])?;
    payload(directory)?;
    Ok((paths::release()?.join("nido"), directory.join("payload")))
}

/// The bare-metal guest is built by its own rules, outside the workspace.
fn payload(directory: &Path) -> Result<()> {
    let source = paths::root().join("tests/payload");
    let target = paths::target()?.join("payload");
    let log = directory.join("payload.log");
    let step = Logged {
        title: "building the payload",
        log: &log,
        limit: Duration::from_secs(1800),
        count: Some((is_compiled, "crates")),
    };
    let mut command = cargo_here()?;
    command
        .current_dir(&source)
        .env("CARGO_TARGET_DIR", &target)
        .args(["build", "--release"]);
    step.run(&mut command)?;
    let built = [target.join("release/payload")]
        .into_iter()
        .chain(
            fs::read_dir(&target)?
                .flatten()
                .map(|entry| entry.path().join("release/payload")),
        )
        .find(|path| path.is_file())
        .context("the payload was built, but is not in its target directory")?;
    fs::copy(built, directory.join("payload"))?;
    Ok(())
}

impl Stage {
    fn fill(&self, kernel: &Kernel, extras: Extras) -> Result<()> {
        self.copy(&kernel.vmlinux(), "vmlinux")?;
        self.copy(&kernel.bz_image(), "bzImage")?;
        for name in ["nido", "guest-init", "lab-agent"] {
            self.strip(&paths::release()?.join(name), name)?;
        }
        let init = self.read("guest-init")?;
        self.archive("guest.cpio", |archive| archive.file("init", 0o755, &init))?;
        let agent = self.read("lab-agent")?;
        self.archive("level1.cpio", |archive| archive.file("init", 0o755, &agent))?;
        if extras.kexec || extras.host {
            let image = self.read("bzImage")?;
            self.archive("kexec.cpio", |archive| {
                archive.file("init", 0o755, &init)?;
                add_kexec(archive, &image)
            })?;
        }
        if extras.back_ends {
            back_ends::bundle(&self.directory)?;
        }
        if extras.cloud {
            let cloud = cloud::provide()?;
            self.copy(&cloud.image, "cloud-vmlinuz")?;
            let modules = cloud.modules()?;
            let order: String = modules
                .iter()
                .map(|module| format!("{}\n", module.name))
                .collect();
            self.archive("cloud.cpio", |archive| {
                archive.file("init", 0o755, &init)?;
                archive.directory("modules")?;
                archive.file("modules/order", 0o644, order.as_bytes())?;
                modules.iter().try_for_each(|module| {
                    archive.file(&format!("modules/{}", module.name), 0o644, &module.content)
                })
            })?;
        }
        if extras.debian {
            let debian = debian::provide()?;
            self.copy(&debian.kernel, "debian-vmlinuz")?;
            self.copy(&debian.initramfs, "debian-initrd")?;
            let disk = self.root_disk();
            let _ = fs::remove_file(&disk);
            symlink(&debian.root, disk)?;
            let program = self.directory.join("guest-init");
            debian::program_disk(&program, &self.directory.join(PROGRAM_DISK))?;
        }
        if extras.tools {
            self.tools(&init)?;
        }
        if extras.host {
            self.host("host.cpio", "guest.cpio", &init)?;
            self.host("host-kexec.cpio", "kexec.cpio", &init)?;
        }
        if extras.shell {
            let busybox = busybox()?;
            self.archive("shell.cpio", |archive| {
                archive.file("init", 0o755, &init)?;
                archive.directory("bin")?;
                archive.file("bin/busybox", 0o755, &busybox)?;
                archive.symlink("bin/sh", "busybox")
            })?;
        }
        Ok(())
    }

    /// The initramfs with mkfs.ext4, and the one that has a kernel for kexec too.
    fn tools(&self, init: &[u8]) -> Result<()> {
        apt::install(&["e2fsprogs"], "make file systems in guests")?;
        let program = Path::new(MKFS);
        let mut files = vec![("sbin/mkfs.ext4".to_owned(), read(program)?)];
        for library in bundle::libraries(program)? {
            // The loader has its place in every program; the others are found through
            // LD_LIBRARY_PATH.
            let name = bundle::name(&library)?;
            let directory = if name.starts_with("ld-linux") {
                "lib64"
            } else {
                "lib"
            };
            files.push((format!("{directory}/{name}"), read(&library)?));
        }
        let fill = |archive: &mut Archive<Vec<u8>>| {
            archive.file("init", 0o755, init)?;
            for directory in ["sbin", "lib", "lib64"] {
                archive.directory(directory)?;
            }
            files
                .iter()
                .try_for_each(|(name, content)| archive.file(name, 0o755, content))
        };
        self.archive("tools.cpio", fill)?;
        let image = self.read("bzImage")?;
        self.archive("kexec-tools.cpio", |archive| {
            fill(archive)?;
            add_kexec(archive, &image)
        })
    }

    /// The initramfs of a guest that runs nido itself, with `inner` for its guest.
    fn host(&self, name: &str, inner: &str, init: &[u8]) -> Result<()> {
        let files = ["nido", "vmlinux", inner].map(|file| Ok((file, self.read(file)?)));
        let files = files.into_iter().collect::<Result<Vec<_>>>()?;
        self.archive(name, |archive| {
            archive.file("init", 0o755, init)?;
            archive.directory("level3")?;
            files.iter().try_for_each(|(file, content)| {
                archive.file(&format!("level3/{file}"), 0o755, content)
            })
        })
    }

    /// The disk that Debian is on, which is not to be changed.
    pub(crate) fn root_disk(&self) -> PathBuf {
        self.directory.join(ROOT_DISK)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        read(&self.directory.join(name))
    }

    fn copy(&self, source: &Path, name: &str) -> Result<()> {
        let target = self.directory.join(name);
        fs::copy(source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        Ok(())
    }

    /// Copies a program without its symbols, which are most of it.
    pub(crate) fn strip(&self, source: &Path, name: &str) -> Result<()> {
        let target = self.directory.join(name);
        let stripped = Command::new("strip")
            .arg("-o")
            .arg(&target)
            .arg(source)
            .status();
        if stripped.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        self.copy(source, name)
    }

    fn archive(
        &self,
        name: &str,
        fill: impl FnOnce(&mut Archive<Vec<u8>>) -> io::Result<()>,
    ) -> Result<()> {
        let mut archive = Archive::new(Vec::new())?;
        fill(&mut archive)?;
        fs::write(self.directory.join(name), archive.finish()?).with_context(|| name.to_owned())
    }
}

/// The kernel that a guest starts by kexec; it packs the initramfs itself.
fn add_kexec(archive: &mut Archive<Vec<u8>>, image: &[u8]) -> io::Result<()> {
    archive.directory("kexec")?;
    archive.file("kexec/kernel", 0o644, image)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// A static busybox, from Debian's package.
fn busybox() -> Result<Vec<u8>> {
    let directory = paths::cache()?.join("busybox");
    let program = ["bin/busybox", "usr/bin/busybox"].map(|path| directory.join(path));
    if !program.iter().any(|path| path.exists()) {
        let state = apt::State::machine();
        if state.field("busybox-static", "Version").is_err() {
            apt::State::of_suite(kernel::SUITE)?.unpack("busybox-static", &directory)?;
        } else {
            state.unpack("busybox-static", &directory)?;
        }
    }
    let path = program
        .iter()
        .find(|path| path.exists())
        .context("busybox-static holds no busybox")?;
    read(path)
}
