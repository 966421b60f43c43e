//! Guests that give memory back.

use std::time::Duration;

use super::{DEFAULT, Host, Initramfs, Model, SECOND_STAGE, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[BALLOON, PLUGGED, ASSIGNED];

const BALLOON: Scenario = Scenario {
    name: "balloon",
    description: "a guest reports free memory and has a balloon: level 1 has the memory back, also while the guest goes to another \
                  nido, and after a snapshot; the balloon goes, and the guest uses all again",
    arguments: &[
        "--device",
        "edu",
        "--device",
        "virtio-rng-pci",
        "--device",
        "virtio-balloon,deflate-on-oom=on,free-page-reporting=on",
        "-v",
        "-v",
    ],
    plan: "scalable,smp=2,translation=first-stage,balloon=reports:160,balloon=grow:224,moves=1/migrate:disk+net+edu,\
           balloon=held:224:512,moves=1:disk+net+edu,balloon=held:224:500,balloon=shrink:300,balloon=reports:150,\
           moves=1/migrate:memory,disk=2,net,edu,rng,interrupts=remapped,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};

const PLUGGED: Scenario = Scenario {
    name: "virtio-mem",
    description: "a guest plugs memory and uses it, goes to another nido with it, unplugs some while its disks and its network are at \
                  work, goes back, and reboots; it has what is asked for each time",
    arguments: &[
        "--device",
        "edu",
        "--device",
        "virtio-rng-pci",
        "--device",
        "virtio-mem,size=1G",
        "-v",
        "-v",
    ],
    memory: "256M",
    plan: "scalable,smp=2,translation=first-stage,virtio-mem=grow:0:256:300,moves=1/migrate:disk+net+edu,virtio-mem=grow:256:384:300,\
           virtio-mem=shrink:384:128:disk+net+edu,moves=1/migrate:disk+memory,virtio-mem=has:128,net,edu,nofaults>restart;\
           scalable,virtio-mem=has:128,virtio-mem=grow:128:256:250,disk=2,net,edu,rng,interrupts=remapped,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};

const ASSIGNED: Scenario = Scenario {
    name: "assigned-plugged",
    description: "a guest with an nvme disk and an edu of level 1 plugs memory, which they reach, and unplugs some while they are at \
                  work; the same once more",
    unit: Some(SECOND_STAGE),
    initramfs: Initramfs::Tools,
    host: Host {
        devices: &[Model::Nvme, Model::Edu],
        ..DEFAULT.host
    },
    arguments: &[
        "--object",
        "iommufd,id=iommufd0",
        "--device",
        "vfio-pci,host={nvme0},iommufd=iommufd0",
        "--device",
        "vfio-pci,host={edu0},iommufd=iommufd0",
        "--device",
        "virtio-mem,size=1G",
    ],
    memory: "256M",
    plan: "scalable,virtio-mem=grow:0:512:400,nvme=32,edu,virtio-mem=shrink:512:128:disk+edu,nvme=16,virtio-mem=grow:128:384:300,\
           virtio-mem=shrink:384:256:edu,disk=2,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};
