//! Guest RAM, mapped in as many pieces as the address map has.
//!
//! It reserves nothing: the host gives pages when the guest first touches them, huge ones where it
//! has transparent huge pages. It is anonymous memory; a machine that may be given devices of the
//! host has it in a memfd, which iommufd maps (`IOMMU_IOAS_MAP_FILE`). Of a memfd, most hosts give
//! small pages, unless they are [asked to collapse them](collapse).

#![allow(unsafe_code)] // mmap at an address, and madvise, which no library can know to be harmless.

pub(crate) mod dirty;
pub(crate) mod holes;
pub(crate) mod pages;
pub(crate) mod reclaim;
pub(crate) mod saved;
pub(crate) mod shared;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices::marks::Marks;
pub(crate) use devices::{GuestRam, Memory};
use intel_vtd_host::RamPiece;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sysinfo::sysinfo;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError, NewBitmap as _};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion, VolatileMemory,
};

use crate::config::MemoryConfig;
use crate::layout;

/// A piece of RAM.
type Region = MmapRegion<Marks>;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Why there is no memory for the guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// More than the machine could ever have.
    #[error(
        "--memory {wanted_mib}M: this machine has {total_mib}M of memory and swap in all; write a smaller size"
    )]
    TooMuch {
        /// Requested size.
        wanted_mib: u64,
        /// RAM and swap of the host.
        total_mib: u64,
    },
    /// Not enough huge pages.
    #[error(
        "--memory {wanted_mib}M,hugepages=on: the host cannot give {pages} huge pages of 2M ({cause}); \
         reserve them with `sysctl vm.nr_hugepages={pages}`, or write hugepages=off"
    )]
    HugePages {
        /// Requested size.
        wanted_mib: u64,
        /// The same in huge pages.
        pages: u64,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Any other failure of the host.
    #[error("--memory {wanted_mib}M: {what} failed ({cause}); write a smaller size{hint}")]
    Host {
        /// Requested size.
        wanted_mib: u64,
        /// Which step.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
        /// Another remedy.
        hint: &'static str,
    },
}

/// What guest RAM is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Memory of this process.
    Anonymous,
    /// A file of its own, where its pages stay when nobody maps it.
    File,
}

/// Allocates guest RAM as the configuration asks, at the addresses of the machine's map. Reserved
/// huge pages are always in a file. What it holds comes from `saved`, if that is given: memory of this
/// process is a private mapping of it, so that nothing is read before the guest does; a file gets a copy.
///
/// Behind RAM there are `further` bytes, if any: not before the guest touches them.
pub(crate) fn allocate(
    config: &MemoryConfig,
    further: u64,
    backing: Backing,
    saved: Option<&Arc<File>>,
) -> Result<Memory, MemoryError> {
    check_total(config)?;
    let failure = Failure(config);
    let is_file = backing == Backing::File || config.hugepages;
    let file = is_file
        .then(|| make_file(config, further))
        .transpose()?
        .map(Arc::new);
    let source = match (&file, saved) {
        (Some(file), _) => Source::Shared(file),
        (None, Some(saved)) => Source::Private(saved),
        (None, None) => Source::Nothing,
    };
    let memory = lay_out(config, further, source)?;
    if let (Source::Shared(_), Some(saved)) = (source, saved) {
        saved::fill(&memory, saved).map_err(failure.of("reading the snapshot", ""))?;
    }
    Ok(Arc::new(memory))
}

/// Maps `source` at the addresses of the machine's map, with `further` bytes behind RAM.
fn lay_out(
    config: &MemoryConfig,
    further: u64,
    source: Source<'_>,
) -> Result<GuestRam, MemoryError> {
    let failure = Failure(config);
    let mut offset = 0;
    let mut regions = Vec::new();
    let ram = layout::ram(config.size).into_iter();
    let ram = ram.map(|place| (place, config.prefault));
    let further = layout::further(config.size, further).map(|place| (place, false));
    for ((address, size), prefault) in ram.chain(further) {
        let region = map(source, offset, size, config.hugepages)
            .map_err(failure.reserving("mapping the memory", ", or raise the limit `ulimit -v`"))?;
        if !config.hugepages {
            prefer_huge_pages(&region);
        }
        if prefault {
            if region.file_offset().is_some() && !config.hugepages {
                collapse_region(&region);
            }
            let hint = ", or leave out prefault=on";
            populate(&region).map_err(failure.of("allocating all pages", hint))?;
        }
        regions.extend(GuestRegionMmap::new(region, GuestAddress(address)));
        offset += size;
    }
    GuestRam::from_regions(regions)
        .map_err(io::Error::other)
        .map_err(failure.of("laying out the memory", ""))
}

/// What is mapped.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Zeros.
    Nothing,
    /// A file, which gets what is written.
    Shared(&'a Arc<File>),
    /// A file, which stays as it is.
    Private(&'a File),
}

impl Source<'_> {
    fn file(&self) -> Option<&File> {
        match self {
            Self::Nothing => None,
            Self::Shared(file) => Some(file),
            Self::Private(file) => Some(file),
        }
    }
}

/// Makes errors of steps of an allocation.
#[derive(Clone, Copy)]
struct Failure<'a>(&'a MemoryConfig);

impl<'a> Failure<'a> {
    /// Of the step `what`, with another remedy than a smaller size.
    fn of(
        self,
        what: &'static str,
        hint: &'static str,
    ) -> impl FnOnce(io::Error) -> MemoryError + use<'a> {
        move |cause| MemoryError::Host {
            wanted_mib: self.0.size / layout::MIB,
            what,
            cause,
            hint,
        }
    }

    /// The same of one that reserves huge pages, if they are wanted.
    fn reserving(
        self,
        what: &'static str,
        hint: &'static str,
    ) -> impl FnOnce(io::Error) -> MemoryError + use<'a> {
        move |cause| match self.0.hugepages {
            true => MemoryError::HugePages {
                wanted_mib: self.0.size / layout::MIB,
                pages: self.0.size.div_ceil(HUGE_PAGE as u64),
                cause,
            },
            false => self.of(what, hint)(cause),
        }
    }
}

/// Refuses what no amount of reclaiming could provide, rather than letting the kernel kill us
/// later.
fn check_total(config: &MemoryConfig) -> Result<(), MemoryError> {
    let Ok(info) = sysinfo() else {
        return Ok(());
    };
    let total = info.ram_total().saturating_add(info.swap_total());
    if config.size > total {
        return Err(MemoryError::TooMuch {
            wanted_mib: config.size / layout::MIB,
            total_mib: total / layout::MIB,
        });
    }
    Ok(())
}

fn make_file(config: &MemoryConfig, further: u64) -> Result<File, MemoryError> {
    let failure = Failure(config);
    let file = memfd(config.hugepages).map_err(failure.reserving("creating a memory file", ""))?;
    file.set_len(config.size.saturating_add(further))
        .map_err(failure.of("sizing the memory file", ", or raise the limit `ulimit -f`"))?;
    shared::seal(&file).map_err(failure.of("sealing the memory file", ""))?;
    Ok(file)
}

fn memfd(hugepages: bool) -> io::Result<File> {
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if hugepages {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    }
    Ok(memfd_create(c"guest-ram", flags)?.into())
}

fn map(source: Source<'_>, offset: u64, size: u64, hugepages: bool) -> io::Result<Region> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let kind = match source {
        Source::Nothing => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        Source::Shared(_) => libc::MAP_SHARED,
        Source::Private(_) => libc::MAP_PRIVATE,
    };
    let mut builder = MmapRegionBuilder::new_with_bitmap(size, Marks::with_len(size))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_hugetlbfs(hugepages);
    // Whoever is given guest memory by this file has to see what the guest writes.
    if let Source::Shared(file) = source {
        builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
    }
    if hugepages {
        // They are reserved here, because a later fault that finds none would kill the process. The
        // host aligns them by itself.
        return builder.with_mmap_flags(kind).build().map_err(io_error);
    }
    let flags = kind | libc::MAP_NORESERVE;
    let at = map_aligned(source.file(), offset, size, flags)?;
    // SAFETY: `size` bytes are mapped there, and nobody ever unmaps them.
    let builder = unsafe { builder.with_raw_mmap_pointer(at) };
    builder.with_mmap_flags(flags).build().map_err(io_error)
}

/// Maps `size` bytes at an address that huge pages can be at: the guest's page tables of the host
/// and those of its IOMMU have large entries only where both addresses are aligned alike. Hosts do
/// not align a memfd. The mapping stays until the process ends, as KVM and iommufd may use it.
fn map_aligned(
    file: Option<&File>,
    offset: u64,
    size: usize,
    flags: libc::c_int,
) -> io::Result<*mut u8> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let reserved = size.checked_add(HUGE_PAGE);
    let reserved = reserved.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let room: MmapRegion =
        MmapRegion::build(None, reserved, libc::PROT_NONE, nothing).map_err(io_error)?;
    let skipped = room.as_ptr().addr().next_multiple_of(HUGE_PAGE) - room.as_ptr().addr();
    let at = room.as_ptr().wrapping_add(skipped);
    let file = file.map_or(-1, |file| file.as_raw_fd());
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: this replaces part of `room`, which is ours, holds nothing, and is used by nobody.
    let mapped = unsafe {
        libc::mmap(
            at.cast(),
            size,
            access,
            flags | libc::MAP_FIXED,
            file,
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // What is not replaced of it stays as well, and costs addresses only.
    std::mem::forget(room);
    Ok(at)
}

fn io_error(error: MmapRegionError) -> io::Error {
    match error {
        MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other),
    }
}

/// Puts guest memory that is in a file into huge pages, as far as the host can, and allocates what
/// of it was not yet: for memory that is about to be pinned as a whole. Its contents stay, and it
/// may be in use meanwhile.
///
/// It is for the first `ram` regions: what follows is not there yet.
pub(crate) fn collapse(memory: &GuestRam, ram: usize) {
    for region in memory.iter().take(ram) {
        if region.file_offset().is_some() && region.is_hugetlbfs() != Some(true) {
            collapse_region(region);
        }
    }
}

/// Hosts before Linux 6.1 cannot, nor those that deny huge pages to files, nor without free memory in
/// pieces of that size: small pages do as well.
fn collapse_region(region: &Region) {
    // A piece of a file that has no page at all counts as truncated, and is not made a huge page.
    for offset in (0..region.size()).step_by(HUGE_PAGE) {
        let _: Result<u8, _> = region.get_ref(offset).map(|byte| byte.load());
    }
    let mib = region.size() as u64 / layout::MIB;
    match advise(region, libc::MADV_COLLAPSE) {
        Ok(()) => log::debug!("{mib} MiB of guest memory are in huge pages"),
        Err(error) => {
            log::info!(
                "the host does not put all of {mib} MiB of guest memory into huge pages: {error}"
            );
        }
    }
}

/// Asks for huge pages where the host has some to give, and for none of them to be kept free: a
/// guest's page faults are then a 512th.
fn prefer_huge_pages(region: &Region) {
    // A host without transparent huge pages does without.
    if let Err(error) = advise(region, libc::MADV_HUGEPAGE) {
        log::debug!("the host does not back guest memory by transparent huge pages: {error}");
    }
}

fn populate(region: &Region) -> io::Result<()> {
    advise(region, libc::MADV_POPULATE_WRITE)
}

/// Gives `advice` that changes no contents.
fn advise(region: &Region, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range is the whole of a live mapping of ours, and no advice that is given here
    // changes its contents.
    if unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// All regions as (guest address, host address, size), for whoever maps guest memory elsewhere.
pub(crate) fn regions(memory: &GuestRam) -> impl Iterator<Item = (u64, u64, u64)> {
    use vm_memory::{Address, GuestMemoryRegion};
    memory.iter().map(|region| {
        (
            region.start_addr().raw_value(),
            region.as_ptr().expose_provenance() as u64,
            region.len(),
        )
    })
}

/// The first `ram` regions, if they are in a file, for whoever gives guest memory to devices of the host.
pub(crate) fn pieces(memory: &GuestRam, ram: usize) -> Vec<RamPiece> {
    use vm_memory::{Address, GuestMemoryRegion};
    let piece = |region: &GuestRegionMmap<Marks>| {
        let file = region.file_offset()?;
        Some(RamPiece {
            guest_address: region.start_addr().raw_value(),
            file: Arc::clone(file.arc()),
            offset: file.start(),
            host_address: region.as_ptr().expose_provenance() as u64,
            length: region.len(),
        })
    };
    memory.iter().take(ram).filter_map(piece).collect()
}

/// The blocks of so many bytes that `length` bytes from `start` on consist of, in one region, if that is in a
/// file: each as a piece of its own.
pub(crate) fn blocks(
    memory: &GuestRam,
    start: GuestAddress,
    length: u64,
    block: u64,
) -> Vec<RamPiece> {
    let all = pieces(memory, usize::MAX);
    let of_region = |piece: &&RamPiece| {
        (piece.guest_address..piece.guest_address + piece.length).contains(&start.0)
    };
    let Some(region) = all.iter().find(of_region) else {
        return Vec::new();
    };
    let skipped = start.0 - region.guest_address;
    let most = length.min(region.length - skipped);
    let offsets = (0..most / block.max(1)).map(|number| skipped + number * block);
    let piece = |offset| RamPiece {
        guest_address: region.guest_address + offset,
        file: Arc::clone(&region.file),
        offset: region.offset + offset,
        host_address: region.host_address + offset,
        length: block,
    };
    offsets.map(piece).collect()
}

#[cfg(test)]
mod memory_test;
