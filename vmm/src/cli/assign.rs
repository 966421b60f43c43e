//! Assigned devices: `--object iommufd`, `--device vfio-pci`, and what goes with them.

use std::path::Path;

use devices::vfio::HostAddress;

use super::error::UsageError;
use super::keys::{Key, ListError, Table, Values, split};
use super::places::{ADDR, BUS, ID};
use super::values::Kind;
use crate::config::{
    FileSource, FunctionConfig, FunctionKind, HostDevice, IommuConfig, IommufdConfig, VfioConfig,
};

/// The standard streams, which come before, are the guest's console and our own messages.
const LEAST_DESCRIPTOR: u64 = 3;

/// `fd`, for whatever can be opened beforehand.
const FD: Key = Key {
    name: "fd",
    aliases: &[],
    kind: Kind::Bounded {
        least: LEAST_DESCRIPTOR,
        most: i32::MAX as u64,
    },
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
            default: intel_vtd_host::IOMMUFD_PATH,
            help: "device node of the host's iommufd",
        },
        FD,
        Key {
            name: "hugepages",
            aliases: &[],
            kind: Kind::OnOff,
            default: "on",
            help: "map memory for devices by huge pages where that can be; off: DMA is slower, and it is known of each page of \
                   4 KiB whether a device has written it, which a guest that is migrated with its devices has less sent for",
        },
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
        ADDR,
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
        (path, None) => FileSource::Path(path.unwrap_or(intel_vtd_host::IOMMUFD_PATH).into()),
    };
    Ok(IommufdConfig {
        id: values.required_text("id", "iommufd0")?.to_owned(),
        source,
        huge_pages: values.on_off("hugepages").unwrap_or(true),
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
    let fd = i32::try_from(number).ok();
    let fd = fd.filter(|_| number >= LEAST_DESCRIPTOR);
    fd.map(Some).ok_or_else(|| {
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
    let devices: Vec<&VfioConfig> = functions
        .iter()
        .filter_map(|function| match &function.kind {
            FunctionKind::Vfio(device) => Some(device),
            _ => None,
        })
        .collect();
    check_objects(objects)?;
    check_devices(&devices, objects)?;
    check_descriptors(&devices, objects)?;
    match (unit, devices.first()) {
        (Some(unit), Some(device)) => check_unit(unit, device),
        _ => Ok(()),
    }
}

/// Refuses two objects of one name.
fn check_objects(objects: &[IommufdConfig]) -> Result<(), UsageError> {
    let mut ids = Vec::new();
    for IommufdConfig { id, .. } in objects {
        if ids.contains(&id) {
            return Err(UsageError::Message(format!(
                "--object iommufd,id={id}: two objects have this id; give one of them another"
            )));
        }
        ids.push(id);
    }
    Ok(())
}

/// Refuses a device without its object, and one that is given twice.
fn check_devices(devices: &[&VfioConfig], objects: &[IommufdConfig]) -> Result<(), UsageError> {
    let ids: Vec<&str> = objects.iter().map(|object| object.id.as_str()).collect();
    let mut known = Vec::new();
    for device in devices {
        if !ids.contains(&device.iommufd.as_str()) {
            return Err(UsageError::Message(format!(
                "{device}: there is no object with this id; add `--object iommufd,id={}`{}",
                device.iommufd,
                others(&ids)
            )));
        }
        if known.contains(&device.device) {
            return Err(UsageError::Message(format!(
                "{device}: the device is given twice; one guest device is all it can be, so keep one of them"
            )));
        }
        known.push(device.device);
    }
    Ok(())
}

/// Refuses a file descriptor that is given twice.
fn check_descriptors(devices: &[&VfioConfig], objects: &[IommufdConfig]) -> Result<(), UsageError> {
    let of_objects = objects.iter().filter_map(|object| match object.source {
        FileSource::Descriptor(fd) => Some(fd),
        FileSource::Path(_) => None,
    });
    let of_devices = devices.iter().filter_map(|device| match device.device {
        HostDevice::Descriptor(fd) => Some(fd),
        HostDevice::Address(_) => None,
    });
    let mut descriptors: Vec<i32> = of_objects.chain(of_devices).collect();
    descriptors.sort_unstable();
    match descriptors.windows(2).find(|pair| pair[0] == pair[1]) {
        Some([fd, _]) => Err(UsageError::Message(format!(
            "fd={fd}: the file descriptor is given twice; each file is one thing, so keep one of them"
        ))),
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
mod assign_test;
