//! Assigned devices: `--object iommufd`, `--device vfio-pci`, and what goes with them.

use std::path::Path;

use devices::vfio::HostAddress;

use super::UsageError;
use super::devices::{BUS, ID};
use super::keys::{Key, ListError, Table, Values, split};
use super::values::Kind;
use crate::config::{
    FileSource, FunctionConfig, FunctionKind, HostDevice, IommuConfig, IommufdConfig, VfioConfig,
};

/// `fd`, for whatever can be opened beforehand.
const FD: Key = Key {
    name: "fd",
    aliases: &[],
    kind: Kind::Number,
    default: "none",
    help: "a file descriptor that nido was started with, instead",
};

/// The keys of `--object iommufd`.
pub(super) const IOMMUFD: Table = Table {
    option: "--object iommufd",
    implied: None,
    keys: &[
        Key {
            default: "required",
            help: "name, which devices give as `iommufd`",
            ..ID
        },
        Key {
            name: "path",
            aliases: &[],
            kind: Kind::Text("FILE"),
            default: intel_vtd_host::iommufd::DEVICE,
            help: "device node of the host's iommufd",
        },
        FD,
    ],
};

/// The keys of `--device vfio-pci`.
pub(super) const VFIO_PCI: Table = Table {
    option: "--device vfio-pci",
    implied: None,
    keys: &[
        Key {
            name: "host",
            aliases: &[],
            kind: Kind::Text("ADDRESS"),
            default: "required",
            help: "address on the host, such as 0000:01:00.0",
        },
        Key {
            name: "sysfsdev",
            aliases: &[],
            kind: Kind::Text("DIRECTORY"),
            default: "none",
            help: "the same as a directory of /sys/bus/pci/devices, instead",
        },
        Key {
            help: "a node of /dev/vfio/devices that nido was started with, instead",
            ..FD
        },
        Key {
            name: "iommufd",
            aliases: &[],
            kind: Kind::Text("ID"),
            default: "required",
            help: "id of the `--object iommufd` that it is bound to",
        },
        Key {
            name: "needs-reset",
            aliases: &[],
            kind: Kind::OnOff,
            default: "on",
            help: "refuse a device that the host cannot reset: it keeps what its last guest left in it",
        },
        Key {
            name: "pasid",
            aliases: &[],
            kind: Kind::OnOffAuto,
            default: "auto",
            help: "show the guest that it has PASIDs; auto: if intel-iommu takes them (pasid-bits) and the host offers them",
        },
        Key {
            name: "ats",
            aliases: &[],
            kind: Kind::OnOffAuto,
            default: "auto",
            help: "show the guest that it keeps translations; auto: if intel-iommu lets it (device-iotlb) and the host, too",
        },
        Key {
            name: "pri",
            aliases: &[],
            kind: Kind::OnOffAuto,
            default: "auto",
            help: "show the guest that it asks for pages; auto: if intel-iommu takes such requests (svm) and the host, too",
        },
        ID,
        BUS,
        super::devices::ADDR,
    ],
};

/// The value of one `--object`.
pub(super) fn object(argument: &str) -> Result<IommufdConfig, UsageError> {
    let elements = split(argument);
    let keys = match elements.split_first() {
        Some((name, keys)) if name == "iommufd" => keys,
        _ => {
            return Err(UsageError::Message(format!(
                "--object {argument}: unknown type; write `--object iommufd,id=ID`"
            )));
        }
    };
    let values = IOMMUFD.parse(keys)?;
    let source = match (values.text("path"), descriptor(&values)?) {
        (Some(_), Some(_)) => {
            let problem = "path and fd are both given; keep one of them";
            return Err(values.conflict(problem.to_owned()).into());
        }
        (None, Some(fd)) => FileSource::Descriptor(fd),
        (path, None) => FileSource::Path(path.unwrap_or(intel_vtd_host::iommufd::DEVICE).into()),
    };
    Ok(IommufdConfig {
        id: values.required_text("id", "iommufd0")?.to_owned(),
        source,
    })
}

/// Whether `--object help` or the like was given.
pub(super) fn asks_for_help(argument: &str) -> bool {
    matches!(argument, "help" | "iommufd,help")
}

/// What a `--device vfio-pci` asks for.
pub(super) fn vfio_pci(values: &Values) -> Result<FunctionKind, ListError> {
    let address = |text: &str| {
        text.parse::<HostAddress>()
            .map(HostDevice::Address)
            .map_err(|error| values.conflict(error.to_string()))
    };
    let directory = |text: &str| {
        let name = Path::new(text).file_name().and_then(|name| name.to_str());
        address(name.unwrap_or(text))
    };
    let given = [
        values.text("host").map(address),
        values.text("sysfsdev").map(directory),
        descriptor(values)?.map(|fd| Ok(HostDevice::Descriptor(fd))),
    ];
    let mut given = given.into_iter().flatten();
    let device = match (given.next(), given.next()) {
        (Some(device), None) => device?,
        (None, _) => {
            values.required_text("host", "0000:01:00.0")?;
            return Err(values.conflict("there is no device".to_owned()));
        }
        (Some(_), Some(_)) => {
            let problem = "host, sysfsdev and fd each name the device; keep one of them";
            return Err(values.conflict(problem.to_owned()));
        }
    };
    Ok(FunctionKind::Vfio(VfioConfig {
        device,
        iommufd: values.required_text("iommufd", "ID")?.to_owned(),
        needs_reset: values.on_off("needs-reset").unwrap_or(true),
        pasid: values.on_off("pasid"),
        ats: values.on_off("ats"),
        pri: values.on_off("pri"),
    }))
}

fn descriptor(values: &Values) -> Result<Option<i32>, ListError> {
    let Some(number) = values.number(FD.name) else {
        return Ok(None);
    };
    i32::try_from(number)
        .ok()
        // The standard streams are the guest's console and our own messages.
        .filter(|fd| *fd > 2)
        .map(Some)
        .ok_or_else(|| {
            values.conflict(format!(
                "fd={number} is no file descriptor for this; open it as 3 or above, for example with `fd=3 3<>FILE` in a shell"
            ))
        })
}

/// Refuses what cannot be together with assigned devices.
pub(super) fn check(
    objects: &[IommufdConfig],
    functions: &[FunctionConfig],
    unit: Option<&IommuConfig>,
) -> Result<(), UsageError> {
    let problem = |text: String| Err(UsageError::Message(text));
    let mut ids: Vec<&str> = Vec::new();
    let mut descriptors = Vec::new();
    for object in objects {
        if ids.contains(&object.id.as_str()) {
            return problem(format!(
                "--object iommufd,id={}: two objects have this id; give one of them another",
                object.id
            ));
        }
        ids.push(&object.id);
        if let FileSource::Descriptor(fd) = object.source {
            descriptors.push(fd);
        }
    }
    let mut devices = Vec::new();
    for function in functions {
        let FunctionKind::Vfio(device) = &function.kind else {
            continue;
        };
        if !ids.contains(&device.iommufd.as_str()) {
            return problem(format!(
                "{device}: there is no object with this id; add `--object iommufd,id={}`{}",
                device.iommufd,
                others(&ids)
            ));
        }
        if devices.contains(&device.device) {
            return problem(format!(
                "{device}: the device is given twice; one guest device is all it can be, so keep one of them"
            ));
        }
        devices.push(device.device);
        if let HostDevice::Descriptor(fd) = device.device {
            descriptors.push(fd);
        }
    }
    descriptors.sort_unstable();
    if let Some([fd, _]) = descriptors.windows(2).find(|pair| pair[0] == pair[1]) {
        return problem(format!(
            "fd={fd}: the file descriptor is given twice; each file is one thing, so keep one of them"
        ));
    }
    let first = functions.iter().find_map(|function| match &function.kind {
        FunctionKind::Vfio(device) => Some(device),
        _ => None,
    });
    match (unit, first) {
        (Some(unit), Some(device)) => check_unit(unit, device),
        _ => Ok(()),
    }
}

/// Refuses a unit that `device` cannot be behind.
fn check_unit(unit: &IommuConfig, device: &VfioConfig) -> Result<(), UsageError> {
    if unit.caching_mode != Some(false) {
        return Ok(());
    }
    Err(UsageError::Message(format!(
        "--device intel-iommu: caching-mode=off does not go with {device}: without caching mode a guest does not announce what it \
         maps, so the host's IOMMU would never learn of it; leave it out, and it is on"
    )))
}

fn others(ids: &[&str]) -> String {
    match ids {
        [] => String::new(),
        ids => format!(", or choose one of {}", ids.join(", ")),
    }
}

#[cfg(test)]
#[path = "assign_test.rs"]
mod assign_test;
