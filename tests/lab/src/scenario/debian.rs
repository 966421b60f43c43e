//! The scenario whose guest is a stock distribution.

use std::time::Duration;

use super::{DEFAULT, Initramfs, Kernel, Scenario};

/// Debian as its packages make it: systemd, and its own kernel. Nothing that takes long on a busy
/// machine is an error there.
pub(super) const DEBIAN: Scenario = Scenario {
    name: "debian",
    description: "stock Debian 12: its kernel and initramfs, systemd on the virtio disk, fio with checksums on two disks, \
                  a clean power-off",
    kernel: Kernel::Debian,
    initramfs: Initramfs::Debian,
    arguments: &["--device", "virtio-rng-pci"],
    command_line: "root=LABEL=debian intel_iommu=on,sm_on nowatchdog rcupdate.rcu_cpu_stall_timeout=300 \
                   udev.event_timeout=600 systemd.show_status=false",
    plan: "systemd,scalable,smp=2,groups=DMA-FQ,invalidation=lazy,intremap=x2apic,disk-queues=2,fio,disk=2,net-queues=2,net,rng,\
           interrupts=remapped,nofaults>poweroff",
    limit: Duration::from_secs(600),
    ..DEFAULT
};
