//! The types of `--device`, in one table that parses and prints.

use super::error::DeviceError;
use super::keys::{Key, ListError, Table, Values, split};
use super::places::{ADDR, ID, PLACE, placed};
use super::{assign, balloon, edu, intel_iommu, memory, virtio};
use crate::config::{FunctionConfig, FunctionKind, IommuConfig};

/// A device type.
pub(super) struct DeviceType {
    /// What comes first after `--device`.
    pub(super) name: &'static str,
    /// Other spellings that are accepted.
    pub(super) aliases: &'static [&'static str],
    /// One line of explanation.
    pub(super) help: &'static str,
    /// Its keys.
    pub(super) table: Table,
    build: fn(&Values) -> Result<Device, ListError>,
}

/// What a `--device` option asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A function on the PCI bus.
    Function(FunctionConfig),
    /// The remapping unit.
    Iommu(IommuConfig),
}

/// The outcome of parsing one `--device`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// A device.
    Device(Device),
    /// Help was asked for: the text to print.
    Help(String),
}

/// All types, in the order in which help shows them.
pub(super) const TYPES: &[DeviceType] = &[
    DeviceType {
        name: "intel-iommu",
        aliases: &[],
        help: "Intel VT-d remapping unit in front of all PCI functions",
        table: intel_iommu::TABLE,
        build: |values| Ok(Device::Iommu(intel_iommu::unit(values)?)),
    },
    DeviceType {
        name: "edu",
        aliases: &[],
        help: "educational device: DMA engine, MSI and INTx",
        table: edu::TABLE,
        build: |values| function(values, FunctionKind::Edu(edu::options(values)?)),
    },
    DeviceType {
        name: "pcie-root-port",
        aliases: &["root-port"],
        help: "PCI Express root port with a hot-plug slot for one device",
        table: Table {
            option: "--device pcie-root-port",
            implied: None,
            keys: &[
                Key {
                    default: "required",
                    help: "name, which devices behind it give as `bus`",
                    ..ID
                },
                ADDR,
            ],
        },
        build: |values| {
            values.required_text(ID.name, "NAME")?;
            function(values, FunctionKind::RootPort)
        },
    },
    DeviceType {
        name: "virtio-blk-pci",
        aliases: &["virtio-blk"],
        help: "disk, the same as --disk",
        table: Table {
            option: "--device virtio-blk-pci",
            ..virtio::DISK
        },
        build: |values| Ok(Device::Function(virtio::disk_of(values)?)),
    },
    DeviceType {
        name: "virtio-net-pci",
        aliases: &["virtio-net"],
        help: "network device, the same as --net",
        table: Table {
            option: "--device virtio-net-pci",
            ..virtio::NET
        },
        build: |values| Ok(Device::Function(virtio::net_of(values)?)),
    },
    DeviceType {
        name: "vhost-vsock-pci",
        aliases: &["vhost-vsock"],
        help: "sockets between guest and host, the same as --vsock",
        table: Table {
            option: "--device vhost-vsock-pci",
            ..virtio::VSOCK
        },
        build: |values| Ok(Device::Function(virtio::vsock_of(values)?)),
    },
    DeviceType {
        name: "virtio-rng-pci",
        aliases: &["virtio-rng", "rng"],
        help: "entropy source",
        table: Table {
            option: "--device virtio-rng-pci",
            implied: None,
            keys: PLACE,
        },
        build: |values| function(values, FunctionKind::Rng),
    },
    DeviceType {
        name: "virtio-balloon-pci",
        aliases: &["virtio-balloon", "balloon"],
        help: "memory balloon: the guest gives memory back to the host (`balloon` on the control socket)",
        table: balloon::TABLE,
        build: |values| function(values, FunctionKind::Balloon(balloon::options(values))),
    },
    DeviceType {
        name: "virtio-mem-pci",
        aliases: &["virtio-mem"],
        help: "memory that comes and goes while the guest runs (`memory` on the control socket)",
        table: memory::TABLE,
        build: |values| function(values, FunctionKind::Memory(memory::device(values)?)),
    },
    DeviceType {
        name: "virtio-console",
        aliases: &["console"],
        help: "console hvc0 on the standard streams; takes the input from the serial port",
        table: Table {
            option: "--device virtio-console",
            implied: None,
            keys: PLACE,
        },
        build: |values| function(values, FunctionKind::Console),
    },
    DeviceType {
        name: "vfio-pci",
        aliases: &["vfio"],
        help: "PCI function of the host, assigned to the guest",
        table: assign::VFIO_PCI,
        build: |values| function(values, assign::vfio_pci(values)?),
    },
];

fn function(values: &Values, kind: FunctionKind) -> Result<Device, ListError> {
    Ok(Device::Function(placed(values, kind)?))
}

/// Parses the argument of one `--device`.
pub(crate) fn parse(argument: &str) -> Result<Parsed, DeviceError> {
    let elements = split(argument);
    let (name, keys) = elements
        .split_first()
        .map_or(("", &[][..]), |(name, keys)| (name.as_str(), keys));
    if name == "help" {
        return Ok(Parsed::Help(help()));
    }
    let Some(device) = TYPES
        .iter()
        .find(|t| t.name == name || t.aliases.contains(&name))
    else {
        let valid = TYPES.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
        return Err(DeviceError::UnknownType {
            name: name.to_owned(),
            valid,
        });
    };
    if keys.iter().any(|key| key == "help") {
        return Ok(Parsed::Help(device.help()));
    }
    let values = device.table.parse(keys)?;
    Ok(Parsed::Device((device.build)(&values)?))
}

impl DeviceType {
    fn title(&self) -> String {
        let aliases = match self.aliases {
            [] => String::new(),
            aliases => format!(" (also: {})", aliases.join(", ")),
        };
        format!("{}{aliases}: {}\n", self.name, self.help)
    }

    fn help(&self) -> String {
        self.title() + &self.table.help()
    }
}

fn help() -> String {
    let titles: String = TYPES.iter().map(DeviceType::title).collect();
    format!("{titles}`--device TYPE,help` lists the keys of a type.\n")
}

#[cfg(test)]
mod devices_test;
