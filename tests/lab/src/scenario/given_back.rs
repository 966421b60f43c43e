//! Guests that give memory back.

use std::time::Duration;

use super::{DEFAULT, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[BALLOON];

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
    plan: "scalable,smp=2,translation=first-stage,balloon=reports:160,balloon=grow:224,moves=2/migrate:disk+net+edu,\
           balloon=held:224:512,moves=1:disk+net+edu,balloon=held:224:500,balloon=shrink:300,balloon=reports:150,\
           moves=1/migrate:memory+edu,disk=2,net,edu,rng,interrupts=remapped,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};
