//! Kinds of iommufd ioctls, and counters of those issued.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $command:literal, $name:literal;)*) => {
        /// A command of iommufd.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum IoctlKind {
            $($(#[$doc])* $kind,)*
        }

        /// All of them.
        pub const IOCTL_KINDS: &[IoctlKind] = &[$(IoctlKind::$kind,)*];

        impl IoctlKind {
            /// The name that the uAPI has for it, without `IOMMU_`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// The number that `ioctl` takes: `_IO(';', number)`, with neither size nor direction.
            pub(super) const fn command(self) -> libc::Ioctl {
                match self { $(Self::$kind => 0x3B00 | $command,)* }
            }
        }
    };
}

kinds! {
    /// Destroys an object.
    Destroy = 0x80, "DESTROY";
    /// Makes an address space.
    IoasAlloc = 0x81, "IOAS_ALLOC";
    /// Shares a mapping.
    Copy = 0x83, "IOAS_COPY";
    /// Asks what can be mapped.
    AddressRanges = 0x84, "IOAS_IOVA_RANGES";
    /// Maps memory by its address in the process.
    Map = 0x85, "IOAS_MAP";
    /// Removes mappings.
    Unmap = 0x86, "IOAS_UNMAP";
    /// Reads or sets an option.
    Option = 0x87, "OPTION";
    /// Makes a page table.
    HwptAlloc = 0x89, "HWPT_ALLOC";
    /// Asks for the hardware's capabilities.
    HardwareInfo = 0x8A, "GET_HW_INFO";
    /// Switches dirty tracking.
    SetDirtyTracking = 0x8B, "HWPT_SET_DIRTY_TRACKING";
    /// Asks which pages were written.
    DirtyBitmap = 0x8C, "HWPT_GET_DIRTY_BITMAP";
    /// Invalidates a nested page table.
    Invalidate = 0x8D, "HWPT_INVALIDATE";
    /// Makes a queue for page requests.
    FaultQueueAlloc = 0x8E, "FAULT_QUEUE_ALLOC";
    /// Maps memory of a file.
    MapFile = 0x8F, "IOAS_MAP_FILE";
}

/// What was issued since the iommufd was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoctlCounts {
    by_kind: [u64; IOCTL_KINDS.len()],
    /// How many of all of them failed.
    pub failed: u64,
}

impl IoctlCounts {
    /// How many of `kind`.
    pub fn of(&self, kind: IoctlKind) -> u64 {
        self.by_kind.get(kind as usize).copied().unwrap_or(0)
    }

    /// Every kind with its name and number.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        IOCTL_KINDS.iter().map(|kind| (kind.name(), self.of(*kind)))
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    by_kind: [AtomicU64; IOCTL_KINDS.len()],
    failed: AtomicU64,
}

impl Counters {
    pub(super) fn add(&self, kind: IoctlKind) {
        if let Some(counter) = self.by_kind.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> IoctlCounts {
        IoctlCounts {
            by_kind: std::array::from_fn(|kind| {
                self.by_kind
                    .get(kind)
                    .map_or(0, |counter| counter.load(Ordering::Relaxed))
            }),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}
