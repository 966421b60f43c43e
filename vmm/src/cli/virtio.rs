//! virtio disks, network and socket devices: `--disk`, `--net`, `--vsock`, and the same as types of `--device`.

use devices::virtio::blk::MAX_QUEUES;
use devices::virtio::net::MAX_PAIRS;

use super::error::UsageError;
use super::keys::{Key, ListError, Table, Values, parse_option};
use super::options::SOCKET_PATH_LENGTH;
use super::places::{ADDR, BUS, ID, placed};
use super::values::{Kind, Value};
use crate::config::{DiskConfig, FunctionConfig, FunctionKind, NetConfig, Served, VhostUserConfig};

/// Bytes of the serial number of a virtio disk (virtio 1.3, 5.2.6.1).
const SERIAL_LENGTH: usize = 20;
/// Longest name of a network interface: IFNAMSIZ of Linux, without the terminating zero.
const INTERFACE_LENGTH: usize = 15;
/// Addresses of AF_VSOCK that a guest can have: what is below is the host's (virtio 1.3, 5.10.4), and
/// VMADDR_CID_ANY is above.
const LEAST_CID: u32 = 3;
const MOST_CID: u32 = u32::MAX - 1;

const VHOST_USER: Key = Key {
    name: "vhost-user",
    aliases: &[],
    kind: Kind::ShortText("SOCKET", SOCKET_PATH_LENGTH),
    default: "none",
    help: "have the process that listens there serve the device; not with intel-iommu",
};

/// The keys of `--disk`.
pub(super) const DISK: Table = Table {
    option: "--disk",
    implied: None,
    keys: &[
        Key {
            name: "path",
            aliases: &["file"],
            kind: Kind::Text("FILE"),
            default: "required, or vhost-user",
            help: "raw image or block device; write `,,` for a comma",
        },
        VHOST_USER,
        Key {
            name: "readonly",
            aliases: &["ro"],
            kind: Kind::OnOff,
            default: "off",
            help: "refuse writes",
        },
        Key {
            name: "id",
            aliases: &["serial"],
            kind: Kind::ShortText("ID", SERIAL_LENGTH),
            default: "none",
            help: "name, and the serial number that the guest sees",
        },
        Key {
            name: "queues",
            aliases: &["num-queues"],
            kind: Kind::Bounded {
                least: 1,
                most: MAX_QUEUES as u64,
            },
            default: "one for each vCPU, up to 4",
            help: "queues, each with a thread and an interrupt of its own",
        },
        BUS,
        ADDR,
    ],
};

/// The keys of `--net`.
pub(super) const NET: Table = Table {
    option: "--net",
    implied: None,
    keys: &[
        Key {
            name: "tap",
            aliases: &["ifname"],
            kind: Kind::ShortText("NAME", INTERFACE_LENGTH),
            default: "required, or vhost-user",
            help: "tap interface of the host",
        },
        VHOST_USER,
        Key {
            name: "mac",
            aliases: &[],
            kind: Kind::Mac,
            default: "made up",
            help: "hardware address",
        },
        Key {
            name: "queues",
            aliases: &[],
            kind: Kind::Bounded {
                least: 1,
                most: MAX_PAIRS as u64,
            },
            default: "one for each vCPU, up to 4, if the tap has several",
            help: "queue pairs, each with a thread and interrupts of its own, and a queue of the tap (multi_queue)",
        },
        Key {
            name: "vhost",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "have the kernel move the packets (/dev/vhost-net)",
        },
        ID,
        BUS,
        ADDR,
    ],
};

/// The keys of `--vsock`.
pub(super) const VSOCK: Table = Table {
    option: "--vsock",
    implied: None,
    keys: &[
        Key {
            name: "cid",
            aliases: &["guest-cid"],
            kind: Kind::Bounded {
                least: LEAST_CID as u64,
                most: MOST_CID as u64,
            },
            default: "required",
            help: "the guest's address for AF_VSOCK; the host's is 2",
        },
        ID,
        BUS,
        ADDR,
    ],
};

/// The value of one `--disk`.
pub(super) fn disk(argument: &str) -> Result<FunctionConfig, ListError> {
    disk_of(&parse_option(&DISK, argument)?)
}

/// A disk, from the values of the keys of [`DISK`].
pub(super) fn disk_of(values: &Values) -> Result<FunctionConfig, ListError> {
    let id = values.text("id");
    if let Some(id) = id.filter(|id| id.len() > SERIAL_LENGTH) {
        return Err(values.conflict(format!(
            "id=`{id}` is longer than {SERIAL_LENGTH} bytes; shorten it"
        )));
    }
    let queues = queues(values, MAX_QUEUES)?;
    if let Some(served) = served(values, &["path", "readonly"], Served::Disk { queues })? {
        return placed(values, served);
    }
    let disk = DiskConfig {
        path: values.required_text("path", "FILE")?.into(),
        readonly: values.on_off("readonly").unwrap_or(false),
        id: id.map(str::to_owned),
        queues,
    };
    placed(values, FunctionKind::Disk(disk))
}

/// The device as one that another process serves, if `vhost-user` is given. `ours` are keys that are for
/// devices that nido serves.
fn served(
    values: &Values,
    ours: &[&str],
    device: Served,
) -> Result<Option<FunctionKind>, ListError> {
    let Some(socket) = values.text(VHOST_USER.name) else {
        return Ok(None);
    };
    if socket.is_empty() || socket.len() > SOCKET_PATH_LENGTH || socket.contains('\0') {
        return Err(values.conflict(format!(
            "vhost-user=`{socket}` is no socket path: 1 to {SOCKET_PATH_LENGTH} bytes, and none of them zero"
        )));
    }
    if let Some(key) = ours.iter().find(|key| values.get(key).is_some()) {
        return Err(values.conflict(format!(
            "{key} and vhost-user cannot be together: it is for a device that nido serves; drop one of them"
        )));
    }
    Ok(Some(FunctionKind::VhostUser(VhostUserConfig {
        socket: socket.into(),
        device,
    })))
}

/// Refuses devices that would have to be behind the unit, and cannot.
pub(super) fn check(functions: &[FunctionConfig], has_unit: bool) -> Result<(), UsageError> {
    let mut served = functions
        .iter()
        .filter_map(|function| match &function.kind {
            FunctionKind::VhostUser(device) => Some(device),
            _ => None,
        });
    match served.next() {
        Some(device) if has_unit => Err(UsageError::Message(device.with_a_unit())),
        _ => Ok(()),
    }
}

/// How many queues a device is to have, if that is said.
fn queues(values: &Values, most: u16) -> Result<Option<u16>, ListError> {
    let Some(number) = values.number("queues") else {
        return Ok(None);
    };
    match u16::try_from(number) {
        Ok(queues) if (1..=most).contains(&queues) => Ok(Some(queues)),
        _ => Err(values.conflict(format!(
            "queues={number} is not possible; write 1 to {most}"
        ))),
    }
}

/// The value of one `--net`.
pub(super) fn net(argument: &str) -> Result<FunctionConfig, ListError> {
    net_of(&parse_option(&NET, argument)?)
}

/// A network device, from the values of the keys of [`NET`].
pub(super) fn net_of(values: &Values) -> Result<FunctionConfig, ListError> {
    let mac = match values.get("mac") {
        Some(Value::Mac(mac)) => Some(*mac),
        _ => None,
    };
    if let Some(served) = served(values, &["tap", "queues", "vhost"], Served::Net { mac })? {
        return placed(values, served);
    }
    let tap = values.required_text("tap", "NAME")?;
    if tap.len() > INTERFACE_LENGTH || tap.contains('/') {
        return Err(values.conflict(format!(
            "tap=`{tap}` is no interface name: at most {INTERFACE_LENGTH} bytes without `/`"
        )));
    }
    let net = NetConfig {
        tap: tap.to_owned(),
        mac,
        queues: queues(values, MAX_PAIRS)?,
        vhost: values.on_off("vhost").unwrap_or(false),
    };
    placed(values, FunctionKind::Net(net))
}

/// The value of one `--vsock`.
pub(super) fn vsock(argument: &str) -> Result<FunctionConfig, ListError> {
    vsock_of(&parse_option(&VSOCK, argument)?)
}

/// A socket device, from the values of the keys of [`VSOCK`].
pub(super) fn vsock_of(values: &Values) -> Result<FunctionConfig, ListError> {
    let cid = values.required_number("cid")?;
    match u32::try_from(cid) {
        Ok(cid) if (LEAST_CID..=MOST_CID).contains(&cid) => {
            placed(values, FunctionKind::Vsock(cid))
        }
        _ => Err(values.conflict(format!(
            "cid={cid} is no address of a guest: 0, 1 and 2 are not for guests; write a number from {LEAST_CID} to {MOST_CID}"
        ))),
    }
}
