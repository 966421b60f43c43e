//! The scenarios whose guests have devices of level 1.

use std::time::Duration;

use super::{DEFAULT, Exchange, Host, Initramfs, Model, Refusal, SECOND_STAGE, Scenario};

const NVME: Model = Model::Nvme;
const E1000E: Model = Model::E1000e;
const EDU: Model = Model::Edu;

const ASSIGNED_DEFAULT: Scenario = Scenario {
    unit: Some(SECOND_STAGE),
    initramfs: Initramfs::Tools,
    host: Host {
        devices: &[NVME, E1000E, EDU],
        ..DEFAULT.host
    },
    arguments: DEVICES,
    cpus: 1,
    limit: Duration::from_secs(240),
    ..DEFAULT
};

/// One of each.
const DEVICES: &[&str] = &[
    "--object",
    "iommufd,id=iommufd0",
    "--device",
    "vfio-pci,host={nvme0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={e1000e0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd0",
];

const TWO_EDU: &[&str] = &[
    "--object",
    "iommufd,id=iommufd0",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={edu1},iommufd=iommufd0",
];

/// A device on each of two.
const TWO_IOMMUFDS: &[&str] = &[
    "--object",
    "iommufd,id=iommufd0",
    "--object",
    "iommufd,id=iommufd1,fd={open iommufd}",
    "--device",
    "vfio-pci,host={nvme0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={nvme1},iommufd=iommufd1",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd0",
    "--device",
    "vfio-pci,fd={open edu1},iommufd=iommufd1",
];

/// What `cargo xtask bench shadow` runs: a guest that maps much, with a disk and with a device that
/// is only mapped for.
pub const SHADOW: Scenario = Scenario {
    name: "shadow",
    description: "the guest of `cargo xtask bench shadow`",
    initramfs: Initramfs::Plain,
    host: Host {
        devices: &[NVME, EDU],
        ..DEFAULT.host
    },
    arguments: &[
        "--object",
        "iommufd,id=iommufd0",
        "--device",
        "vfio-pci,host={nvme0},iommufd=iommufd0",
        "--device",
        "vfio-pci,host={edu0},iommufd=iommufd0",
    ],
    command_line: "intel_iommu=on,sm_on",
    plan: "log=IOMMU_batching_disallowed,nvme-speed,map-cost=1/256,nofaults>poweroff",
    ..ASSIGNED_DEFAULT
};

/// The same without the disk, whose time is not that of instructions.
pub const SHADOW_MAPS: Scenario = Scenario {
    name: "shadow-maps",
    description: "the guest of `cargo xtask bench shadow --instructions`",
    plan: "log=IOMMU_batching_disallowed,map-time=1/256,nofaults>poweroff",
    ..SHADOW
};

/// All of them.
pub const ASSIGNED: &[Scenario] = &[
    Scenario {
        name: "assigned",
        description: "nvme, e1000e and edu of level 1, x-flts=off: a file system, a network, DMA and MSI",
        cpus: 2,
        plan: "scalable,smp=2,groups=DMA,translation=second-stage,intremap=x2apic,nvme=256,link,edu,disk,net,\
               interrupts=remapped,huge-pages,nofaults>poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-taken",
        description: "devices go to D3 and come back; level 1 takes them back while the guest uses them, and the guest goes on",
        arguments: &[
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "pcie-root-port,id=rp0",
            "--device",
            "vfio-pci,host={nvme0},iommufd=iommufd0,bus=rp0",
            "--device",
            "vfio-pci,host={e1000e0},iommufd=iommufd0",
            "--device",
            "vfio-pci,host={edu0},iommufd=iommufd0",
        ],
        plan: "scalable,translation=second-stage,power=nvme/e1000e,nvme=16,link,taken-back,edu,disk,nofaults>poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-legacy",
        description: "the same in legacy mode",
        command_line: "intel_iommu=on,sm_off",
        plan: "legacy,groups=DMA,translation=legacy,intremap=x2apic,nvme=256,link,edu,interrupts=remapped,nofaults\
               >poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-pass-through",
        description: "the same with iommu=pt",
        command_line: "intel_iommu=on,sm_on iommu=pt",
        plan: "scalable,groups=identity,translation=pass-through,intremap=x2apic,nvme=256,link,edu,\
               interrupts=remapped,nofaults>poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-no-unit",
        description: "the same without a unit; guest memory is in huge pages, also for level 1's unit",
        unit: None,
        command_line: "vfio.enable_unsafe_noiommu_mode=1",
        plan: "no-unit,intremap=off,nvme=256,link,edu,edu-intx=plain,interrupts=plain,huge-pages=nvme0,nofaults>poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-domains",
        description: "two edu devices in one domain of the guest and in two; INTx",
        host: Host {
            devices: &[EDU, EDU],
            ..DEFAULT.host
        },
        arguments: TWO_EDU,
        plan: "scalable,translation=second-stage,edu-domains,edu-intx=remapped,nofaults>poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-isolation",
        description: "level 1 sees what the guest's tables forbid blocked: no byte changed, also right after an unmap",
        host: Host {
            devices: &[EDU, EDU],
            faults: &["edu0", "edu1"],
            ..DEFAULT.host
        },
        arguments: TWO_EDU,
        plan: "scalable,translation=second-stage,edu-isolation,edu-unmap=10,edu-domains,nofaults>poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-group",
        description: "two edu devices of one IOMMU group, the second plugged in later: they work in one domain, and are blocked in two",
        host: Host {
            devices: &[Model::EduPair],
            // In scalable mode Linux makes no entry for the requester id of the bridge.
            unit: "intremap=on,aw-bits=48",
            faults: &["edu-pair0", "edu-pair1"],
        },
        arguments: &[
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "pcie-root-port,id=rp0",
            "--device",
            "vfio-pci,host={edu-pair0},iommufd=iommufd0,needs-reset=off",
        ],
        command_line: "intel_iommu=on,sm_on",
        plan: "scalable,edu-group,nofaults>poweroff",
        looks: &[
            (
                "together",
                &[Exchange {
                    request: "assigned",
                    line_with: &[&["shadow of"], &[super::NO, "blocked"]],
                    positive: &[],
                }],
            ),
            (
                "apart",
                &[Exchange {
                    request: "assigned",
                    line_with: &[&[
                        "blocked",
                        "shares its IOMMU group of the host with",
                        "the guest wants: shadow of",
                    ]],
                    positive: &["failures"],
                }],
            ),
        ],
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-two-iommufds",
        description: "devices on two iommufds, in one domain of the guest and in two; an iommufd and a device come open (fd=)",
        host: Host {
            devices: &[NVME, NVME, EDU, EDU],
            ..DEFAULT.host
        },
        arguments: TWO_IOMMUFDS,
        plan: "scalable,translation=second-stage,nvme=32/32,edu-domains,nofaults>poweroff",
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-reboot",
        description: "two reboots with devices, one of them by kexec from sm_on to sm_off",
        initramfs: Initramfs::KexecTools,
        plan: "scalable,nvme=16,link,edu,nofaults>kexec:intel_iommu=on,sm_off;\
               legacy,translation=legacy,nvme=16,link,edu,nofaults>restart;\
               scalable,translation=second-stage,nvme=16,link,edu,nofaults>poweroff",
        limit: Duration::from_secs(360),
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "assigned-killed",
        description: "nido is killed in the middle of DMA: nothing is left mapped, and the devices work at once; then the guest \
                      panics in the middle of DMA, and its crash kernel takes the devices over",
        initramfs: Initramfs::KexecTools,
        command_line: "intel_iommu=on,sm_on crashkernel=128M",
        killed: Some("scalable,edu-stays-mapped,nvme-load>stay"),
        plan: "scalable,translation=second-stage,nvme=32,link,edu,edu-stays-mapped,nofaults,nvme-load>kdump;\
               crash-kernel,scalable,look=crashed,nvme=16,link,edu,look=taken-over,disk,nofaults>poweroff",
        looks: &[("crashed", CRASHED), ("taken-over", TAKEN_OVER)],
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "hot-plug",
        description: "an assigned disk, and virtio disks, come and go 20 times while they are read; a kernel without IOAS_MAP_FILE",
        host: Host {
            devices: &[NVME],
            ..DEFAULT.host
        },
        arguments: &[
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "pcie-root-port,id=rp0",
            "--device",
            "pcie-root-port,id=rp1",
            "--device",
            "pcie-root-port,id=rp2",
        ],
        // The lab's kernel has no ASPM, without which it does not ask the firmware for control of
        // hot-plug.
        command_line: "intel_iommu=on,sm_on",
        plan: "scalable,translation=second-stage,hot-plug=20,map-by-address,disk,nofaults>poweroff",
        limit: Duration::from_secs(400),
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "refused",
        description: "devices that nido cannot assign: each is refused with the reason, and nothing changes",
        host: Host {
            devices: &[EDU, Model::BareEdu, Model::Pair],
            ..DEFAULT.host
        },
        refusals: REFUSALS,
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "refused-narrow",
        description: "a unit that is wider than level 1's is refused, with both widths",
        host: Host {
            devices: &[EDU],
            unit: "intremap=on,aw-bits=39,x-scalable-mode=on",
            ..DEFAULT.host
        },
        refusals: &[Refusal {
            name: "narrow",
            device: "edu0",
            driver: Some("vfio-pci"),
            arguments: &[
                "--device",
                "intel-iommu,x-flts=off,aw-bits=48",
                "--object",
                "iommufd,id=iommufd0",
                "--device",
                "vfio-pci,host={edu0},iommufd=iommufd0",
            ],
            says: &["{edu0}", "48", "39", "aw-bits=39"],
        }],
        ..ASSIGNED_DEFAULT
    },
    Scenario {
        name: "refused-unsafe",
        description: "without interrupt remapping in level 1 devices are refused, with what is missing",
        host: Host {
            devices: &[EDU],
            unit: "intremap=off,aw-bits=48,x-scalable-mode=on",
            ..DEFAULT.host
        },
        refusals: &[Refusal {
            name: "unsafe",
            device: "edu0",
            driver: Some("vfio-pci"),
            arguments: ONE_EDU,
            says: &["{edu0}", "interrupt", "allow_unsafe_interrupts"],
        }],
        ..ASSIGNED_DEFAULT
    },
];

/// What the crash kernel has of the one before as long as no driver has the device: edu is where the
/// other kernel's tables have it, with the page that it mapped last.
const CRASHED: &[Exchange] = &[
    Exchange {
        request: "assigned",
        line_with: &[&["00:07.0", "shadow of", "4 KiB in 1 area"]],
        positive: &[],
    },
    Exchange {
        request: "translate 00:07.0 0x1230000",
        line_with: &[&["second stage", "page of 4 KiB"], &["goes to 0x"]],
        positive: &[],
    },
];

/// Its drivers have the devices. (Linux shows no tables in debugfs of a bus with a function that is still where
/// the other kernel has it.)
const TAKEN_OVER: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[&["00:05.0", "shadow of"], &["00:06.0", "shadow of"]],
    positive: &[],
}];

const ONE_EDU: &[&str] = &[
    "--object",
    "iommufd,id=iommufd0",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd0",
];

const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "missing",
        device: "edu0",
        driver: Some("vfio-pci"),
        arguments: &[
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "vfio-pci,host=0000:7f:00.0,iommufd=iommufd0",
        ],
        says: &["0000:7f:00.0"],
    },
    Refusal {
        name: "unbound",
        device: "edu0",
        driver: None,
        arguments: ONE_EDU,
        says: &["{edu0}", "vfio-pci", "driver_override"],
    },
    Refusal {
        name: "other-driver",
        device: "edu0",
        driver: Some("dma_map_benchmark"),
        arguments: ONE_EDU,
        says: &["{edu0}", "dma_map_benchmark", "driver_override"],
    },
    Refusal {
        name: "unknown-object",
        device: "edu0",
        driver: Some("vfio-pci"),
        arguments: &["--device", "vfio-pci,host={edu0},iommufd=other"],
        says: &["other", "--object iommufd,id=other"],
    },
    Refusal {
        name: "twice",
        device: "edu0",
        driver: Some("vfio-pci"),
        arguments: &[
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "vfio-pci,host={edu0},iommufd=iommufd0",
            "--device",
            "vfio-pci,host={edu0},iommufd=iommufd0",
        ],
        says: &["{edu0}"],
    },
    Refusal {
        name: "no-reset",
        device: "bare-edu0",
        driver: Some("vfio-pci"),
        arguments: &[
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "vfio-pci,host={bare-edu0},iommufd=iommufd0",
        ],
        says: &["{bare-edu0}", "reset", "needs-reset=off"],
    },
    Refusal {
        name: "shared-group",
        device: "pair1",
        driver: Some("dma_map_benchmark"),
        arguments: &[
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "vfio-pci,host={pair0},iommufd=iommufd0",
        ],
        says: &["{pair0}", "group", "{pair1}", "dma_map_benchmark"],
    },
    Refusal {
        name: "bridge",
        device: "pair1",
        driver: Some("vfio-pci"),
        arguments: &[
            "--device",
            "intel-iommu,x-flts=on",
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "vfio-pci,host={pair0},iommufd=iommufd0,needs-reset=off",
        ],
        says: &["x-flts=on", "{pair0}", "behind the bridge", "x-flts=off"],
    },
    // Level 1's unit cannot nest.
    Refusal {
        name: "first-stage",
        device: "edu0",
        driver: Some("vfio-pci"),
        arguments: &[
            "--device",
            "intel-iommu,x-flts=on",
            "--object",
            "iommufd,id=iommufd0",
            "--device",
            "vfio-pci,host={edu0},iommufd=iommufd0",
        ],
        says: &[
            "x-flts=on",
            "{edu0}",
            "nested translation",
            "ECAP.NEST",
            "x-flts=off",
        ],
    },
];
