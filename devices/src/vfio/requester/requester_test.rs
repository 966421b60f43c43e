use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use vmm_sys_util::tempdir::TempDir;

/// Offsets in configuration space, PCI Local Bus Specification 3.0, chapter 6.
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CAPABILITIES: usize = 0x34;
/// The PCI Express capability, whose type is in bits 7:4 of its second word.
const PCI_EXPRESS: u8 = 0x10;
const PCI_EXPRESS_FLAGS: usize = 2;

const DEVICE: &str = "0000:02:01.0";
const BRIDGE: &str = "0000:01:00.0";
const PORT: &str = "0000:00:1c.0";

/// A `/sys` with a device behind a bridge behind a port.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(TempDir::new().expect("directory"));
        let device = tree.bridge().join(DEVICE);
        fs::create_dir_all(&device).expect("device");
        let devices = tree.0.as_path().join("bus/pci/devices");
        fs::create_dir_all(&devices).expect("devices");
        symlink(device, devices.join(DEVICE)).expect("link");
        tree
    }

    fn port(&self) -> PathBuf {
        self.0.as_path().join("devices/pci0000:00").join(PORT)
    }

    fn bridge(&self) -> PathBuf {
        self.port().join(BRIDGE)
    }

    fn requester(&self) -> Option<String> {
        let sysfs = Sysfs {
            sys: self.0.as_path().to_owned(),
            dev: PathBuf::from("/dev"),
        };
        let address = DEVICE.parse().expect("address");
        sysfs.requester(address).map(|bridge| bridge.to_string())
    }
}

/// Configuration space with a PCI Express capability of this type behind another capability.
fn express(kind: u8) -> [u8; 256] {
    let mut config = [0; 256];
    config[STATUS] = STATUS_CAPABILITIES;
    config[CAPABILITIES] = 0x50;
    config[0x50..0x52].copy_from_slice(&[0x01, 0x80]);
    config[0x80] = PCI_EXPRESS;
    config[0x80 + PCI_EXPRESS_FLAGS] = kind << 4 | 2;
    config
}

fn write(bridge: &Path, config: &[u8]) {
    fs::write(bridge.join("config"), config).expect("config");
}

#[test]
fn behind_ports_a_device_has_its_own_requester_id() {
    let tree = Tree::new();
    write(&tree.port(), &express(4));
    for kind in [5, 6] {
        write(&tree.bridge(), &express(kind));
        assert_eq!(tree.requester(), None, "{kind}");
    }
}

#[test]
fn a_bridge_to_conventional_pci_stands_for_the_devices_behind_it() {
    let tree = Tree::new();
    write(&tree.port(), &express(4));
    for kind in [7, 8] {
        write(&tree.bridge(), &express(kind));
        assert_eq!(tree.requester().as_deref(), Some(BRIDGE), "{kind}");
    }
    // Without the capability at all.
    write(&tree.bridge(), &[0; 256]);
    assert_eq!(tree.requester().as_deref(), Some(BRIDGE));
    // Of two, the one nearer to the root is what the IOMMU sees.
    write(&tree.port(), &[0; 256]);
    assert_eq!(tree.requester().as_deref(), Some(PORT));
}

#[test]
fn without_privilege_the_kernels_view_decides() {
    let tree = Tree::new();
    // As much as everybody may read.
    write(&tree.port(), &express(4)[..64]);
    write(&tree.bridge(), &express(7)[..64]);
    symlink("../drivers/pcieport", tree.port().join("driver")).expect("driver");
    assert_eq!(tree.requester().as_deref(), Some(BRIDGE));
    fs::write(tree.bridge().join("max_link_speed"), "8.0 GT/s PCIe\n").expect("speed");
    assert_eq!(tree.requester(), None);
}

#[test]
fn a_list_of_capabilities_that_runs_in_a_circle_ends() {
    let tree = Tree::new();
    write(&tree.port(), &express(4));
    let mut config = express(6);
    config[0x50..0x52].copy_from_slice(&[0x01, 0x50]);
    write(&tree.bridge(), &config);
    assert_eq!(tree.requester().as_deref(), Some(BRIDGE));
}
