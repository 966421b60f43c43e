//! Loading a kernel, its initramfs and its boot parameters into guest memory, and the first vCPU's
//! state.
//!
//! A bzImage (Linux boot protocol) and an ELF with a PVH note (Xen's `hvm_start_info`) are entered
//! alike: 32-bit protected mode, paging off, flat segments. File contents are read straight into
//! guest memory, each byte once.

mod bzimage;
mod cpu_state;
mod elf;
mod memmap;
mod pvh;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use linux_loader::loader::load_cmdline;
use vm_memory::{Bytes, GuestAddress};

use crate::cmdline::{self, CmdlineError};
use crate::layout;
use crate::memory::{GuestRam, Memory};
pub(crate) use cpu_state::CpuState;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file cannot be opened.
    #[error("{option} {path}: cannot open the file ({cause}); check the path and its permissions")]
    Open {
        /// `--kernel` or `--initramfs`.
        option: &'static str,
        /// File name.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A file cannot be read.
    #[error("{option} {path}: cannot read the file ({cause})")]
    Read {
        /// `--kernel` or `--initramfs`.
        option: &'static str,
        /// File name.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It is something else, and may take for ever to be opened or read.
    #[error(
        "{option} {path}: this is no regular file, which a machine that comes from elsewhere has to have there; name one beside --incoming"
    )]
    NotRegular {
        /// `--kernel` or `--initramfs`.
        option: &'static str,
        /// File name.
        path: PathBuf,
    },
    /// Neither format.
    #[error(
        "--kernel {path}: this is neither a bzImage nor an ELF image ({found}); \
         give nido arch/x86/boot/bzImage or vmlinux of a 64-bit x86 kernel"
    )]
    UnknownFormat {
        /// File name.
        path: PathBuf,
        /// What the file looks like.
        found: String,
    },
    /// An ELF without a PVH entry note.
    #[error(
        "--kernel {path}: this ELF image has no PVH entry note; build the kernel with CONFIG_PVH=y, or give nido its bzImage"
    )]
    NoPvhNote {
        /// File name.
        path: PathBuf,
    },
    /// The loader refused the image.
    #[error(
        "--kernel {path}: the image cannot be loaded ({reason}); check that the file is complete and that --memory is large enough"
    )]
    Load {
        /// File name.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// Not enough RAM for the initramfs.
    #[error(
        "--initramfs {path}: {size} bytes do not fit beside the kernel below {limit:#x}; write a larger --memory"
    )]
    InitramfsTooLarge {
        /// File name.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// Where it must end.
        limit: u64,
    },
    /// The command line does not suit the kernel.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// A structure does not fit into guest memory.
    #[error("--memory: the boot structures do not fit ({0}); write a larger size")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The same as linux-loader says it of what the boot protocol hands over.
    #[error("--memory: the boot structures do not fit ({0}); write a larger size")]
    Parameters(#[from] linux_loader::configurator::Error),
    /// The same of the command line.
    #[error("--memory: the command line does not fit ({0}); write a larger size")]
    Loader(#[from] linux_loader::loader::Error),
}

/// The files that a guest boots from. They stay open, so that a reboot finds the same ones.
pub(crate) struct Images {
    kernel: File,
    kernel_path: PathBuf,
    initramfs: Option<(File, PathBuf)>,
    cmdline: String,
}

/// Where a loaded kernel is, whatever its format.
struct Loaded {
    format: Format,
    entry: u64,
    /// First byte after the kernel, including what it uses beyond its file.
    end: u64,
    /// The initramfs must end at or below this address.
    initramfs_limit: u64,
    cmdline_limit: usize,
}

enum Format {
    Pvh,
    BzImage(Box<linux_loader::loader::bootparam::setup_header>),
}

/// The initramfs in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initramfs {
    address: u64,
    size: u64,
}

impl Images {
    /// Opens the files. One may be slow, such as a pipe: the user has chosen it.
    pub(crate) fn open(
        kernel: &Path,
        initramfs: Option<&Path>,
        cmdline: &str,
    ) -> Result<Self, BootError> {
        let open = |option, path: &Path| {
            File::open(path).map_err(|cause| BootError::Open {
                option,
                path: path.to_owned(),
                cause,
            })
        };
        Self::open_by(open, kernel, initramfs, cmdline)
    }

    /// The same of regular files only, which somebody else has chosen. It does not wait.
    pub(crate) fn open_regular(
        kernel: &Path,
        initramfs: Option<&Path>,
        cmdline: &str,
    ) -> Result<Self, BootError> {
        Self::open_by(open_regular, kernel, initramfs, cmdline)
    }

    /// The files themselves, for another process that is to restart the guest.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn files(&self) -> io::Result<(File, Option<File>)> {
        let initramfs = self.initramfs.as_ref().map(|(file, _)| file.try_clone());
        Ok((self.kernel.try_clone()?, initramfs.transpose()?))
    }

    /// Of files that are open already, by these names.
    pub(crate) fn of(
        kernel: (File, &Path),
        initramfs: Option<(File, &Path)>,
        cmdline: &str,
    ) -> Self {
        Self {
            kernel: kernel.0,
            kernel_path: kernel.1.to_owned(),
            initramfs: initramfs.map(|(file, path)| (file, path.to_owned())),
            cmdline: cmdline.to_owned(),
        }
    }

    fn open_by(
        open: impl Fn(&'static str, &Path) -> Result<File, BootError>,
        kernel: &Path,
        initramfs: Option<&Path>,
        cmdline: &str,
    ) -> Result<Self, BootError> {
        let initramfs = match initramfs {
            Some(path) => Some((open("--initramfs", path)?, path.to_owned())),
            None => None,
        };
        Ok(Self {
            kernel: open("--kernel", kernel)?,
            kernel_path: kernel.to_owned(),
            initramfs,
            cmdline: cmdline.to_owned(),
        })
    }

    /// Loads everything into `memory` of `ram_size` bytes and returns the first vCPU's state.
    /// `rsdp` is where the ACPI tables begin; `reused` says that memory holds what an earlier boot
    /// left there.
    pub(crate) fn load(
        &mut self,
        memory: &Memory,
        ram_size: u64,
        rsdp: u64,
        reused: bool,
    ) -> Result<CpuState, BootError> {
        let loaded = self.load_kernel(memory, ram_size, reused)?;
        let initramfs = self.load_initramfs(memory, &loaded)?;
        let cmdline_size = self.write_cmdline(memory, loaded.cmdline_limit)?;
        cpu_state::write_gdt(memory)?;
        let map = memmap::memory_map(ram_size);
        match &loaded.format {
            Format::Pvh => {
                pvh::write_start_info(memory, &map, initramfs, rsdp)?;
                Ok(CpuState::pvh(loaded.entry))
            }
            Format::BzImage(header) => {
                bzimage::write_boot_params(memory, header, &map, initramfs, rsdp, cmdline_size)?;
                Ok(CpuState::bzimage(loaded.entry))
            }
        }
    }

    fn load_kernel(
        &mut self,
        memory: &GuestRam,
        ram_size: u64,
        reused: bool,
    ) -> Result<Loaded, BootError> {
        let mut head = Vec::new();
        self.kernel
            .rewind()
            .and_then(|()| {
                Read::by_ref(&mut self.kernel)
                    .take(0x206)
                    .read_to_end(&mut head)
            })
            .map_err(|cause| BootError::Read {
                option: "--kernel",
                path: self.kernel_path.clone(),
                cause,
            })?;
        let path = &self.kernel_path;
        if head.starts_with(b"\x7fELF") {
            elf::load(&mut self.kernel, path, memory, ram_size, reused)
        } else if head.get(0x202..0x206) == Some(b"HdrS") {
            bzimage::load(&mut self.kernel, path, memory, ram_size)
        } else {
            Err(BootError::UnknownFormat {
                path: path.clone(),
                found: describe(&head),
            })
        }
    }

    /// Puts the initramfs as high as it may go, so that the kernel has the memory below in one
    /// piece.
    fn load_initramfs(
        &mut self,
        memory: &GuestRam,
        loaded: &Loaded,
    ) -> Result<Option<Initramfs>, BootError> {
        let Some((file, path)) = &mut self.initramfs else {
            return Ok(None);
        };
        let read_error = |cause| BootError::Read {
            option: "--initramfs",
            path: path.clone(),
            cause,
        };
        let size = file.seek(io::SeekFrom::End(0)).map_err(read_error)?;
        file.rewind().map_err(read_error)?;
        let limit = loaded.initramfs_limit;
        let address = limit.checked_sub(size).map(|address| address & !0xfff);
        let Some(address) = address.filter(|address| *address >= loaded.end) else {
            return Err(BootError::InitramfsTooLarge {
                path: path.clone(),
                size,
                limit,
            });
        };
        let length = usize::try_from(size).map_err(|error| read_error(io::Error::other(error)))?;
        memory
            .read_exact_volatile_from(GuestAddress(address), file, length)
            .map_err(|error| read_error(io::Error::other(error)))?;
        Ok((size > 0).then_some(Initramfs { address, size }))
    }

    /// Writes the command line for a kernel that takes `limit` bytes, and returns its size.
    fn write_cmdline(&self, memory: &GuestRam, limit: usize) -> Result<usize, BootError> {
        let limit = limit.min(layout::boot::CMDLINE_MAX - 1);
        let cmdline = cmdline::check(&self.cmdline, limit)?;
        load_cmdline(memory, GuestAddress(layout::boot::CMDLINE), &cmdline)?;
        Ok(self.cmdline.trim().len())
    }
}

fn open_regular(option: &'static str, path: &Path) -> Result<File, BootError> {
    let fail = |cause| BootError::Open {
        option,
        path: path.to_owned(),
        cause,
    };
    let no = || BootError::NotRegular {
        option,
        path: path.to_owned(),
    };
    // Looked at before, as a device may do something when it is opened.
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(no());
    }
    // And after, as there may be another one by now. Opening a pipe would wait.
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(fail)?;
    match file.metadata().map_err(fail)?.is_file() {
        true => Ok(file),
        false => Err(no()),
    }
}

/// Names formats that people pass by mistake.
fn describe(head: &[u8]) -> String {
    let known: &[(&[u8], &str)] = &[
        (b"\x1f\x8b", "gzip-compressed data"),
        (b"\xfd7zXZ", "xz-compressed data"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
        (b"070701", "a cpio archive, perhaps the initramfs"),
        (b"MZ", "a PE image without the Linux boot header"),
    ];
    if head.is_empty() {
        return "it is empty".to_owned();
    }
    match known.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, name)) => format!("it begins like {name}"),
        None => format!("its first bytes are {:02x?}", head.get(..4).unwrap_or(head)),
    }
}

#[cfg(test)]
mod boot_test;
