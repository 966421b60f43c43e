use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use vmm_sys_util::tempdir::TempDir;

const DEVICE: &str = "0000:01:00.0";
const NEIGHBOUR: &str = "0000:01:00.1";

/// A `/sys` of our own.
struct Tree {
    directory: TempDir,
}

impl Tree {
    fn new() -> Self {
        let directory = TempDir::new().expect("directory");
        Self { directory }
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.directory.as_path().join(rest)
    }

    fn device(&self, name: &str, driver: Option<&str>, node: Option<&str>) -> &Self {
        let device = self.path("bus/pci/devices").join(name);
        fs::create_dir_all(&device).expect("device");
        if let Some(driver) = driver {
            symlink(format!("../drivers/{driver}"), device.join("driver")).expect("driver");
        }
        if let Some(node) = node {
            fs::create_dir_all(device.join("vfio-dev").join(node)).expect("node");
        }
        self
    }

    fn group(&self, names: &[&str]) -> &Self {
        let group = self.path("kernel/iommu_groups/7");
        for name in names {
            fs::create_dir_all(group.join("devices").join(name)).expect("member");
            let device = self.path("bus/pci/devices").join(name);
            symlink(&group, device.join("iommu_group")).expect("group");
        }
        self
    }

    fn node(&self) -> Result<PathBuf, OpenError> {
        self.sysfs().node(address())
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs {
            sys: self.path(""),
            dev: PathBuf::from("/dev"),
        }
    }
}

fn address() -> HostAddress {
    DEVICE.parse().expect("address")
}

#[test]
fn a_device_of_vfio_pci_in_a_group_of_its_own_has_a_node() {
    let tree = Tree::new();
    tree.device(DEVICE, Some("vfio-pci"), Some("vfio3"))
        .group(&[DEVICE]);
    assert_eq!(
        tree.node().expect("node"),
        PathBuf::from("/dev/vfio/devices/vfio3")
    );
}

#[test]
fn the_group_of_a_device_is_found_by_its_address_and_by_its_node() {
    let tree = Tree::new();
    tree.device(DEVICE, Some("vfio-pci"), Some("vfio3"))
        .group(&[DEVICE]);
    assert_eq!(tree.sysfs().group(address()), Some(7));
    let node = tree.path("dev/char/511:3");
    fs::create_dir_all(&node).expect("node");
    assert_eq!(tree.sysfs().group_of(511, 3), None);
    symlink(
        tree.path("bus/pci/devices").join(DEVICE),
        node.join("device"),
    )
    .expect("device");
    assert_eq!(tree.sysfs().group_of(511, 3), Some(7));
    assert_eq!(tree.sysfs().group_of(511, 4), None);
}

#[test]
fn a_device_that_does_not_exist_is_named() {
    let error = Tree::new().node().expect_err("no device");
    assert!(matches!(error, OpenError::NoDevice(_)));
    assert!(error.to_string().contains(DEVICE), "{error}");
}

#[test]
fn another_driver_is_named_with_the_commands_that_replace_it() {
    let tree = Tree::new();
    tree.device(DEVICE, Some("nvme"), None).group(&[DEVICE]);
    let text = tree.node().expect_err("nvme has it").to_string();
    for part in [
        "the driver nvme",
        "echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override",
        "echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind",
        "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_device_without_driver_is_told_from_a_kernel_without_nodes() {
    let tree = Tree::new();
    tree.device(DEVICE, None, None).group(&[DEVICE]);
    assert!(matches!(tree.node(), Err(OpenError::NoDriver(_))));
    let tree = Tree::new();
    tree.device(DEVICE, Some("vfio-pci"), None).group(&[DEVICE]);
    let error = tree.node().expect_err("no node");
    assert!(matches!(error, OpenError::NoCdev(..)));
    assert!(error.to_string().contains("CONFIG_VFIO_DEVICE_CDEV"));
}

#[test]
fn a_device_in_no_group_needs_an_iommu() {
    let tree = Tree::new();
    tree.device(DEVICE, Some("vfio-pci"), Some("vfio0"));
    assert!(matches!(tree.node(), Err(OpenError::NoIommu(_))));
}

#[test]
fn neighbours_that_the_host_uses_are_listed_and_harmless_ones_are_not() {
    let tree = Tree::new();
    tree.device(DEVICE, Some("vfio-pci"), Some("vfio0"))
        .device(NEIGHBOUR, Some("snd_hda_intel"), None)
        .device("0000:00:01.0", Some("pcieport"), None)
        .device("0000:01:00.2", None, None)
        .device("0000:01:00.3", Some("mlx5_vfio_pci"), Some("vfio1"))
        .group(&[
            DEVICE,
            NEIGHBOUR,
            "0000:00:01.0",
            "0000:01:00.2",
            "0000:01:00.3",
        ]);
    let error = tree.node().expect_err("shared");
    let text = error.to_string();
    let OpenError::SharedGroup { group, others, .. } = error else {
        panic!("{text}");
    };
    assert_eq!(group, "7");
    assert_eq!(others, [(NEIGHBOUR.to_owned(), "snd_hda_intel".to_owned())]);
    assert!(text.contains("0000:01:00.1 (snd_hda_intel)"), "{text}");
}

#[test]
fn the_number_of_a_node_leads_to_its_device() {
    let tree = Tree::new();
    let node = tree.path("dev/char/511:3");
    fs::create_dir_all(&node).expect("node");
    symlink(format!("../../{DEVICE}"), node.join("device")).expect("device");
    assert_eq!(tree.sysfs().address_of(511, 3), Some(address()));
    assert_eq!(tree.sysfs().address_of(511, 4), None);
}
