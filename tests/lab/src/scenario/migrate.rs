//! A guest that goes to another nido while it runs.

use std::time::Duration;

use super::{DEFAULT, Initramfs, Scenario};

/// Of a guest that goes on in another process, whose nido tells what it does.
pub(super) const DEVICES: &[&str] = &[
    "--device",
    "edu",
    "--device",
    "pcie-root-port,id=rp0",
    "--device",
    "virtio-rng-pci,bus=rp0,id=rng",
    "-v",
    "-v",
];

pub(super) const SCENARIOS: &[Scenario] = &[MIGRATE, VHOST, VHOST_NO_UNIT];

const MIGRATE: Scenario = Scenario {
    name: "migrate",
    description: "a guest goes to another nido and back while its disks, its network, edu and its memory are at work, by a unix \
                  socket, by TCP, and to what seems to be another host; before, it stays where it is as nobody listens, a disk is missing, the target dies, somebody cancels",
    arguments: DEVICES,
    plan: "scalable,smp=2,translation=first-stage,moves=1/migrate/nobody:memory+edu,moves=1/migrate/diskless:disk+net,\
           moves=1/migrate/killed:disk+net+edu,moves=1/migrate/cancelled:memory+net+edu,moves=2/migrate:disk+net+edu+memory,moves=2/migrate/far:disk+net+edu+memory,\
           disk=2,net,edu,rng,interrupts=remapped,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};

const VHOST: Scenario = Scenario {
    name: "migrate-vhost",
    description: "a guest whose network and sockets level 1's kernel serves goes to another nido and back, behind \
                  first-stage tables, strict; before, it stays where it is as somebody cancels",
    arguments: DEVICES,
    vhost: true,
    command_line: "intel_iommu=on,sm_on iommu.strict=1",
    plan: "scalable,smp=2,translation=first-stage,moves=1/migrate/cancelled:net+edu+vsock,\
           moves=4/migrate:net+edu+memory+vsock-ends,net,net-queues=2,vsock,edu,disk=2,interrupts=remapped,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};

const VHOST_NO_UNIT: Scenario = Scenario {
    name: "migrate-vhost-no-unit",
    description: "the same without a unit",
    unit: None,
    arguments: DEVICES,
    vhost: true,
    command_line: "",
    plan: "no-unit,smp=2,moves=1/migrate/cancelled:net+memory+vsock,\
           moves=4/migrate:net+memory+vsock-ends,net,net-queues=2,vsock,disk=2,interrupts=plain,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};

pub(super) const ON_REQUEST: &[Scenario] = &[
    Scenario {
        name: "migrate-kills",
        description: "either side of a migration is killed, or their connection is cut, at each step and at moments of chance: \
                      afterwards one of them runs the guest, or none if it died with its nido",
        arguments: DEVICES,
        plan: "scalable,smp=2,translation=first-stage,moves=1/migrate/kills:disk+memory+edu,nofaults>poweroff",
        limit: Duration::from_secs(1800),
        ..DEFAULT
    },
    Scenario {
        name: "migrate-often",
        description: "a guest goes to another nido ten times, with its addresses used by edu, a device plugged before and \
                      unplugged after, and reboots of both kinds between",
        unit: Some("intel-iommu,x-flts=on,device-iotlb=on,pasid-bits=20,svm=on"),
        arguments: &[
            "--device",
            "edu,ats=on,pasid=on,pri=on,dma_mask=0xffffffffffffffff",
            "--device",
            "pcie-root-port,id=rp0",
            "--device",
            "pcie-root-port,id=rp1",
            "--device",
            "virtio-rng-pci,bus=rp0,id=rng",
            "-v",
            "-v",
        ],
        initramfs: Initramfs::Kexec,
        plan: "scalable,smp=2,translation=first-stage,moves=3/migrate:disk+net+sva,plugged-rng=on,moves=2/migrate:disk+sva,rng,nofaults>restart;\
               scalable,translation=first-stage,moves=2/migrate:disk+sva,plugged-rng=off,disk=2,nofaults>kexec:intel_iommu=on,sm_off;\
               legacy,translation=legacy,moves=2/migrate:disk+net+edu,disk=2,nofaults>restart;\
               scalable,translation=first-stage,moves=3/migrate/far:disk+net+memory+sva,disk=2,net,rng,nofaults>poweroff",
        limit: Duration::from_secs(600),
        ..DEFAULT
    },
    Scenario {
        name: "migrate-busy",
        description: "a guest writes its memory faster than a slow link takes it: it goes elsewhere only if it may be slowed down",
        arguments: DEVICES,
        plan: "scalable,smp=2,translation=first-stage,moves=1/migrate/busy:memory+memory+edu,disk=2,net,edu,nofaults>poweroff",
        limit: Duration::from_secs(300),
        ..DEFAULT
    },
];
