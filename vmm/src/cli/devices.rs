//! The types of `--device`, in one table that parses and prints.

use devices::edu::{EduFeatures, EduOptions};

use super::assign;
use super::keys::{Key, ListError, Table, Values, split};
use super::options;
use super::values::{Kind, Value};
use crate::config::{FunctionConfig, FunctionKind, IommuConfig};

/// A device type.
pub(crate) struct DeviceType {
    name: &'static str,
    aliases: &'static [&'static str],
    help: &'static str,
    table: Table,
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

/// Why a `--device` was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error(
        "--device: unknown type `{name}`; valid types: {valid} (`--device help` describes them)"
    )]
    UnknownType { name: String, valid: String },
    #[error(transparent)]
    List(#[from] ListError),
}

/// `addr`, which every PCI function has.
pub(crate) const ADDR: Key = Key {
    name: "addr",
    aliases: &[],
    kind: Kind::Slot,
    default: "next free device",
    help: "place on PCI bus 0, hexadecimal",
};

/// `bus`, which every PCI function has that can be behind a root port.
pub(crate) const BUS: Key = Key {
    name: "bus",
    aliases: &[],
    kind: Kind::Text("PORT"),
    default: "none",
    help: "id of the pcie-root-port that it is behind",
};

/// `id`, which every PCI function has.
pub(crate) const ID: Key = Key {
    name: "id",
    aliases: &[],
    kind: Kind::Text("NAME"),
    default: "none",
    help: "name for other options and for the control socket",
};

const TYPES: &[DeviceType] = &[
    DeviceType {
        name: "intel-iommu",
        aliases: &[],
        help: "Intel VT-d remapping unit in front of all PCI functions",
        table: Table {
            option: "--device intel-iommu",
            implied: None,
            keys: &[
                Key {
                    name: "x-flts",
                    aliases: &["flts", "fsts"],
                    kind: Kind::OnOffAuto,
                    default: "auto",
                    help: "first-stage translation besides second-stage; auto: if the host nests for every assigned device",
                },
                Key {
                    name: "aw-bits",
                    aliases: &[],
                    kind: Kind::OneOf(&[39, 48, 57]),
                    default: "48",
                    help: "width of translated addresses",
                },
                Key {
                    name: "intremap",
                    aliases: &[],
                    kind: Kind::OnOff,
                    default: "on",
                    help: "interrupt remapping",
                },
                Key {
                    name: "caching-mode",
                    aliases: &[],
                    kind: Kind::OnOffAuto,
                    default: "auto",
                    help: "guest announces new mappings too; auto: with an iommufd",
                },
                Key {
                    name: "x-scalable-mode",
                    aliases: &["scalable-mode"],
                    kind: Kind::OnOff,
                    default: "on",
                    help: "scalable mode, which first-stage translation needs",
                },
                Key {
                    name: "device-iotlb",
                    aliases: &[],
                    kind: Kind::OnOff,
                    default: "off",
                    help: "devices with ATS may ask for translations and keep them",
                },
                Key {
                    name: "pasid-bits",
                    aliases: &[],
                    kind: Kind::Number,
                    default: "0",
                    help: "width of PASIDs, up to 20; 0: requests have none",
                },
                Key {
                    name: "svm",
                    aliases: &[],
                    kind: Kind::OnOff,
                    default: "off",
                    help: "devices with PRI may ask for pages; needs the two keys above, and x-flts=on",
                },
                Key {
                    name: "x-keep-translations",
                    aliases: &[],
                    kind: Kind::OnOff,
                    default: "off",
                    help: "keep translations until the guest invalidates them, to find invalidations that it forgot; slow",
                },
            ],
        },
        build: intel_iommu,
    },
    DeviceType {
        name: "edu",
        aliases: &[],
        help: "educational device: DMA engine, MSI and INTx",
        table: Table {
            option: "--device edu",
            implied: None,
            keys: &[
                Key {
                    name: "dma_mask",
                    aliases: &["dma-mask"],
                    kind: Kind::Number,
                    default: "0x0fffffff",
                    help: "address bits that its DMA engine drives",
                },
                Key {
                    name: "ats",
                    aliases: &[],
                    kind: Kind::OnOff,
                    default: "off",
                    help: "extension: asks for translations and keeps them",
                },
                Key {
                    name: "pasid",
                    aliases: &[],
                    kind: Kind::OnOff,
                    default: "off",
                    help: "extension: makes requests with a PASID",
                },
                Key {
                    name: "pri",
                    aliases: &[],
                    kind: Kind::OnOff,
                    default: "off",
                    help: "extension: asks for pages; needs ats=on",
                },
                ID,
                BUS,
                ADDR,
            ],
        },
        build: edu,
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
            ..options::DISK
        },
        build: |values| Ok(Device::Function(options::disk_of(values)?)),
    },
    DeviceType {
        name: "virtio-net-pci",
        aliases: &["virtio-net"],
        help: "network device, the same as --net",
        table: Table {
            option: "--device virtio-net-pci",
            ..options::NET
        },
        build: |values| Ok(Device::Function(options::net_of(values)?)),
    },
    DeviceType {
        name: "virtio-rng-pci",
        aliases: &["virtio-rng", "rng"],
        help: "entropy source",
        table: Table {
            option: "--device virtio-rng-pci",
            implied: None,
            keys: &[ID, BUS, ADDR],
        },
        build: |values| function(values, FunctionKind::Rng),
    },
    DeviceType {
        name: "virtio-console",
        aliases: &["console"],
        help: "console hvc0 on the standard streams; takes the input from the serial port",
        table: Table {
            option: "--device virtio-console",
            implied: None,
            keys: &[ID, BUS, ADDR],
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

/// A function of that kind with its name and at its place: the values of `id`, `bus` and `addr`.
pub(crate) fn placed(values: &Values, kind: FunctionKind) -> Result<FunctionConfig, ListError> {
    let device = match values.get(ADDR.name) {
        Some(Value::Slot(slot)) => Some(*slot),
        _ => None,
    };
    let bus = values.text(BUS.name);
    if let (Some(bus), Some(_)) = (bus, device) {
        return Err(values.conflict(format!(
            "bus={bus} and addr do not go together: a port has one place; drop `addr`"
        )));
    }
    Ok(FunctionConfig {
        id: values.text(ID.name).map(str::to_owned),
        bus: bus.map(str::to_owned),
        device,
        kind,
    })
}

fn edu(values: &Values) -> Result<Device, ListError> {
    let dma_mask = values
        .number("dma_mask")
        .unwrap_or(EduOptions::default().dma_mask);
    let features = EduFeatures {
        ats: values.on_off("ats").unwrap_or(false),
        pasid: values.on_off("pasid").unwrap_or(false),
        pri: values.on_off("pri").unwrap_or(false),
    };
    if features.pri && !features.ats {
        return Err(
            values.conflict("pri=on needs ats=on; add `ats=on` or drop `pri=on`".to_owned())
        );
    }
    let options = EduOptions { dma_mask, features };
    function(values, FunctionKind::Edu(options))
}

fn intel_iommu(values: &Values) -> Result<Device, ListError> {
    let scalable = values.on_off("x-scalable-mode").unwrap_or(true);
    let first_stage = values.on_off("x-flts");
    if first_stage == Some(true) && !scalable {
        return Err(values.conflict(
            "x-flts=on needs scalable mode; drop `x-scalable-mode=off` or write `x-flts=off`"
                .to_owned(),
        ));
    }
    let aw_bits = match values.number("aw-bits") {
        Some(39) => 39,
        Some(57) => 57,
        _ => 48,
    };
    if first_stage == Some(true) && aw_bits == 39 {
        return Err(values.conflict(
            "x-flts=on needs 48 or 57 address bits; drop `aw-bits=39` or write `x-flts=off`"
                .to_owned(),
        ));
    }
    let can_have_first_stage = first_stage.unwrap_or(true) && scalable && aw_bits != 39;
    let pasid_bits = values.number("pasid-bits").unwrap_or(0);
    let pasid_bits = u8::try_from(pasid_bits)
        .ok()
        .filter(|bits| *bits <= 20)
        .ok_or_else(|| {
            values.conflict(format!(
                "pasid-bits={pasid_bits} is too wide: a PASID has at most 20 bits; write `pasid-bits=20` or less"
            ))
        })?;
    let device_iotlb = values.on_off("device-iotlb").unwrap_or(false);
    let page_requests = values.on_off("svm").unwrap_or(false);
    let needed = [
        (
            pasid_bits != 0,
            scalable,
            "pasid-bits",
            "x-scalable-mode=on",
        ),
        (
            page_requests,
            can_have_first_stage,
            "svm=on",
            "x-flts=on with 48 or 57 address bits",
        ),
        (page_requests, device_iotlb, "svm=on", "device-iotlb=on"),
        (page_requests, pasid_bits != 0, "svm=on", "pasid-bits=20"),
    ];
    if let Some((_, _, what, needs)) = needed.iter().find(|(asked, there, ..)| *asked && !there) {
        return Err(values.conflict(format!("{what} needs {needs}; add that, or drop {what}")));
    }
    Ok(Device::Iommu(IommuConfig {
        aw_bits,
        scalable,
        first_stage: first_stage.or((!can_have_first_stage).then_some(false)),
        intremap: values.on_off("intremap").unwrap_or(true),
        caching_mode: values.on_off("caching-mode"),
        device_iotlb,
        pasid_bits,
        page_requests,
        keep_translations: values.on_off("x-keep-translations").unwrap_or(false),
    }))
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
#[path = "devices_test.rs"]
mod devices_test;
