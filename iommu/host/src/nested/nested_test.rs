//! What the host must have before a device is taken from where it is.

use super::*;
use crate::host_iommu::IntelInfo;
use intel_vtd::spec::registers::{Capability, Caps, ExtendedCapability};

const PLAIN: FirstStage = FirstStage {
    table: 0x1000,
    levels: 4,
    supervisor_requests: false,
    write_protect: false,
    extended_accessed: false,
    snooped_walk: true,
};

fn info(cap: u64, ecap: u64) -> HardwareInfo {
    HardwareInfo {
        intel: Some(IntelInfo {
            caps: Caps {
                cap: Capability::from_bits(cap),
                ecap: ExtendedCapability::from_bits(ecap),
            },
            no_read_only_parent: true,
        }),
        pasid_bits: 0,
        privileged_pasids: false,
        dirty_tracking: false,
        ats: true,
    }
}

#[test]
fn what_tables_need_is_looked_for_in_the_hosts_registers() {
    let five = FirstStage { levels: 5, ..PLAIN };
    let supervisor = FirstStage {
        supervisor_requests: true,
        ..PLAIN
    };
    let extended = FirstStage {
        extended_accessed: true,
        ..PLAIN
    };
    let none = info(0, 0);
    assert_eq!(missing(&PLAIN, &none), None);
    for (first, name, has) in [
        (five, "FS5LP", info(1 << 60, 0)),
        (supervisor, "SRS", info(0, 1 << 31)),
        (extended, "EAFS", info(0, 1 << 34)),
    ] {
        assert!(missing(&first, &none).unwrap().contains(name));
        assert_eq!(missing(&first, &has), None);
    }
    let other = HardwareInfo {
        intel: None,
        ..none
    };
    assert_eq!(missing(&PLAIN, &other), Some("VT-d"));
}
