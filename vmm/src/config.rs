//! The configuration of a virtual machine, as typed values. Nothing here opens or allocates
//! anything.

mod movable;
pub(crate) mod stays;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use devices::edu::EduOptions;
use devices::vfio::HostAddress;
use devices::virtio::balloon::BalloonOptions;
use intel_vtd::AddressWidth;

use crate::endpoint::Endpoint;
pub(crate) use movable::Way;

/// A whole virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// ELF with a PVH note, or bzImage.
    pub(crate) kernel: PathBuf,
    /// Initial ramdisk.
    pub(crate) initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub(crate) cmdline: String,
    /// Guest RAM.
    pub(crate) memory: MemoryConfig,
    /// Number of vCPUs, 1 to 255.
    pub(crate) cpus: u8,
    /// PCI functions in the order of their appearance on the command line.
    pub(crate) functions: Vec<FunctionConfig>,
    /// The host's iommufds that devices can be bound to.
    pub(crate) iommufds: Vec<IommufdConfig>,
    /// The remapping unit, if there is one.
    pub(crate) iommu: Option<IommuConfig>,
    /// Whether a guest reset starts the guest again (else it ends the process).
    pub(crate) reboot: bool,
    /// Path of the control socket, if there is to be one.
    pub(crate) control: Option<PathBuf>,
    /// Whether the locks of its disks are taken when it is there, and not while it is made: another
    /// process has them until then, which has chosen its files, too. No option asks for it.
    pub(crate) claimed_later: bool,
    /// Devices that are plugged in once it runs. Of those of the host it is seen before whether they go with it.
    pub(crate) plugged_later: Vec<FunctionConfig>,
}

/// Guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryConfig {
    /// Bytes.
    pub(crate) size: u64,
    /// Backed by huge pages of the host.
    pub(crate) hugepages: bool,
    /// All of it allocated before the guest starts.
    pub(crate) prefault: bool,
    /// In a file, for other processes to map.
    pub(crate) shared: bool,
}

#[cfg(test)]
impl MemoryConfig {
    /// So many bytes, and nothing else that could be wanted.
    pub(crate) const fn plain(size: u64) -> Self {
        Self {
            size,
            hugepages: false,
            prefault: false,
            shared: false,
        }
    }
}

/// A PCI function and where it sits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FunctionConfig {
    /// Its name. No two functions have the same.
    pub(crate) id: Option<String>,
    /// Name of the root port that it is behind; `None` for bus 0.
    pub(crate) bus: Option<String>,
    /// Requested device number on PCI bus 0, 1 to 31; `None` takes the next free one.
    pub(crate) device: Option<u8>,
    /// What it is.
    pub(crate) kind: FunctionKind,
}

/// Kinds of PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FunctionKind {
    /// virtio block device on a file or block device of the host.
    Disk(DiskConfig),
    /// virtio network device on a tap interface.
    Net(NetConfig),
    /// virtio socket device of the kernel's vhost-vsock, with the guest's address.
    Vsock(u32),
    /// virtio device that another process serves.
    VhostUser(VhostUserConfig),
    /// virtio entropy source.
    Rng,
    /// virtio memory balloon.
    Balloon(BalloonOptions),
    /// virtio memory device.
    Memory(MemoryDeviceConfig),
    /// virtio console on the standard streams.
    Console,
    /// The educational device.
    Edu(EduOptions),
    /// A PCI Express root port with a hot-plug slot. It has a name, and is on bus 0.
    RootPort,
    /// A device of the host.
    Vfio(VfioConfig),
}

/// A virtio disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskConfig {
    /// Image file or block device, raw.
    pub(crate) path: PathBuf,
    /// Writes are refused.
    pub(crate) readonly: bool,
    /// What the guest reads as the disk's serial number.
    pub(crate) id: Option<String>,
    /// Queues; `None` decides by the number of vCPUs.
    pub(crate) queues: Option<u16>,
}

/// A virtio memory device: a region of memory in blocks that the guest plugs and unplugs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryDeviceConfig {
    /// Bytes of the region.
    pub(crate) size: u64,
    /// Bytes that the guest is asked to plug at first.
    pub(crate) requested: u64,
    /// Bytes of a block.
    pub(crate) block: u64,
}

/// A virtio network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetConfig {
    /// Name of the tap interface.
    pub(crate) tap: String,
    /// Hardware address shown to the guest; `None` makes one up.
    pub(crate) mac: Option<[u8; 6]>,
    /// Queue pairs; `None` if it is left to us, and to the tap.
    pub(crate) queues: Option<u16>,
    /// Its packets are moved by the kernel's vhost-net.
    pub(crate) vhost: bool,
}

/// A virtio device that another process serves: the back end of vhost-user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VhostUserConfig {
    /// The socket where it listens.
    pub(crate) socket: PathBuf,
    /// What it serves.
    pub(crate) device: Served,
}

/// What another process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// A disk.
    Disk {
        /// Queues; `None` decides by the number of vCPUs, and by what there are.
        queues: Option<u16>,
    },
    /// A network device.
    Net {
        /// As of [`NetConfig`].
        mac: Option<[u8; 6]>,
    },
}

impl Served {
    /// The option that makes such a device, and the key by which nido serves it.
    fn option(self) -> (&'static str, &'static str) {
        match self {
            Self::Disk { .. } => ("--disk", "path=FILE"),
            Self::Net { .. } => ("--net", "tap=NAME"),
        }
    }
}

impl VhostUserConfig {
    /// Why it cannot be in a machine with a remapping unit.
    pub(crate) fn with_a_unit(&self) -> String {
        let (_, ours) = self.device.option();
        format!(
            "{self}: its back end maps all of guest memory and would not be behind intel-iommu; leave out --device intel-iommu, or have nido serve the device ({ours})"
        )
    }
}

impl fmt::Display for VhostUserConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (option, _) = self.device.option();
        write!(f, "{option} vhost-user={}", self.socket.display())
    }
}

/// The Intel VT-d remapping unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IommuConfig {
    /// Guest address width that it translates.
    pub(crate) address_width: AddressWidth,
    /// Scalable mode.
    pub(crate) scalable: bool,
    /// First-stage translation, besides second-stage; `None` decides by what is assigned. On only
    /// where the rest allows it.
    pub(crate) first_stage: Option<bool>,
    /// Interrupt remapping.
    pub(crate) intremap: bool,
    /// Whether the guest must announce new mappings too; `None` decides by what is assigned.
    pub(crate) caching_mode: Option<bool>,
    /// Requests for translations, which devices then keep.
    pub(crate) device_iotlb: bool,
    /// Width of PASIDs; 0 for none.
    pub(crate) pasid_bits: u8,
    /// Page requests.
    pub(crate) page_requests: bool,
    /// Accesses can be made to snoop caches (SC).
    pub(crate) snoop_control: bool,
    /// Walks snoop caches (C, SMPWCS).
    pub(crate) page_walk_coherency: bool,
    /// Translations are kept until they are invalidated.
    pub(crate) keep_translations: bool,
    /// Bytes of the host's memory for shadows; `None` for what goes with the guest's memory.
    pub(crate) shadow_memory: Option<u64>,
    /// PASIDs of each assigned device that are bound at a time; `None` for the default.
    pub(crate) bound_pasids: Option<usize>,
    /// It has been decided before what it is: nothing of it follows the devices of the host. `None` to decide by
    /// them.
    pub(crate) settled: Option<SettledUnit>,
}

/// What was decided of a unit by the devices of a host, besides what a user can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SettledUnit {
    /// Bits of address that it translates.
    pub(crate) address_bits: u8,
    /// Its walks of first-stage tables have pages of 1 GiB.
    pub(crate) pages_of_1g: bool,
    /// They take requests of supervisors.
    pub(crate) supervisor_requests: bool,
    /// They set the extended accessed flag.
    pub(crate) extended_accessed: bool,
    /// They snoop caches, as all walks of scalable mode.
    pub(crate) snooped_walks: bool,
}

/// A snapshot to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotConfig {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Whether the guest goes on while its memory is written; `None` where that can be.
    pub(crate) live: Option<bool>,
}

/// Following what is written to guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FollowConfig {
    /// How long a round takes.
    pub(crate) time: Duration,
    /// How many rounds, each of which has what was written since the one before.
    pub(crate) rounds: u32,
    /// Whose pages are wanted; `None` for all.
    pub(crate) of: Option<WriterKind>,
}

/// Who writes to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriterKind {
    Vcpus,
    /// Devices of this process, and the remapping unit.
    Devices,
    /// Devices that the kernel serves.
    Vhost,
    /// Devices of the host.
    HostDevices,
}

impl WriterKind {
    pub(crate) const ALL: [Self; 4] = [Self::Vcpus, Self::Devices, Self::Vhost, Self::HostDevices];

    /// What users call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vcpus => "vcpus",
            Self::Devices => "devices",
            Self::Vhost => "vhost",
            Self::HostDevices => "host-devices",
        }
    }
}

/// A guest that is to go on in another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MigrateConfig {
    /// Where that one waits.
    pub(crate) to: Endpoint,
    /// How long the guest is meant to stand still at the most.
    pub(crate) pause: Duration,
    /// Whether it may be slowed down before.
    pub(crate) slow_down: bool,
    /// How many connections carry its memory: from 1 to [`Self::STREAMS_MOST`].
    pub(crate) streams: u32,
    /// Devices that it lets go of before.
    pub(crate) unplug: Vec<String>,
}

impl MigrateConfig {
    /// Most connections of a migration.
    pub(crate) const STREAMS_MOST: u32 = 16;
}

impl Config {
    /// Whether devices of the host are assigned, or may be later.
    pub(crate) fn assigns(&self) -> bool {
        !self.iommufds.is_empty()
    }

    /// Whether somebody besides this process and the guest maps guest memory, or may later.
    pub(crate) fn shares_memory(&self) -> bool {
        let served =
            |function: &FunctionConfig| matches!(function.kind, FunctionKind::VhostUser(_));
        self.memory.shared || self.assigns() || self.functions.iter().any(served)
    }

    /// Bytes of the region of the memory device, if there is one.
    pub(crate) fn further_memory(&self) -> u64 {
        let size = |function: &FunctionConfig| match &function.kind {
            FunctionKind::Memory(device) => Some(device.size),
            _ => None,
        };
        self.functions.iter().find_map(size).unwrap_or(0)
    }

    /// Bytes of RAM, and of that region.
    pub(crate) fn all_memory(&self) -> u64 {
        self.memory.size.saturating_add(self.further_memory())
    }

    /// The last PCI bus: behind bus 0, each root port has one. Linux looks for functions in all 32
    /// slots of every bus up to it, and each look is an exit.
    pub(crate) fn last_bus(&self) -> u8 {
        let is_port = |function: &&FunctionConfig| function.kind == FunctionKind::RootPort;
        let ports = self.functions.iter().filter(is_port).count();
        u8::try_from(ports).unwrap_or(u8::MAX)
    }
}

impl IommuConfig {
    /// Whether first-stage translation is shown. `assigns` tells whether devices may be assigned,
    /// for which it may not work.
    pub(crate) fn shows_first_stage(&self, assigns: bool) -> bool {
        self.first_stage.unwrap_or(!assigns)
    }

    /// Whether new mappings are to be announced, which is of use for assigned devices only.
    pub(crate) fn has_caching_mode(&self, assigns: bool) -> bool {
        self.caching_mode.unwrap_or(assigns)
    }
}

/// An iommufd of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IommufdConfig {
    /// Its name. No two iommufds have the same.
    pub(crate) id: String,
    /// Where it comes from.
    pub(crate) source: FileSource,
    /// Its page tables have huge pages.
    pub(crate) huge_pages: bool,
}

/// Where an open file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileSource {
    /// It is opened.
    Path(PathBuf),
    /// It was open when nido started.
    Descriptor(i32),
}

/// A device of the host that is assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VfioConfig {
    /// Which one.
    pub(crate) device: HostDevice,
    /// Name of the iommufd that it is bound to.
    pub(crate) iommufd: String,
    /// Refuse it if the host cannot reset it.
    pub(crate) needs_reset: bool,
    /// Whether the guest sees its PASIDs; `None` where that can be had.
    pub(crate) pasid: Option<bool>,
    /// The same of ATS.
    pub(crate) ats: Option<bool>,
    /// The same of PRI.
    pub(crate) pri: Option<bool>,
}

/// Names a device of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostDevice {
    /// By its address.
    Address(HostAddress),
    /// By its VFIO node, which was open when nido started.
    Descriptor(i32),
}

/// As the option that asks for it.
impl fmt::Display for VfioConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("--device vfio-pci,")?;
        match self.device {
            HostDevice::Address(address) => write!(f, "host={address}")?,
            HostDevice::Descriptor(fd) => write!(f, "fd={fd}")?,
        }
        write!(f, ",iommufd={}", self.iommufd)
    }
}
