//! A nido whose place another one takes while its guest runs.

use std::time::Duration;

use super::migrate::DEVICES;
use super::{DEFAULT, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[UPGRADE, VHOST];

const UPGRADE: Scenario = Scenario {
    name: "upgrade",
    description: "another nido takes the place of the one whose guest has its disks, its network, edu and its memory at work, four times, and \
                  once after a restart; before, the guest stays where it is, as what is to take it is no nido, dies, damages the state, \
                  crashes or hangs when it could run it",
    arguments: DEVICES,
    memory: "512M,shared=on",
    plan: "scalable,smp=2,translation=first-stage,moves=1/upgrade/not-nido:memory+edu,moves=1/upgrade/dies:memory+edu,\
           moves=1/upgrade/refuses:disk+net,moves=1/upgrade/crashes:net+edu,moves=1/upgrade/stalls:disk+net+edu+memory,\
           moves=4/upgrade:disk+net+edu+memory,disk=2,net,edu,rng,interrupts=remapped,nofaults>restart;\
           moves=1/upgrade:disk+net+edu,disk=2,net,edu,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};

const VHOST: Scenario = Scenario {
    name: "upgrade-vhost",
    description: "the same three times with a guest whose network and sockets level 1's kernel serves, behind first-stage tables, strict; \
                  before, the guest stays where it is as the other one crashes",
    arguments: DEVICES,
    memory: "512M,shared=on",
    vhost: true,
    command_line: "intel_iommu=on,sm_on iommu.strict=1",
    plan: "scalable,smp=2,translation=first-stage,moves=1/upgrade/crashes:net+edu+vsock,\
           moves=3/upgrade:net+edu+memory+vsock-ends,net,net-queues=2,vsock,edu,disk=2,interrupts=remapped,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
};

pub(super) const ON_REQUEST: &[Scenario] = &[Scenario {
    name: "upgrade-hangs",
    description: "what is to take nido's place does nothing at all, ten seconds each time; the guest does not notice",
    arguments: DEVICES,
    memory: "512M,shared=on",
    plan: "scalable,smp=2,translation=first-stage,moves=2/upgrade/hangs:disk+net+edu+memory,moves=1/upgrade:disk+net,nofaults>poweroff",
    limit: Duration::from_secs(240),
    ..DEFAULT
}];
