//! The scenarios: what the lab runs, as data.

mod assigned;
mod bench_nested;
mod debian;
mod given_back;
mod levels;
mod migrate;
mod upgrade;

use std::time::Duration;

pub use assigned::{ASSIGNED, SHADOW, SHADOW_MAPS};
pub use bench_nested::{MEASURED, NESTED};
pub use levels::{LEVELS, third};

/// Which kernel the guest boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The lab's kernel, as an ELF image with a PVH entry.
    Vmlinux,
    /// The lab's kernel, as a bzImage.
    BzImage,
    /// Debian's stock cloud kernel, with its modules in the initramfs.
    Cloud,
    /// That of a Debian which boots from its own disk.
    Debian,
    /// The bare-metal payload of `tests/payload`.
    Payload,
}

/// What the guest finds in its initramfs besides guest-init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initramfs {
    /// Nothing.
    Plain,
    /// A kernel for kexec.
    Kexec,
    /// The cloud kernel's modules.
    Cloud,
    /// Debian's own, which goes on to its disk.
    Debian,
    /// What makes file systems.
    Tools,
    /// That, and a kernel for kexec.
    KexecTools,
    /// busybox, for a person.
    Shell,
    /// nido, a kernel and an initramfs, for a guest of the guest.
    Host,
    /// The same, and the inner guest has a kernel for kexec.
    HostKexec,
    /// There is no initramfs.
    None,
}

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name on the command line.
    pub name: &'static str,
    /// What it shows, in one line.
    pub description: &'static str,
    /// Kernel.
    pub kernel: Kernel,
    /// Initramfs.
    pub initramfs: Initramfs,
    /// nido's `--device intel-iommu...`, if there is a unit.
    pub unit: Option<&'static str>,
    /// Further arguments of nido. `{edu1}` stands for the address of level 1's second edu, and so
    /// on for each [`Model`].
    pub arguments: &'static [&'static str],
    /// What level 1 has for its guests.
    pub host: Host,
    /// Level 1's kernel serves the guest's network (vhost-net).
    pub vhost: bool,
    /// Processes of level 1 serve the guest's network and one of its disks (vhost-user).
    pub vhost_user: bool,
    /// vCPUs.
    pub cpus: u32,
    /// Memory, as nido's option has it.
    pub memory: &'static str,
    /// Parameters for the guest kernel.
    pub command_line: &'static str,
    /// What the guest does ([`crate::plan`]).
    pub plan: &'static str,
    /// The plan causes DMA faults.
    pub faults: bool,
    /// What the agent asks nido's control socket when the guest has carried out its plan; the last
    /// request ends the guest, whose plan says `stay`. No control socket if there is nothing
    /// to ask.
    pub control: &'static [Exchange],
    /// What the agent asks when the guest has it look, which is its check `look`.
    pub look: &'static [Exchange],
    /// What it asks when the guest has it look at something by name, as in `look=off`.
    pub looks: &'static [(&'static str, &'static [Exchange])],
    /// A plan that ends with `stay`, for a guest before this one: nido is killed in the middle of
    /// it.
    pub killed: Option<&'static str>,
    /// Command lines that nido must refuse; then there is no guest.
    pub refusals: &'static [Refusal],
    /// Limit for the guest, from nido's start to its end, on a machine that does nothing else.
    pub limit: Duration,
}

/// Stands before words that no line may contain all of.
pub const NO: &str = "!";

impl Scenario {
    /// What the agent asks when it is to look at `name`.
    pub fn look_at(&self, name: &str) -> Option<&'static [Exchange]> {
        if name.is_empty() {
            return Some(self.look);
        }
        let named = self.looks.iter().find(|(other, _)| *other == name);
        named.map(|(_, exchanges)| *exchanges)
    }
}

/// A request to nido's control socket, and what is to be found in the answer.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The request.
    pub request: &'static str,
    /// For each of these, a line that contains all words; behind [`NO`], no line that contains the
    /// others. A refusal is wanted if one begins with `error: `.
    pub line_with: &'static [&'static [&'static str]],
    /// Lines `name: value` whose values are above zero.
    pub positive: &'static [&'static str],
}

/// A device that level 0 emulates and level 1 assigns to its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// A disk of [`Model::DISK_SIZE`] bytes.
    Nvme,
    /// An Ethernet interface, on one link with an interface that level 1 keeps.
    E1000e,
    /// QEMU's educational device.
    Edu,
    /// One that is no port's, so that nothing can reset it.
    BareEdu,
    /// Two test devices behind one conventional bridge, which makes them one group.
    Pair,
    /// Two edu devices behind one conventional bridge, which makes them one group.
    EduPair,
}

impl Model {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Nvme,
        Self::E1000e,
        Self::Edu,
        Self::BareEdu,
        Self::Pair,
        Self::EduPair,
    ];
    /// Bytes of a disk.
    pub const DISK_SIZE: u64 = 512 << 20;

    /// Name in arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::E1000e => "e1000e",
            Self::Edu => "edu",
            Self::BareEdu => "bare-edu",
            Self::Pair => "pair",
            Self::EduPair => "edu-pair",
        }
    }

    /// Vendor and device id.
    pub fn ids(self) -> (u16, u16) {
        match self {
            Self::Nvme => (0x1B36, 0x0010),
            Self::E1000e => (0x8086, 0x10D3),
            Self::Edu | Self::BareEdu | Self::EduPair => (0x1234, 0x11E8),
            Self::Pair => (0x1B36, 0x0005),
        }
    }

    /// How many functions it is.
    pub fn functions(self) -> usize {
        match self {
            Self::Pair | Self::EduPair => 2,
            _ => 1,
        }
    }

    /// Whether a function with its ids at `address` is one.
    pub fn is_at(self, address: &str) -> bool {
        let on_root_bus = address.starts_with("0000:00:");
        // Behind a port there is one device only.
        let alone = on_root_bus || address.ends_with(":00.0");
        on_root_bus == (self == Self::BareEdu)
            && alone != matches!(self, Self::Pair | Self::EduPair)
    }

    /// The requester id that the unit knows a function at `address` by: behind a bridge to
    /// conventional PCI, device 0 of the bus stands for all.
    pub fn requester(self, address: &str) -> String {
        match (self, address.rsplit_once(':')) {
            (Self::Pair | Self::EduPair, Some((bus, _))) => format!("{bus}:00.0"),
            _ => address.to_owned(),
        }
    }
}

/// What level 0 gives level 1, and what level 1 may say of it.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Devices, each behind a root port of its own unless [`Model`] says otherwise.
    pub devices: &'static [Model],
    /// Properties of level 1's remapping unit.
    pub unit: &'static str,
    /// The devices whose DMA level 1's unit must have blocked, as in `edu0`; it must not have
    /// blocked another's.
    pub faults: &'static [&'static str],
}

/// Properties of level 1's unit, where a scenario asks for no others. QEMU has 39 bits unless told
/// otherwise.
pub const HOST_UNIT: &str = "intremap=on,aw-bits=48,x-scalable-mode=on";

/// A command line that nido refuses, with nothing changed.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// What it is about, in a word.
    pub name: &'static str,
    /// A device that someone else drives meanwhile.
    pub device: &'static str,
    /// The driver's name, or nobody.
    pub driver: Option<&'static str>,
    /// nido's arguments besides the kernel.
    pub arguments: &'static [&'static str],
    /// What the message must say.
    pub says: &'static [&'static str],
}

const FIRST_STAGE: &str = "intel-iommu,x-flts=on";
const SECOND_STAGE: &str = "intel-iommu,x-flts=off";

const DEVICES: &[&str] = &["--device", "virtio-rng-pci", "--device", "edu"];
const DEVICES_WITH_CONSOLE: &[&str] = &[
    "--device",
    "virtio-console",
    "--device",
    "virtio-rng-pci",
    "--device",
    "edu",
];
const SCALABLE: &str = "intel_iommu=on,sm_on";

const DEFAULT: Scenario = Scenario {
    name: "",
    description: "",
    kernel: Kernel::Vmlinux,
    initramfs: Initramfs::Plain,
    unit: Some(FIRST_STAGE),
    arguments: DEVICES,
    host: Host {
        devices: &[],
        unit: HOST_UNIT,
        faults: &[],
    },
    vhost: false,
    vhost_user: false,
    cpus: 2,
    memory: "512M",
    command_line: SCALABLE,
    plan: ">poweroff",
    faults: false,
    control: &[],
    look: &[],
    looks: &[],
    killed: None,
    refusals: &[],
    limit: Duration::from_secs(120),
};

/// What scenario `storm` asks, while the next queue is under way.
const STORM: &[Exchange] = &[
    Exchange {
        request: "stats",
        line_with: &[&["register_accesses_below_1us"]],
        positive: &["left_to_background", "waits"],
    },
    Exchange {
        request: "iommu",
        line_with: &[&["GSTS", "QIES"]],
        positive: &[],
    },
    Exchange {
        request: "quit",
        line_with: &[],
        positive: &[],
    },
];

/// What scenario `control` asks. Slot 6 is edu's, and 0x1230000 is where its driver in guest-init
/// maps a page.
const CONTROL: &[Exchange] = &[
    Exchange {
        request: "iommu",
        line_with: &[&["GSTS", "TES", "QIES", "IRES"], &["RTADDR", "TTM"]],
        positive: &[],
    },
    Exchange {
        request: "bindings",
        line_with: &[&["00:01.0", "first-stage"], &["00:06.0", "first-stage"]],
        positive: &[],
    },
    Exchange {
        request: "translate 00:06.0 0x1230000",
        line_with: &[
            &["PASID entry"],
            &["first stage 1", "page of 4 KiB"],
            &["goes to 0x", "permits: read, write"],
        ],
        positive: &[],
    },
    Exchange {
        request: "translate 00:06.0 0x7654321000",
        line_with: &[&["first stage", "not present"], &["blocked", "0x71"]],
        positive: &[],
    },
    Exchange {
        request: "stats",
        line_with: &[&["queue_errors: 0"], &["faults_recorded: 0"]],
        positive: &["pasid_iotlb_invalidations", "waits", "interrupts_remapped"],
    },
    Exchange {
        request: "quit",
        line_with: &[&["ends"]],
        positive: &[],
    },
];

/// What scenario `pause` asks.
const PAUSE: &[Exchange] = &[
    Exchange {
        request: "pause",
        line_with: &[&["the guest is paused"]],
        positive: &[],
    },
    Exchange {
        request: "status",
        line_with: &[&["state: paused"]],
        positive: &[],
    },
    // What looks at the guest works meanwhile.
    Exchange {
        request: "bindings",
        line_with: &[&["00:01.0", "first-stage"]],
        positive: &[],
    },
    Exchange {
        request: "quit",
        line_with: &[&["ends"]],
        positive: &[],
    },
];

/// What scenario `keep` asks.
const KEEP: &[Exchange] = &[
    Exchange {
        request: "stats",
        line_with: &[
            &["queue_errors: 0"],
            &["faults_recorded: 0"],
            &["kept_stale: 0"],
        ],
        positive: &["kept_hits", "table_walks", "pasid_iotlb_invalidations"],
    },
    Exchange {
        request: "quit",
        line_with: &[&["ends"]],
        positive: &[],
    },
];

/// The scenarios that run if nobody names any, in the order in which they do.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    // Those that take long come first, so that the others fill the time beside them.
    LEVELS
        .iter()
        .chain(ASSIGNED)
        .chain([&debian::DEBIAN])
        .chain(SCENARIOS)
        .chain(migrate::SCENARIOS)
        .chain(given_back::SCENARIOS)
        .chain(upgrade::SCENARIOS)
}

/// Those that run only if they are named, as they take longer.
pub fn on_request() -> impl Iterator<Item = &'static Scenario> {
    migrate::ON_REQUEST.iter().chain(upgrade::ON_REQUEST)
}

/// The scenarios whose guests have devices of nido's own.
const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "first-stage",
        description: "x-flts=on: DMA through first-stage tables; disk, network, entropy, edu; x2APIC remapping",
        plan: "scalable,smp=2,groups=DMA-FQ,translation=first-stage,invalidation=lazy,intremap=x2apic,disk=2,net,rng,serial,edu,\
               interrupts=remapped,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "second-stage",
        description: "x-flts=off: the same through second-stage tables; it is saved at work, and goes on",
        unit: Some(SECOND_STAGE),
        arguments: DEVICES_WITH_CONSOLE,
        plan: "scalable,smp=2,groups,translation=second-stage,intremap=x2apic,moves=1:disk+net+edu,disk=2,net,rng,console,edu,interrupts=remapped,\
               nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "legacy",
        description: "the guest says sm_off: the same in legacy mode; it is saved at work, and goes on",
        command_line: "intel_iommu=on,sm_off",
        arguments: DEVICES_WITH_CONSOLE,
        plan: "legacy,smp=2,groups,translation=legacy,intremap=x2apic,moves=1:disk+net+edu,disk=2,net,rng,console,edu,interrupts=remapped,\
               nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "pass-through",
        description: "the guest says iommu=pt: pass-through entries, and edu through tables of its own",
        command_line: "intel_iommu=on,sm_on iommu=pt",
        plan: "scalable,smp=2,groups=identity,translation=pass-through,intremap=x2apic,disk=2,net,rng,edu,\
               interrupts=remapped,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "strict",
        description: "the guest says iommu.strict=1: every unmap is invalidated at once",
        command_line: "intel_iommu=on,sm_on iommu.strict=1",
        plan: "scalable,smp=2,groups=DMA,translation=first-stage,invalidation=strict,intremap=x2apic,moves=1:disk+net+edu,disk=2,net,rng,edu,\
               interrupts=remapped,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "vhost",
        description: "vhost-net with two queue pairs, and vhost-vsock, behind first-stage tables: lazy (paused ten times at work, and going on from two snapshots), strict (each packet is remapped), legacy mode",
        vhost: true,
        initramfs: Initramfs::Kexec,
        plan: "scalable,groups=DMA-FQ,translation=first-stage,invalidation=lazy,ping,pauses=10:net+vsock+edu,moves=2:net+edu+vsock-ends,net,net-queues=2,vsock,edu,interrupts=remapped,nofaults>\
               kexec:iommu.strict=1;\
               scalable,groups=DMA,translation=first-stage,invalidation=strict,ping,net,net-queues=2,vsock,nofaults>kexec:intel_iommu=on,sm_off;\
               legacy,translation=legacy,ping,net,vsock,nofaults>poweroff",
        limit: Duration::from_secs(300),
        ..DEFAULT
    },
    Scenario {
        name: "vhost-second-stage",
        description: "vhost-net with two queue pairs, and vhost-vsock, behind second-stage tables, strict; then pass-through",
        unit: Some(SECOND_STAGE),
        vhost: true,
        initramfs: Initramfs::Kexec,
        command_line: "intel_iommu=on,sm_on iommu.strict=1",
        plan: "scalable,groups=DMA,translation=second-stage,invalidation=strict,ping,net,net-queues=2,vsock,edu,interrupts=remapped,nofaults>\
               kexec:iommu=pt;\
               scalable,groups=identity,translation=pass-through,ping,net,vsock,nofaults>poweroff",
        limit: Duration::from_secs(300),
        ..DEFAULT
    },
    Scenario {
        name: "vhost-no-unit",
        description: "vhost-net with two queue pairs, and vhost-vsock, without a unit, by the table of guest memory, while nido's threads sleep; once more after a reboot",
        vhost: true,
        unit: None,
        command_line: "",
        plan: "no-unit,ping,net,net-queues=2,vsock,asleep=net:net-,asleep=vsock:vsk-,interrupts=plain,nofaults>restart;\
               no-unit,net,vsock,asleep=net:net-,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "vhost-user",
        description: "QEMU's storage daemon serves a disk and passt the network (vhost-user), while nido's threads sleep, over a reboot; a pause is refused; no unit",
        vhost_user: true,
        unit: None,
        command_line: "",
        plan: "no-unit,smp=2,disk,net,asleep=disk:blk-00:02.0,asleep=net:net-,look,interrupts=plain,nofaults>restart;\
               no-unit,disk,net,nofaults>poweroff",
        look: &[Exchange {
            request: "pause",
            line_with: &[&[
                "error: the guest cannot be paused: 00:0",
                "by vhost-user",
                "start the guest without it",
            ]],
            positive: &[],
        }],
        ..DEFAULT
    },
    Scenario {
        name: "keep",
        description: "x-keep-translations=on, strict: the unit forgets what is invalidated and nothing else; 1000 remaps",
        unit: Some("intel-iommu,x-flts=on,x-keep-translations=on"),
        command_line: "intel_iommu=on,sm_on iommu.strict=1",
        plan: "scalable,smp=2,groups=DMA,translation=first-stage,invalidation=strict,intremap=x2apic,disk=2,net,rng,edu,\
               edu-remap=1000,interrupts=remapped,nofaults>stay",
        control: KEEP,
        // Much of the time is the remaps.
        limit: Duration::from_secs(300),
        ..DEFAULT
    },
    Scenario {
        name: "no-unit",
        description: "no intel-iommu at all: everything works untranslated, in memory that others can map",
        unit: None,
        memory: "512M,shared=on",
        command_line: "vfio.enable_unsafe_noiommu_mode=1",
        plan: "no-unit,smp=2,intremap=off,moves=1:disk+net+edu,disk=2,net,rng,edu,edu-intx=plain,interrupts=plain,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "caching-mode",
        description: "caching-mode=on with second stage: the guest announces every new mapping too",
        unit: Some("intel-iommu,x-flts=off,caching-mode=on"),
        plan: "scalable,smp=2,groups=DMA,translation=second-stage,log=IOMMU_batching_disallowed,intremap=x2apic,disk=2,\
               net,rng,edu,interrupts=remapped,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "five-level",
        description: "aw-bits=57: first-stage tables of five levels",
        unit: Some("intel-iommu,x-flts=on,aw-bits=57"),
        plan: "scalable,smp=2,translation=first-stage,intremap=x2apic,disk=2,net,rng,edu,interrupts=remapped,\
               nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "sva",
        description: "PASIDs, ATS and page requests: edu works on a process's own addresses",
        unit: Some("intel-iommu,x-flts=on,device-iotlb=on,pasid-bits=20,svm=on"),
        arguments: &[
            "--device",
            "edu,ats=on,pasid=on,pri=on,dma_mask=0xffffffffffffffff",
        ],
        plan: "scalable,smp=2,translation=first-stage,intremap=x2apic,moves=1:disk+net+sva,disk=2,net,sva,interrupts=remapped,nofaults\
               >poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "no-remapping",
        description: "intremap=off: DMA is translated, interrupts are not remapped",
        unit: Some("intel-iommu,x-flts=on,intremap=off"),
        // Else the guest's VFIO gives out no device.
        command_line: "intel_iommu=on,sm_on iommufd.allow_unsafe_interrupts=1",
        plan: "scalable,smp=2,translation=first-stage,intremap=off,disk=2,net,rng,edu,interrupts=plain,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "four-cpus",
        description: "four vCPUs, first stage; four queues of a disk, four pairs of a network device and four MSIs of edu, each on a vCPU of its own",
        arguments: &[
            "--device",
            "virtio-rng-pci",
            "--device",
            "edu,msi-vectors=4",
        ],
        cpus: 4,
        plan: "scalable,smp=4,translation=first-stage,intremap=x2apic,disk-queues=4,disk=4,net,net-queues=4,rng,edu,edu-msi,\
               interrupts=remapped,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "one-cpu",
        description: "one vCPU and the kernel as bzImage",
        kernel: Kernel::BzImage,
        cpus: 1,
        plan: "scalable,smp=1,translation=first-stage,intremap=x2apic,disk,net,rng,edu,interrupts=remapped,\
               nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "intx",
        description: "edu's level-triggered pin through the IOAPIC and its remapping entry, to each vCPU in turn",
        plan: "scalable,smp=2,intremap=x2apic,moves=1:disk+net+edu,edu-intx=remapped,edu,disk=2,net,interrupts=remapped,nofaults>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "dma-map-benchmark",
        description: "Linux measures its own DMA mappings, first stage and strict, by one thread and by two",
        command_line: "intel_iommu=on,sm_on iommu.strict=1",
        plan: "scalable,smp=2,translation=first-stage,invalidation=strict,dma-map-benchmark=1/2,disk=2,net,nofaults\
               >poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "control",
        description: "the control socket tells what a running guest has set up, and ends it",
        plan: "scalable,smp=2,translation=first-stage,disk=2,net,nofaults,edu-stays-mapped>stay",
        control: CONTROL,
        ..DEFAULT
    },
    Scenario {
        name: "pause",
        description: "a guest is paused twenty times while its disks, its network and edu are at work, and ended while it is paused",
        plan: "scalable,smp=2,translation=first-stage,pauses=20:disk+net+edu,disk=2,net,edu,interrupts=remapped,nofaults>stay",
        control: PAUSE,
        limit: Duration::from_secs(240),
        ..DEFAULT
    },
    Scenario {
        name: "snapshot",
        description: "a guest is saved three times while its disks, its network and edu are at work, and goes on in another nido; then once more, the same",
        plan: "scalable,smp=2,translation=first-stage,moves=2:disk+net+edu,moves=1/twice:disk+memory+edu,disk=2,net,edu,rng,interrupts=remapped,nofaults>poweroff",
        arguments: &[
            "--device",
            "edu",
            "--device",
            "pcie-root-port,id=rp0",
            "--device",
            "virtio-rng-pci,bus=rp0",
        ],
        limit: Duration::from_secs(240),
        ..DEFAULT
    },
    Scenario {
        name: "snapshot-live",
        description: "the same of a guest that goes on meanwhile: what it did since then is forgotten",
        plan: "scalable,smp=2,translation=first-stage,moves=2/live/twice:memory+edu,disk=2,net,edu,rng,interrupts=remapped,nofaults>poweroff",
        limit: Duration::from_secs(240),
        ..DEFAULT
    },
    Scenario {
        name: "fault-first-stage",
        description: "DMA to an unmapped address: reported with source, address and reason, no byte changed",
        plan: "scalable,edu-fault=0x71,disk=2,net>poweroff",
        faults: true,
        ..DEFAULT
    },
    Scenario {
        name: "fault-second-stage",
        description: "the same with second-stage tables",
        unit: Some(SECOND_STAGE),
        plan: "scalable,edu-fault=0x79,disk=2,net>poweroff",
        faults: true,
        ..DEFAULT
    },
    Scenario {
        name: "fault-legacy",
        description: "the same in legacy mode",
        command_line: "intel_iommu=on,sm_off",
        plan: "legacy,edu-fault=0x05/0x06,disk=2,net>poweroff",
        faults: true,
        ..DEFAULT
    },
    Scenario {
        name: "reboot",
        description: "three reboots from inside, one of them by kexec from sm_on to sm_off",
        initramfs: Initramfs::Kexec,
        plan: "scalable,translation=first-stage,moves=1:disk+net+edu,disk=2,net,edu,nofaults>restart;\
               scalable,translation=first-stage,disk=2,nofaults>kexec:intel_iommu=on,sm_off;\
               legacy,translation=legacy,disk=2,edu,nofaults>restart;\
               scalable,translation=first-stage,disk=2,net,rng,nofaults>poweroff",
        limit: Duration::from_secs(240),
        ..DEFAULT
    },
    Scenario {
        name: "cloud-kernel",
        description: "Debian's stock cloud kernel, with our init and its modules",
        kernel: Kernel::Cloud,
        initramfs: Initramfs::Cloud,
        arguments: &["--device", "virtio-rng-pci"],
        plan: "smp=2,scalable,intremap=x2apic,disk=2,net,rng,interrupts=remapped,nofaults>poweroff",
        limit: Duration::from_secs(180),
        ..DEFAULT
    },
    Scenario {
        name: "payload",
        description: "bare metal: legacy and scalable DMA, INTx and MSI through remapping, invalidations from four vCPUs at once",
        kernel: Kernel::Payload,
        initramfs: Initramfs::None,
        arguments: &["--device", "edu"],
        cpus: 4,
        plan: "payload-start,payload-cpus,payload-edu,payload-legacy,payload-unit,payload-ioapic,payload-interrupts,\
               payload-invalidations,payload-moves,payload>poweroff",
        ..DEFAULT
    },
    Scenario {
        name: "storm",
        description: "bare metal: full queues of fenced waits beside DMA, each other of which changes a remapping entry, BARs \
                      that move and pins that change hold up neither vCPUs nor the control socket, and nido ends in the midst",
        kernel: Kernel::Payload,
        initramfs: Initramfs::None,
        arguments: &[
            "--device",
            "edu",
            "--device",
            "virtio-rng-pci",
            "--cmdline",
            "storm",
        ],
        cpus: 4,
        plan: "payload-start,payload-cpus,payload-edu,payload-legacy,payload-unit,payload-ioapic,payload-storm>stay",
        control: STORM,
        ..DEFAULT
    },
];

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    let mut scenarios = all().chain(on_request());
    scenarios.find(|scenario| scenario.name == name)
}

/// What `cargo xtask boot` runs: an interactive shell, or the guest's self-check.
pub const BOOT: Scenario = Scenario {
    name: "boot",
    description: "the guest of `cargo xtask boot`",
    plan: "scalable,smp=2,translation=first-stage,intremap=x2apic,disk=2,net,rng,edu,interrupts=remapped,nofaults>poweroff",
    ..DEFAULT
};

/// Whether Linux boots at all.
pub const PROBE: Scenario = Scenario {
    name: "probe",
    description: "does a Linux guest boot?",
    cpus: 1,
    ..DEFAULT
};

/// A plan of `scenario` parses, and its guest knows each check: otherwise only the guest would find
/// out.
#[cfg(test)]
fn assert_plan_is_known(scenario: &Scenario, plan: &str) {
    let payload = [
        include_str!("../../payload/src/main.rs"),
        include_str!("../../payload/src/checks.rs"),
        include_str!("../../payload/src/smp.rs"),
        include_str!("../../payload/src/storm.rs"),
    ];
    for check in crate::plan::parse(plan)
        .unwrap()
        .iter()
        .flat_map(|step| &step.checks)
    {
        let name = &check.name;
        let known = match scenario.kernel {
            // Either given to a function that reports, or in the text of the line.
            Kernel::Payload => payload.iter().any(|source| {
                source.contains(&format!("\"{name}\""))
                    || source.contains(&format!("@nido report {name} "))
            }),
            _ => crate::guest::checks::is_known(name),
        };
        assert!(known, "{}: no check is called {name}", scenario.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    #[test]
    fn a_guest_that_stays_is_ended_by_the_control_socket() {
        for scenario in all() {
            let steps = plan::parse(scenario.plan).unwrap();
            let stays = steps.iter().any(|step| step.end == plan::End::Stay);
            let last = scenario.control.last().map(|exchange| exchange.request);
            assert_eq!(stays, last == Some("quit"), "{}", scenario.name);
        }
    }

    #[test]
    fn every_plan_parses_with_known_checks_and_every_name_is_unique() {
        assert_plan_is_known(&BOOT, BOOT.plan);
        assert_plan_is_known(&PROBE, PROBE.plan);
        let every = || all().chain(on_request());
        for (index, scenario) in every().enumerate() {
            for plan in [scenario.plan].into_iter().chain(scenario.killed) {
                assert_plan_is_known(scenario, plan);
            }
            assert!(
                !scenario.plan.contains(' '),
                "{}: a plan is one word of a command line",
                scenario.name
            );
            assert!(
                every()
                    .skip(index + 1)
                    .all(|other| other.name != scenario.name)
            );
        }
    }
}
