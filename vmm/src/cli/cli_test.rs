//! Whole command lines: what they mean, and every way in which one is refused.

use ::devices::edu::EduOptions;

use super::testing::{config, error, printed};
use crate::config::{DiskConfig, FunctionConfig, FunctionKind, MemoryConfig, NetConfig};

#[test]
fn a_kernel_alone_is_a_machine() {
    let config = config("--kernel vmlinux");
    assert_eq!(config.cpus, 1);
    assert_eq!(config.cmdline, "console=ttyS0");
    assert_eq!(
        config.memory,
        MemoryConfig {
            size: 0x2000_0000,
            hugepages: false,
            prefault: false,
            shared: false
        }
    );
    assert_eq!(config.iommu, None);
    assert!(config.functions.is_empty());
    assert!(config.reboot);
}

#[test]
fn a_full_command_line_becomes_typed_values() {
    let config = config(
        "--kernel k --initramfs i --memory size=1G,hugepages=on,prefault=on --cpus 255 --no-reboot \
         --disk path=/a,,b,readonly=on,id=root,queues=3 --net tap=tap0,mac=52:54:00:12:34:56 \
         --device intel-iommu,x-flts=off --device edu,dma_mask=0xff,msi-vectors=4,addr=5 --device rng --device console",
    );
    assert_eq!(
        config.memory,
        MemoryConfig {
            size: 0x4000_0000,
            hugepages: true,
            prefault: true,
            shared: false
        }
    );
    assert_eq!(config.cpus, 255);
    assert!(!config.reboot);
    assert!(
        config
            .iommu
            .is_some_and(|unit| unit.first_stage == Some(false))
    );
    assert_eq!(
        config.functions,
        [
            FunctionConfig {
                id: Some("root".to_owned()),
                bus: None,
                device: None,
                kind: FunctionKind::Disk(DiskConfig {
                    path: "/a,b".into(),
                    readonly: true,
                    id: Some("root".to_owned()),
                    queues: Some(3),
                }),
            },
            FunctionConfig {
                id: None,
                bus: None,
                device: None,
                kind: FunctionKind::Net(NetConfig {
                    tap: "tap0".to_owned(),
                    mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                    queues: None,
                    vhost: false,
                }),
            },
            FunctionConfig {
                id: None,
                bus: None,
                device: Some(5),
                kind: FunctionKind::Edu(EduOptions {
                    dma_mask: 0xff,
                    msi_vectors: 4,
                    features: Default::default(),
                    migration: false,
                })
            },
            FunctionConfig {
                id: None,
                bus: None,
                device: None,
                kind: FunctionKind::Rng
            },
            FunctionConfig {
                id: None,
                bus: None,
                device: None,
                kind: FunctionKind::Console
            },
        ]
    );
}

#[test]
fn a_missing_kernel_is_named_with_its_remedy() {
    assert_eq!(
        error("--cpus 2"),
        "--kernel is missing; add `--kernel FILE` with a bzImage or a PVH vmlinux"
    );
}

#[test]
fn memory_is_refused_with_the_reason() {
    assert_eq!(
        error("--kernel k --memory 1X"),
        "--memory: size=`1X` is not valid: expected a size, such as 512M or 2G"
    );
    assert_eq!(
        error("--kernel k --memory 8M"),
        "--memory: size of 8388608 bytes is too little for a kernel; write 16M or more"
    );
    assert!(
        error("--kernel k --memory 33M,hugepages=on").contains("no multiple of a huge page of 2M")
    );
    assert!(error("--kernel k --memory 1G,2G").contains("`2G` has no value"));
    assert!(error("--kernel k --memory 1G,size=2G").contains("key `size` is given twice"));
    assert!(
        error("--kernel k --memory 1G,pages=huge")
            .contains("unknown key `pages`; valid keys: size, hugepages, prefault")
    );
}

#[test]
fn the_number_of_cpus_is_one_to_255() {
    for bad in ["0", "256", "-1", "two"] {
        assert!(
            error(&format!("--kernel k --cpus={bad}")).contains("write a number from 1 to 255"),
            "{bad}"
        );
    }
}

#[test]
fn disks_and_nets_name_what_they_lack() {
    assert_eq!(
        error("--kernel k --disk readonly=on"),
        "--disk: key `path` is missing; add `path=FILE`"
    );
    assert_eq!(
        error("--kernel k --net mac=52:54:00:12:34:56"),
        "--net: key `tap` is missing; add `tap=NAME`"
    );
    assert!(error("--kernel k --disk a.img").contains("`a.img` has no value"));
    assert!(error("--kernel k --disk path=").contains("expected a FILE that is not empty"));
    assert!(
        error("--kernel k --disk path=a,id=123456789012345678901").contains("longer than 20 bytes")
    );
    assert!(error("--kernel k --net tap=an-interface-too-long").contains("no interface name"));
    assert!(
        error("--kernel k --net tap=t,mac=01:00:5e:00:00:01")
            .contains("individual hardware address")
    );
}

#[test]
fn two_devices_cannot_share_a_place() {
    assert_eq!(
        error("--kernel k --device edu,addr=4 --disk path=a,addr=4.0"),
        "addr=4: two devices ask for this place; give one of them another"
    );
}

#[test]
fn more_devices_than_the_bus_has_room_for_are_refused() {
    let line = format!("--kernel k{}", " --device edu".repeat(32));
    assert!(error(&line).contains("ask for 32 PCI devices; the bus has room for 31"));
}

#[test]
fn there_is_one_unit_and_one_console() {
    assert!(
        error("--kernel k --device intel-iommu --device intel-iommu").contains("keep one of them")
    );
    assert!(
        error("--kernel k --device console --device virtio-console").contains("keep one of them")
    );
}

#[test]
fn the_control_socket_has_a_path_that_fits() {
    let control = config("--kernel k --control path=/run/a,,b").control;
    assert_eq!(control, Some("/run/a,b".into()));
    assert_eq!(config("--kernel k").control, None);
    assert_eq!(
        error("--kernel k --control /run/a"),
        "--control: `/run/a` has no value; write `/run/a=VALUE` (valid keys: path)"
    );
    assert_eq!(
        error("--kernel k --control mode=qmp"),
        "--control: unknown key `mode`; valid keys: path"
    );
    let longest = "x".repeat(107);
    assert!(
        config(&format!("--kernel k --control path={longest}"))
            .control
            .is_some()
    );
    assert!(error(&format!("--kernel k --control path={longest}x")).contains("at most 107 bytes"));
}

#[test]
fn an_option_given_twice_is_refused() {
    assert!(error("--kernel a --kernel b").contains("cannot be used multiple times"));
}

#[test]
fn help_needs_no_kernel() {
    assert!(printed("--device help").contains("intel-iommu"));
    assert!(printed("--device edu,help").contains("dma_mask=NUMBER"));
    assert!(printed("--disk help").contains("path=FILE"));
    assert!(printed("--memory help").contains("size=SIZE"));
    assert!(printed("--control help").contains("path=SOCKET"));
}

#[test]
fn help_documents_every_exit_code() {
    let text = error("--help");
    for code in ["  0  ", "  1  ", "  2  ", "  3  ", "  4  ", "128 + N"] {
        assert!(text.contains(code), "{code}");
    }
}
