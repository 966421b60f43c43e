//! A stock Debian 12 for a guest: a root file system with systemd and fio, its kernel, its initramfs.
//!
//! mmdebstrap puts it together from packages of the mirror that this machine uses. It is made once and
//! kept in the cache, by a key of what goes in.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::MKFS;
use crate::process::{Logged, output};
use crate::{apt, paths};

const SUITE: &str = "bookworm";
/// Besides what every Debian has.
const PACKAGES: &str =
    "systemd-sysv,udev,linux-image-cloud-amd64,initramfs-tools,zstd,e2fsprogs,fio";
/// What is left out, as in Debian's container images.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];
/// Programs that make the image.
const TOOLS: &[&str] = &["mmdebstrap", "fakeroot", "e2fsprogs"];
/// Bytes of the disk, most of which the file leaves out.
const SIZE: u64 = 1 << 30;

/// What is written into the file system: what an installation asks its user for, and our service.
///
/// Where everything is emulated, starting takes longer than systemd waits by default.
const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "debian\n"),
    ("etc/resolv.conf", ""),
    // Without a number yet, but not asking on the console for what a first boot may ask.
    ("etc/machine-id", ""),
    (
        "etc/fstab",
        "LABEL=debian / ext4 defaults 0 1\n\
         LABEL=lab /opt/lab ext4 ro,x-systemd.device-timeout=600 0 0\n",
    ),
    (
        "etc/systemd/system.conf.d/lab.conf",
        "[Manager]\n\
         DefaultTimeoutStartSec=600\n\
         DefaultTimeoutStopSec=600\n\
         DefaultDeviceTimeoutSec=600\n",
    ),
    (
        "etc/systemd/system/lab.service",
        "[Unit]\n\
         Description=Checks of the lab\n\
         RequiresMountsFor=/opt/lab\n\
         After=getty.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStartPre=/bin/udevadm settle --timeout=600\n\
         ExecStart=/opt/lab/guest-init checks\n\
         TimeoutStartSec=infinity\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
    ),
];
/// Where the disk with our program goes.
const DIRECTORY: &str = "opt/lab";
/// The service is enabled: name and target of a link.
const ENABLED: (&str, &str) = (
    "etc/systemd/system/multi-user.target.wants/lab.service",
    "/etc/systemd/system/lab.service",
);

/// The parts.
pub(crate) struct Debian {
    /// Image of the disk with the root file system.
    pub(crate) root: PathBuf,
    /// Its kernel, a bzImage.
    pub(crate) kernel: PathBuf,
    /// Its initramfs.
    pub(crate) initramfs: PathBuf,
}

impl Debian {
    fn in_directory(directory: &Path) -> Self {
        let [root, kernel, initramfs] =
            ["root.raw", "vmlinuz", "initrd.img"].map(|name| directory.join(name));
        Self {
            root,
            kernel,
            initramfs,
        }
    }
}

/// The parts, from the cache or made now.
pub(crate) fn provide() -> Result<Debian> {
    let what = format!("{SUITE} {PACKAGES} {EXCLUDED:?} {SIZE} {FILES:?} {ENABLED:?}");
    let hash = lab::hash::sha256(what.as_bytes());
    let key = hash.get(..12).unwrap_or(&hash);
    let directory = paths::cache()?.join("debian").join(key);
    if directory.exists() {
        return Ok(Debian::in_directory(&directory));
    }
    apt::install(TOOLS, "make a disk with Debian on it")?;
    println!("making a disk with Debian {SUITE} on it; this happens once and takes minutes");
    let work = directory.with_extension(format!("{}.partial", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    let result = work.join("result");
    fs::create_dir_all(&result)?;
    make(&work, &Debian::in_directory(&result)).with_context(|| {
        format!(
            "cannot make the disk; what there is of it is in {}",
            work.display()
        )
    })?;
    // Another process may have been faster.
    if fs::rename(&result, &directory).is_err() && !directory.exists() {
        bail!("cannot put Debian into the cache");
    }
    fs::remove_dir_all(&work)?;
    Ok(Debian::in_directory(&directory))
}

fn make(work: &Path, result: &Debian) -> Result<()> {
    let (archive, tree) = (work.join("root.tar"), work.join("root"));
    bootstrap(work, &archive)?;
    // Owners are kept on the side, so that this takes no rights.
    let owners = work.join("owners");
    File::create(&owners)?;
    let fakeroot = || {
        let mut command = Command::new("fakeroot");
        for option in ["-i", "-s"] {
            command.arg(option).arg(&owners);
        }
        command.arg("--");
        command
    };
    fs::create_dir(&tree)?;
    let mut unpack = fakeroot();
    unpack.args(["tar", "--extract", "--file"]).arg(&archive);
    unpack.arg("--directory").arg(&tree);
    step("unpacking Debian", &work.join("tar.log")).run(&mut unpack)?;
    fs::remove_file(&archive)?;
    configure(&tree)?;
    take(&tree, "vmlinuz-", &result.kernel)?;
    take(&tree, "initrd.img-", &result.initramfs)?;
    file_system(fakeroot(), &tree, "debian", SIZE, &result.root)
}

/// Has mmdebstrap write the archive of a file system in which all packages are installed.
fn bootstrap(work: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=minbase", "--verbose"])
        .arg(format!("--include={PACKAGES}"));
    for pattern in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    // How this machine reaches its mirror.
    let settings = output(Command::new("apt-config").arg("dump"))?;
    for line in settings.lines().filter(|l| l.starts_with("Acquire::http")) {
        command.arg(format!("--aptopt={line}"));
    }
    command.arg(SUITE).arg(archive);
    command.arg(apt::sources_list(&[SUITE])?.trim());
    let log = work.join("mmdebstrap.log");
    let step = Logged {
        count: Some((|line| line.starts_with("Setting up "), "packages")),
        ..step("installing Debian", &log)
    };
    step.run(&mut command)?;
    Ok(())
}

/// Writes [`FILES`].
fn configure(tree: &Path) -> Result<()> {
    for (name, content) in FILES {
        let path = tree.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    fs::create_dir_all(tree.join(DIRECTORY))?;
    let (name, target) = ENABLED;
    symlink(target, tree.join(name)).with_context(|| name.to_owned())
}

/// Copies the file of `/boot` whose name starts so.
fn take(tree: &Path, prefix: &str, target: &Path) -> Result<()> {
    let mut entries = fs::read_dir(tree.join("boot"))?.flatten();
    let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let found = found.with_context(|| format!("Debian has no /boot/{prefix}*"))?;
    fs::copy(found.path(), target)?;
    Ok(())
}

/// Makes `image`, a disk of `size` bytes with what is in `directory`. `command` starts what follows.
fn file_system(
    mut command: Command,
    directory: &Path,
    label: &str,
    size: u64,
    image: &Path,
) -> Result<()> {
    File::create(image)?.set_len(size)?;
    command.args([MKFS, "-q", "-L", label, "-d"]);
    command.arg(directory).arg(image);
    step("making the disk", &directory.with_extension("log")).run(&mut command)?;
    Ok(())
}

/// Makes `image`, a disk that holds our program, as the guest's fstab has it.
pub(crate) fn program_disk(program: &Path, image: &Path) -> Result<()> {
    apt::install(&["e2fsprogs"], "make a disk")?;
    let directory = image.with_extension("content");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory)?;
    fs::copy(program, directory.join("guest-init"))?;
    let size = (fs::metadata(program)?.len() * 2 + (4 << 20)).next_multiple_of(1 << 20);
    // mkfs.ext4 takes over owners; who they are does not matter.
    file_system(Command::new("env"), &directory, "lab", size, image)?;
    fs::remove_dir_all(&directory)?;
    Ok(())
}

fn step<'a>(title: &'a str, log: &'a Path) -> Logged<'a> {
    Logged {
        title,
        log,
        limit: Duration::from_secs(3600),
        count: None,
    }
}
