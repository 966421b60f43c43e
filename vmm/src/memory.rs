//! Guest RAM, mapped in as many pieces as the address map has.
//!
//! It reserves nothing: the host gives pages when the guest first touches them, huge ones where it
//! has transparent huge pages. It is anonymous memory; a machine that may be given devices of the
//! host has it in a memfd, which iommufd maps (`IOMMU_IOAS_MAP_FILE`).

#![allow(unsafe_code)] // madvise, which no library can know to be harmless.

use std::fs::File;
use std::io;
use std::sync::Arc;

use intel_vtd_host::RamPiece;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sysinfo::sysinfo;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

use crate::config::MemoryConfig;
use crate::layout;

/// Guest RAM that devices and vCPUs share.
pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

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
/// huge pages are always in a file.
pub(crate) fn allocate(config: &MemoryConfig, backing: Backing) -> Result<Memory, MemoryError> {
    check_total(config)?;
    let failure = Failure(config);
    let file = match backing {
        Backing::Anonymous if !config.hugepages => None,
        _ => Some(Arc::new(make_file(config)?)),
    };
    let mut offset = 0;
    let mut regions = Vec::new();
    for (address, size) in layout::ram(config.size) {
        let region = map(file.as_ref(), offset, size, config.hugepages)
            .map_err(failure.reserving("mapping the memory", ", or raise the limit `ulimit -v`"))?;
        if !config.hugepages {
            prefer_huge_pages(&region);
        }
        if config.prefault {
            let hint = ", or leave out prefault=on";
            populate(&region).map_err(failure.of("allocating all pages", hint))?;
        }
        regions.extend(GuestRegionMmap::new(region, GuestAddress(address)));
        offset += size;
    }
    let memory = GuestMemoryMmap::from_regions(regions)
        .map_err(io::Error::other)
        .map_err(failure.of("laying out the memory", ""))?;
    Ok(Arc::new(memory))
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
                pages: self.0.size.div_ceil(2 * layout::MIB),
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

fn make_file(config: &MemoryConfig) -> Result<File, MemoryError> {
    let failure = Failure(config);
    let file = memfd(config.hugepages).map_err(failure.reserving("creating a memory file", ""))?;
    file.set_len(config.size)
        .map_err(failure.of("sizing the memory file", ", or raise the limit `ulimit -f`"))?;
    Ok(file)
}

fn memfd(hugepages: bool) -> io::Result<File> {
    let mut flags = MFdFlags::MFD_CLOEXEC;
    if hugepages {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    }
    Ok(memfd_create(c"guest-ram", flags)?.into())
}

fn map(
    file: Option<&Arc<File>>,
    offset: u64,
    size: u64,
    hugepages: bool,
) -> io::Result<MmapRegion> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let kind = match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    // Huge pages are reserved here, because a later fault that finds none would kill the process.
    let flags = kind | if hugepages { 0 } else { libc::MAP_NORESERVE };
    let file = file.map(|file| FileOffset::from_arc(Arc::clone(file), offset));
    MmapRegion::build(file, size, libc::PROT_READ | libc::PROT_WRITE, flags).map_err(|error| {
        match error {
            vm_memory::mmap::MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        }
    })
}

/// Asks for huge pages where the host has some to give, and for none of them to be kept free: a
/// guest's page faults are then a 512th.
fn prefer_huge_pages(region: &MmapRegion) {
    // A host without transparent huge pages does without.
    if let Err(error) = advise(region, libc::MADV_HUGEPAGE) {
        log::debug!("the host does not back guest memory by transparent huge pages: {error}");
    }
}

fn populate(region: &MmapRegion) -> io::Result<()> {
    advise(region, libc::MADV_POPULATE_WRITE)
}

/// Of `advice` that changes no contents.
fn advise(region: &MmapRegion, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range is the whole of a live mapping of ours, and neither advice that is given here
    // changes its contents.
    if unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// All regions as (guest address, host address, size), for whoever maps guest memory elsewhere.
pub(crate) fn regions(memory: &GuestMemoryMmap<()>) -> impl Iterator<Item = (u64, u64, u64)> {
    use vm_memory::{Address, GuestMemoryRegion};
    memory.iter().map(|region| {
        (
            region.start_addr().raw_value(),
            region.as_ptr().expose_provenance() as u64,
            region.len(),
        )
    })
}

/// All regions that are in a file, for whoever gives guest memory to devices of the host.
pub(crate) fn pieces(memory: &GuestMemoryMmap<()>) -> Vec<RamPiece> {
    use vm_memory::{Address, GuestMemoryRegion};
    let piece = |region: &GuestRegionMmap<()>| {
        let file = region.file_offset()?;
        Some(RamPiece {
            guest_address: region.start_addr().raw_value(),
            file: Arc::clone(file.arc()),
            offset: file.start(),
            host_address: region.as_ptr().expose_provenance() as u64,
            length: region.len(),
        })
    };
    memory.iter().filter_map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_beyond_what_the_machine_has_is_refused_with_a_remedy() {
        let config = MemoryConfig {
            size: 1 << 60,
            hugepages: false,
            prefault: false,
        };
        let message = allocate(&config, Backing::File)
            .expect_err("too much")
            .to_string();
        assert!(
            message.starts_with("--memory 1099511627776M: this machine has "),
            "{message}"
        );
        assert!(message.ends_with("write a smaller size"), "{message}");
    }

    #[test]
    fn both_sides_of_the_hole_are_backed_and_the_hole_is_not() {
        let config = MemoryConfig {
            size: 0xc020_0000,
            hugepages: false,
            prefault: false,
        };
        let memory = allocate(&config, Backing::Anonymous).expect("memory");
        memory
            .write_obj(1u64, GuestAddress(0xbfff_fff8))
            .expect("last word below the hole");
        memory
            .write_obj(2u64, GuestAddress(0x1_0000_0000))
            .expect("first word above the hole");
        assert!(memory.write_obj(3u64, GuestAddress(0xc000_0000)).is_err());
        assert_eq!(
            memory
                .read_obj::<u64>(GuestAddress(0xbfff_fff8))
                .expect("read"),
            1
        );
    }

    #[test]
    fn pieces_tell_where_each_byte_is_in_the_file() {
        use std::os::unix::fs::FileExt;
        let config = MemoryConfig {
            size: 0xc020_0000,
            hugepages: false,
            prefault: false,
        };
        let memory = allocate(&config, Backing::File).expect("memory");
        let pieces = pieces(&memory);
        assert_eq!(
            pieces.iter().map(|piece| piece.length).sum::<u64>(),
            config.size
        );
        for piece in &pieces {
            let last = piece.length - 8;
            memory
                .write_obj(
                    piece.guest_address,
                    GuestAddress(piece.guest_address + last),
                )
                .expect("memory");
            let mut word = [0; 8];
            piece
                .file
                .read_exact_at(&mut word, piece.offset + last)
                .expect("file");
            assert_eq!(u64::from_ne_bytes(word), piece.guest_address);
        }
    }

    #[test]
    fn prefaulted_memory_is_resident() {
        let config = MemoryConfig {
            size: 0x100_0000,
            hugepages: false,
            prefault: true,
        };
        for backing in [Backing::Anonymous, Backing::File] {
            assert!(allocate(&config, backing).is_ok());
        }
    }

    #[test]
    fn anonymous_memory_is_zero_and_has_no_file() {
        let config = MemoryConfig {
            size: 0x100_0000,
            hugepages: false,
            prefault: false,
        };
        let memory = allocate(&config, Backing::Anonymous).expect("memory");
        assert!(pieces(&memory).is_empty());
        let word: u64 = memory.read_obj(GuestAddress(0)).expect("memory");
        assert_eq!(word, 0);
    }
}
