//! The scenarios of three levels: a guest of nido that is a host, whose unit can nest, and runs
//! nido again.

use std::time::Duration;

use super::{DEFAULT, Exchange, FIRST_STAGE, Initramfs, NO, SECOND_STAGE, Scenario};

/// Level 2. Its functions: two disks, the disk that counts boots, the network, edu, the console.
pub(super) const HOST: Scenario = Scenario {
    unit: Some(FIRST_STAGE),
    initramfs: Initramfs::Host,
    arguments: &["--device", "edu", "--device", "virtio-console"],
    cpus: 1,
    memory: "1G",
    command_line: "intel_iommu=on,sm_on kvm.tsc_tolerance_ppm=100000 hugepages=132 quiet",
    limit: Duration::from_secs(900),
    ..DEFAULT
};

/// Level 1's unit, which forgets no translation by itself, so that an invalidation that is missing
/// shows.
const KEEPING: &str = "intel-iommu,x-flts=on,x-keep-translations=on";

/// The same without snoop control and with walks that are not coherent. Then it tracks no dirty pages either, so
/// that Linux has first-stage tables where it is not told otherwise.
const INCOHERENT: &str =
    "intel-iommu,x-flts=on,x-keep-translations=on,x-snoop-control=off,x-page-walk-coherency=off";

/// Level 3. What each line of its log costs is some thousand exits of level 1.
pub(super) const GUEST: Scenario = Scenario {
    arguments: DEVICES,
    cpus: 1,
    memory: "256M,hugepages=on",
    command_line: "intel_iommu=on,sm_on quiet",
    limit: Duration::from_secs(400),
    ..DEFAULT
};

/// For a device with PASIDs and a device-TLB: the unit of level 1, and that of level 2.
const KEEPING_PASIDS: &str =
    "intel-iommu,x-flts=on,x-keep-translations=on,device-iotlb=on,pasid-bits=20";
const WITH_PASIDS: &str = "intel-iommu,x-flts=on,device-iotlb=on,pasid-bits=20";

/// The same, for one that asks for pages as well.
const KEEPING_PAGE_REQUESTS: &str =
    "intel-iommu,x-flts=on,x-keep-translations=on,device-iotlb=on,pasid-bits=20,svm=on";
const WITH_PAGE_REQUESTS: &str = "intel-iommu,x-flts=on,device-iotlb=on,pasid-bits=20,svm=on";

const DEVICES: &[&str] = &[
    "-v",
    "--object",
    "iommufd,id=iommufd0",
    "--device",
    "vfio-pci,host={disk0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={disk1},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={disk2},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={net0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd0",
];

/// The same on two iommufds.
const ON_TWO_IOMMUFDS: &[&str] = &[
    "-v",
    "--object",
    "iommufd,id=iommufd0",
    "--object",
    "iommufd,id=iommufd1",
    "--device",
    "vfio-pci,host={disk0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={disk1},iommufd=iommufd1",
    "--device",
    "vfio-pci,host={disk2},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={net0},iommufd=iommufd1",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd1",
];

/// Edu alone, of which each page of 4 KiB is followed. The agent reads in the log when a round begins.
const FOLLOWED: &[&str] = &[
    "-v",
    "-v",
    "--object",
    "iommufd,id=iommufd0,hugepages=off",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd0",
];

/// One edu, which the guest can let go of. The guest's disks are of level 2's nido.
const MOVING: &[&str] = &[
    "-v",
    "-v",
    "--object",
    "iommufd,id=iommufd0",
    "--device",
    "pcie-root-port,id=rp0",
    "--device",
    "vfio-pci,id=moved,host={edu0},iommufd=iommufd0,bus=rp0",
];

/// Level 1's requests: what its unit holds of the devices that level 3 has.
const SHADOWED: &[Exchange] = &[
    Exchange {
        request: "bindings",
        line_with: &[&["00:01.0", "-stage"]],
        positive: &[],
    },
    Exchange {
        request: "stats",
        line_with: &[
            &["queue_errors: 0"],
            &["faults_recorded: 0"],
            &["nested_walks: 0"],
        ],
        positive: &["table_walks", "waits"],
    },
];

const NESTED: &[Exchange] = &[
    Exchange {
        request: "bindings",
        line_with: &[
            &["00:01.0", "nested"],
            &["00:02.0", "nested"],
            &["00:04.0", "nested"],
            &["00:05.0", "nested"],
        ],
        positive: &[],
    },
    Exchange {
        request: "translate 00:05.0 0x1230000",
        line_with: &[&["first stage"], &["second stage"], &["goes to 0x"]],
        positive: &[],
    },
    Exchange {
        request: "stats",
        line_with: &[&["queue_errors: 0"], &["faults_recorded: 0"]],
        positive: &["table_walks", "nested_walks", "waits"],
    },
];

/// What level 1's unit holds when each of edu's PASIDs has a table: 0x7, and 0xabcde.
const NESTED_PASIDS: &[Exchange] = &[
    Exchange {
        request: "bindings",
        line_with: &[
            &["00:05.0 nested"],
            &["00:05.0 PASID 0x7 nested"],
            &["00:05.0 PASID 0xabcde nested"],
        ],
        positive: &[],
    },
    Exchange {
        request: "stats",
        line_with: &[&["queue_errors: 0"]],
        positive: &["table_walks", "waits", "device_tlb_invalidations"],
    },
];

/// What level 1's unit has seen when a device of level 3 has asked for pages.
const PAGES_ASKED_FOR: &[Exchange] = &[Exchange {
    request: "stats",
    line_with: &[&["queue_errors: 0"], &["page_requests_lost: 0"]],
    positive: &["page_requests", "page_responses"],
}];

/// Level 1's bindings of what level 3 has: nested; shadowed by page tables of level 2's kernel; and
/// all of level 3's memory, by the second stage of a parent.
const ALL_ON: &[Exchange] = &[Exchange {
    request: "bindings",
    line_with: &[
        &["00:01.0", "nested"],
        &["00:02.0", "nested"],
        &["00:03.0", "nested"],
        &["00:04.0", "nested"],
        &["00:05.0", "nested"],
    ],
    positive: &[],
}];

const ALL_LEGACY: &[Exchange] = &[Exchange {
    request: "bindings",
    line_with: &[
        &["00:01.0", "-stage"],
        &["00:05.0", "-stage"],
        &[NO, "nested"],
    ],
    positive: &[],
}];

const ALL_OFF: &[Exchange] = &[Exchange {
    request: "bindings",
    line_with: &[
        &["00:01.0", "second-stage"],
        &["00:02.0", "second-stage"],
        &["00:03.0", "second-stage"],
        &["00:04.0", "second-stage"],
        &["00:05.0", "second-stage"],
        &[NO, "nested"],
    ],
    positive: &[],
}];

/// A crash kernel has taken the tables over: as long as no driver has edu, it is where the kernel
/// before has it, with the page that it mapped last.
const CRASHED: &[Exchange] = &[Exchange {
    request: "translate 00:05.0 0x1230000",
    line_with: &[&["first stage"], &["second stage"], &["goes to 0x"]],
    positive: &[],
}];

/// Slot 3 is the disk that comes and goes, and slot 5 is edu.
const PLUGGED: &[Exchange] = &[Exchange {
    request: "bindings",
    line_with: &[&["00:01.0", "nested"], &["00:05.0", "nested"]],
    positive: &[],
}];

/// Level 2's kernel has them back, with its own tables.
const GONE: &[Exchange] = &[Exchange {
    request: "bindings",
    line_with: &[
        &["00:01.0", "nested"],
        &["00:03.0", "first-stage"],
        &["00:05.0", "first-stage"],
        &[NO, "00:03.0", "nested"],
        &[NO, "00:05.0", "nested"],
    ],
    positive: &[],
}];

/// What level 1's unit kept was used, and never after the tables had changed.
const NEVER_STALE: (&str, &[Exchange]) = (
    "kept",
    &[Exchange {
        request: "stats",
        line_with: &[&["kept_stale: 0"]],
        positive: &["kept_hits"],
    }],
);

const KEPT: &[(&str, &[Exchange])] = &[NEVER_STALE];

/// The scenarios of level 2, and so of level 1.
pub const LEVELS: &[Scenario] = &[
    Scenario {
        name: "levels-shadow",
        description: "three levels, x-flts=off: level 3 has level 2's disks, network and edu, shadowed",
        unit: Some(KEEPING),
        plan: "scalable,translation=first-stage,level3=shadow,look=kept,nofaults>poweroff",
        look: SHADOWED,
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "levels-nested",
        description: "three levels, x-flts=on: the same through nested page tables; four MSIs of level 3's edu",
        unit: Some(KEEPING),
        arguments: &[
            "--device",
            "edu,msi-vectors=4",
            "--device",
            "virtio-console",
        ],
        plan: "scalable,translation=first-stage,level3=nested,look=kept,nofaults>poweroff",
        look: NESTED,
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "levels-strict",
        description: "three levels, x-flts=on, and level 3 says iommu.strict=1; its devices are on two iommufds of level 2",
        unit: Some(KEEPING),
        plan: "scalable,translation=first-stage,level3=strict,look=kept,nofaults>poweroff",
        look: NESTED,
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "levels-reboot",
        description: "three levels, x-flts=on: level 3 reboots, goes to sm_off, to no translation and back by kexec; level 2's unit \
                      has no snoop control, and its walks are not coherent",
        initramfs: Initramfs::HostKexec,
        plan: "scalable,level3=reboot,look=kept,nofaults=00:05.0>poweroff",
        faults: true,
        unit: Some(INCOHERENT),
        looks: &[
            ("on", ALL_ON),
            ("legacy", ALL_LEGACY),
            ("off", ALL_OFF),
            NEVER_STALE,
        ],
        ..HOST
    },
    Scenario {
        name: "levels-hot-plug",
        description: "three levels, x-flts=on: edu and a disk of level 2 come to level 3 and go while it runs",
        plan: "scalable,level3=hot-plug,look=kept,nofaults>poweroff",
        unit: Some(KEEPING),
        looks: &[("plugged", PLUGGED), ("gone", GONE), NEVER_STALE],
        ..HOST
    },
    Scenario {
        name: "levels-killed",
        description: "three levels, x-flts=on: level 2's nido is killed in the middle of DMA, and started again; then level 3 \
                      panics, and its crash kernel takes the devices over",
        initramfs: Initramfs::HostKexec,
        plan: "scalable,level3=killed,look=kept,nofaults>poweroff",
        unit: Some(KEEPING),
        looks: &[("crashed", CRASHED), ("on", ALL_ON), NEVER_STALE],
        ..HOST
    },
    Scenario {
        name: "levels-dirty-shadow",
        description: "three levels, x-flts=off: the pages that level 3's edu writes are those that level 2's nido names, by the dirty \
                      bits of level 1's unit, also of what is unmapped meanwhile",
        unit: Some(KEEPING),
        plan: "scalable,disk,level3=dirty-shadow,look=kept,nofaults>poweroff",
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "levels-dirty-nested",
        description: "three levels, x-flts=on: the same through nested page tables",
        unit: Some(KEEPING),
        plan: "scalable,disk,level3=dirty-nested,look=kept,nofaults>poweroff",
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "migrate-unplug",
        description: "three levels: level 3 goes from one nido of level 2 to another and back while its disks are at work; it has an \
                      assigned edu before and after, and lets go of it in between",
        unit: Some(KEEPING),
        arguments: TWO_EDUS,
        plan: "scalable,disk,level3=migrate-unplug,look=kept,nofaults>poweroff",
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "migrate-unplug-fails",
        description: "the same of a guest that is refused as it has a device, and of one that lets go of it for a target that lacks a disk, and \
                      has it again; then it is saved without it, goes on, and goes",
        unit: Some(KEEPING),
        arguments: TWO_EDUS,
        plan: "scalable,disk,level3=migrate-unplug-fails,look=kept,nofaults>poweroff",
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "levels-pasid",
        description: "three levels, x-flts=on: page tables for PASIDs of level 3's edu, and a process's own addresses",
        unit: Some(KEEPING_PASIDS),
        arguments: &[
            "--device",
            "edu,ats=on,pasid=on,dma_mask=0xffffffffffffffff",
            "--device",
            "virtio-console",
        ],
        // Level 3 tries a PASID without table.
        faults: true,
        plan: "scalable,translation=first-stage,level3=pasid,look=kept,log=PASID_0x7]_Request_device_[0000:00:05.0]>poweroff",
        look: NESTED_PASIDS,
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "levels-sva",
        description: "three levels, x-flts=on: level 3's edu asks for absent pages of a process, through the hosts of two levels; \
                      also while level 3 is killed, reboots and crashes",
        unit: Some(KEEPING_PAGE_REQUESTS),
        arguments: &[
            "--device",
            "edu,ats=on,pasid=on,pri=on,dma_mask=0xffffffffffffffff",
            "--device",
            "virtio-console",
        ],
        plan: "scalable,level3=sva,look=kept>poweroff",
        look: PAGES_ASKED_FOR,
        looks: KEPT,
        ..HOST
    },
    Scenario {
        name: "migrate-assigned",
        description: "three levels, x-flts=on: level 3 goes to another nido of level 2 and back, while level 2's edu, which it has by \
                      VFIO, is at work through nested page tables, and a disk; before, it stays where it is as the target has no \
                      device for it, or one that cannot migrate, or the connection is cut when its device has been stopped",
        plan: "scalable,disk,level3=moving-nested,look=kept,nofaults>poweroff",
        ..MOVING_HOST
    },
    Scenario {
        name: "migrate-assigned-shadow",
        description: "three levels, x-flts=off: the same through shadows",
        plan: "scalable,disk,level3=moving-shadow,look=kept,nofaults>poweroff",
        ..MOVING_HOST
    },
];

/// Level 2 with two devices that can migrate, one for each of its processes that level 3 goes between.
const MOVING_HOST: Scenario = Scenario {
    arguments: &[
        "--device",
        "edu,migration=on",
        "--device",
        "edu,migration=on",
        "--device",
        "virtio-console",
    ],
    command_line: "intel_iommu=on,sm_on kvm.tsc_tolerance_ppm=100000 quiet",
    unit: Some(KEEPING),
    looks: KEPT,
    ..HOST
};

/// What level 2's nido says of itself.
const ALL_SHADOWED: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[&["00:01.0", "shadow of"], &["00:05.0", "shadow of"]],
    positive: &["maps", "shadows_made"],
}];

const ALL_NESTED: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["00:01.0", "nested"],
        &["00:05.0", "nested"],
        &["shadows: 0 KiB in 0 areas"],
        &["maps: 0"],
        &["shadows_made: 0"],
    ],
    positive: &["nested page tables", "invalidations"],
}];

const ALL_NESTED_PASIDS: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["shown: 20-bit PASIDs, ATS"],
        &["PASID 0x7: nested"],
        &["PASID 0xabcde: nested"],
        &["shadows: 0 KiB in 0 areas"],
        &["pasid_failures: 0"],
    ],
    positive: &["nested page tables", "pasid_attaches", "pasid_blocks"],
}];

const REBOOT_ON: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["00:01.0", "nested"],
        &["00:05.0", "nested"],
        &["shadows: 0 KiB in 0 areas"],
    ],
    positive: &["nested page tables"],
}];

/// The same, as level 2's nido says it.
const CRASHED_ON: &[Exchange] = &[
    Exchange {
        request: "assigned",
        line_with: &[&["00:05.0", "nested"]],
        positive: &[],
    },
    Exchange {
        request: "translate 00:05.0 0x1230000",
        line_with: &[&["first stage", "page of 4 KiB"], &["goes to 0x"]],
        positive: &[],
    },
];

/// On [`INCOHERENT`].
const INCOHERENT_ON: &[Exchange] = &[
    Exchange {
        request: "assigned",
        line_with: &[&[
            "47-bit addresses",
            "no dirty tracking",
            ", nesting",
            "no snoop control",
        ]],
        positive: &[],
    },
    REBOOT_ON[0],
];

const REBOOT_LEGACY: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["00:01.0", "shadow of"],
        &["00:05.0", "shadow of"],
        &["nested page tables: 0"],
    ],
    positive: &[],
}];

const REBOOT_OFF: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["00:01.0", "guest-physical memory"],
        &["00:02.0", "guest-physical memory"],
        &["00:03.0", "guest-physical memory"],
        &["00:04.0", "guest-physical memory"],
        &["00:05.0", "guest-physical memory"],
        &["shadows: 0 KiB in 0 areas"],
        &["nested page tables: 0"],
    ],
    positive: &[],
}];

/// Level 3's device, and the one that it has elsewhere.
const TWO_EDUS: &[&str] = &[
    "--device",
    "edu",
    "--device",
    "edu",
    "--device",
    "virtio-console",
];
/// With two slots for what comes and goes.
const PORTS: &[&str] = &[
    "-v",
    "--object",
    "iommufd,id=iommufd0",
    "--device",
    "vfio-pci,host={disk0},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={disk1},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={net0},iommufd=iommufd0",
    "--device",
    "pcie-root-port,id=rp0",
    "--device",
    "pcie-root-port,id=rp1",
];

const HOT_PLUGGED: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["00:01.0", "nested"],
        &["01:00.0", "nested"],
        &["shadows: 0 KiB in 0 areas"],
    ],
    positive: &["nested page tables", "invalidations"],
}];

const HOT_GONE: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["00:01.0", "nested"],
        &["shadows: 0 KiB in 0 areas"],
        &[NO, "01:00.0"],
        &[NO, "02:00.0"],
    ],
    positive: &[],
}];

/// The scenarios of level 3.
const THIRD: &[Scenario] = &[
    Scenario {
        name: "shadow",
        unit: Some(SECOND_STAGE),
        plan: "scalable,groups=DMA,translation=second-stage,intremap=x2apic,disk,net=32,edu,edu-remap=100,\
               edu-stays-mapped,look,interrupts=remapped,nofaults>poweroff",
        look: ALL_SHADOWED,
        ..GUEST
    },
    Scenario {
        name: "nested",
        unit: Some(FIRST_STAGE),
        cpus: 2,
        plan: "scalable,groups=DMA-FQ,translation=first-stage,intremap=x2apic,disk,net=32,edu,edu-msi,edu-remap=4000/stay,\
               look,interrupts=remapped,nofaults>poweroff",
        look: ALL_NESTED,
        ..GUEST
    },
    Scenario {
        name: "strict",
        unit: Some(FIRST_STAGE),
        arguments: ON_TWO_IOMMUFDS,
        command_line: "intel_iommu=on,sm_on iommu.strict=1 quiet",
        plan: "scalable,groups=DMA,translation=first-stage,invalidation=strict,disk,net=32,edu,edu-stays-mapped,look,\
               interrupts=remapped,nofaults>poweroff",
        look: ALL_NESTED,
        ..GUEST
    },
    Scenario {
        name: "reboot",
        unit: Some(FIRST_STAGE),
        initramfs: Initramfs::Kexec,
        command_line: "intel_iommu=on,sm_on vfio.enable_unsafe_noiommu_mode=1 quiet",
        plan: "scalable,translation=first-stage,disk,edu,look=on,nofaults>restart;\
               scalable,translation=first-stage,edu,nofaults>kexec:intel_iommu=on,sm_off;\
               legacy,translation=legacy,net=32,edu-stays-mapped,look=legacy,nofaults>kexec:intel_iommu=off;\
               translation=off,disk,net=32,edu,look=off,nofaults>kexec:intel_iommu=on,sm_on;\
               scalable,translation=first-stage,disk,net=32,edu,look=on,edu-isolation,nofaults>poweroff",
        looks: &[
            ("on", INCOHERENT_ON),
            ("legacy", REBOOT_LEGACY),
            ("off", REBOOT_OFF),
        ],
        ..GUEST
    },
    Scenario {
        name: "hot-plug",
        unit: Some(FIRST_STAGE),
        arguments: PORTS,
        plan: "scalable,translation=first-stage,disk,hot-plug-levels=4,net=32,interrupts=remapped,nofaults>poweroff",
        looks: &[("plugged", HOT_PLUGGED), ("gone", HOT_GONE)],
        ..GUEST
    },
    Scenario {
        name: "killed",
        unit: Some(FIRST_STAGE),
        initramfs: Initramfs::Kexec,
        command_line: "intel_iommu=on,sm_on crashkernel=96M quiet",
        killed: Some("scalable,disk,edu-stays-mapped>stay"),
        plan: "scalable,translation=first-stage,disk,net=32,edu,edu-stays-mapped,nofaults>kdump;\
               crash-kernel,scalable,look=crashed,disk,net=32,edu,look=on,nofaults>poweroff",
        looks: &[("crashed", CRASHED_ON), ("on", REBOOT_ON)],
        ..GUEST
    },
    Scenario {
        name: "dirty-shadow",
        unit: Some(SECOND_STAGE),
        arguments: FOLLOWED,
        plan: "scalable,translation=second-stage,dirty-pages=2500,nofaults>poweroff",
        ..GUEST
    },
    Scenario {
        name: "migrate-unplug",
        unit: Some(FIRST_STAGE),
        arguments: MOVING,
        // There are two nidos at a time.
        memory: "128M,hugepages=on",
        plan: "scalable,translation=first-stage,moves-unplug=4,disk,interrupts=remapped,nofaults>poweroff",
        ..GUEST
    },
    Scenario {
        name: "migrate-unplug-fails",
        unit: Some(FIRST_STAGE),
        arguments: MOVING,
        // There are two nidos at a time.
        memory: "128M,hugepages=on",
        plan: "scalable,translation=first-stage,moves-unplug=1/in-vain/saved,disk,interrupts=remapped,nofaults>poweroff",
        ..GUEST
    },
    Scenario {
        name: "dirty-nested",
        unit: Some(FIRST_STAGE),
        arguments: FOLLOWED,
        plan: "scalable,translation=first-stage,dirty-pages=2500,nofaults>poweroff",
        ..GUEST
    },
    Scenario {
        name: "pasid",
        unit: Some(WITH_PASIDS),
        plan: "scalable,translation=first-stage,disk,edu,sva-present,pasid=200,look,nofaults>poweroff",
        look: ALL_NESTED_PASIDS,
        ..GUEST
    },
    Scenario {
        name: "sva",
        unit: Some(WITH_PAGE_REQUESTS),
        killed: Some("scalable,sva-goes-on>stay"),
        plan: "scalable,sva-goes-on>restart;scalable,sva-goes-on>crash;scalable,disk,edu,sva,look>poweroff",
        look: &[
            Exchange {
                request: "assigned",
                line_with: &[&["shown: 20-bit PASIDs, ATS, PRI"], &["pasid_failures: 0"]],
                positive: &["pasid_attaches"],
            },
            Exchange {
                request: "stats",
                line_with: &[&["page_requests_lost: 0"]],
                positive: &["page_requests", "page_responses"],
            },
        ],
        ..GUEST
    },
    Scenario {
        name: "moving-nested",
        unit: Some(FIRST_STAGE),
        plan: "scalable,translation=first-stage,moves=1/migrate/stopped:edu-steady+disk,moves=2/migrate:edu-steady+disk,edu,interrupts=remapped,nofaults>poweroff",
        ..GOING
    },
    Scenario {
        name: "moving-shadow",
        unit: Some(SECOND_STAGE),
        plan: "scalable,translation=second-stage,moves=2/migrate:edu-steady+disk,edu,interrupts=remapped,nofaults>poweroff",
        ..GOING
    },
];

/// Level 3 with one of them.
const GOING: Scenario = Scenario {
    memory: "160M",
    arguments: &[
        "-v",
        "--object",
        "iommufd,id=iommufd0,hugepages=off",
        "--device",
        "vfio-pci,id=edu,host={edu0},iommufd=iommufd0",
    ],
    ..GUEST
};

/// The scenario of level 3 of this name.
pub fn third(name: &str) -> Option<&'static Scenario> {
    THIRD.iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::scenario::assert_plan_is_known;

    #[test]
    fn every_level_2_names_a_level_3_whose_plan_parses_and_which_has_less_time() {
        for scenario in LEVELS {
            let steps = plan::parse(scenario.plan).unwrap();
            let mut checks = steps.iter().flat_map(|step| &step.checks);
            let check = checks.find(|check| check.name == "level3").unwrap();
            let guest = third(&check.argument).unwrap();
            for plan in [guest.plan].into_iter().chain(guest.killed) {
                assert_plan_is_known(guest, plan);
            }
            for check in plan::parse(guest.plan)
                .unwrap()
                .iter()
                .flat_map(|step| &step.checks)
                .filter(|check| check.name == "look")
            {
                for level in [guest, scenario] {
                    assert!(
                        level.look_at(&check.argument).is_some(),
                        "{check} at {}",
                        level.name
                    );
                }
            }
            let times = 1 + u32::from(guest.killed.is_some());
            assert!(guest.limit * times < scenario.limit, "{}", scenario.name);
        }
    }
}
