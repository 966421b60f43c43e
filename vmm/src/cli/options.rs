//! The options that take `key=value` lists of their own: `--memory`, `--disk`, `--net` and `--control`.

use std::path::PathBuf;

use super::devices::{self, ADDR, BUS, ID};
use super::keys::{Key, ListError, Table, Values, parse_option};
use super::values::{Kind, Value};
use crate::config::{DiskConfig, FunctionConfig, FunctionKind, MemoryConfig, NetConfig};

/// The keys of `--memory`.
pub(super) const MEMORY: Table = Table {
    option: "--memory",
    implied: Some("size"),
    keys: &[
        Key {
            name: "size",
            aliases: &[],
            kind: Kind::Size,
            default: "512M",
            help: "amount of memory",
        },
        Key {
            name: "hugepages",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "take it from the host's reserved huge pages",
        },
        Key {
            name: "prefault",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "allocate all of it before the guest starts",
        },
    ],
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
            default: "required",
            help: "raw image or block device; write `,,` for a comma",
        },
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
            kind: Kind::Text("ID"),
            default: "none",
            help: "name, and the serial number that the guest sees; 20 bytes at most",
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
            kind: Kind::Text("NAME"),
            default: "required",
            help: "tap interface of the host, 15 bytes at most",
        },
        Key {
            name: "mac",
            aliases: &[],
            kind: Kind::Mac,
            default: "made up",
            help: "hardware address",
        },
        ID,
        BUS,
        ADDR,
    ],
};

/// The keys of `--control`.
pub(super) const CONTROL: Table = Table {
    option: "--control",
    implied: None,
    keys: &[Key {
        name: "path",
        aliases: &[],
        kind: Kind::Text("SOCKET"),
        default: "required",
        help: "Unix socket to make, removed at the end; write `,,` for a comma",
    }],
};

/// The value of `--memory`.
pub(super) fn memory(argument: &str) -> Result<MemoryConfig, ListError> {
    const PAGE: u64 = 4096;
    const HUGE_PAGE: u64 = 2 << 20;
    const MINIMUM: u64 = 16 << 20;

    let values = parse_option(&MEMORY, argument)?;
    let size = values.number("size").unwrap_or(512 << 20);
    let hugepages = values.on_off("hugepages").unwrap_or(false);
    let (page, kind) = if hugepages {
        (HUGE_PAGE, "huge page of 2M")
    } else {
        (PAGE, "page of 4K")
    };
    if size < MINIMUM {
        return Err(values.conflict(format!(
            "size of {size} bytes is too little for a kernel; write 16M or more"
        )));
    }
    if !size.is_multiple_of(page) {
        return Err(values.conflict(format!(
            "size of {size} bytes is no multiple of a {kind}; round it"
        )));
    }
    Ok(MemoryConfig {
        size,
        hugepages,
        prefault: values.on_off("prefault").unwrap_or(false),
    })
}

/// The value of one `--disk`.
pub(super) fn disk(argument: &str) -> Result<FunctionConfig, ListError> {
    disk_of(&parse_option(&DISK, argument)?)
}

/// A disk, from the values of the keys of [`DISK`].
pub(super) fn disk_of(values: &Values) -> Result<FunctionConfig, ListError> {
    let id = values.text("id");
    if let Some(id) = id.filter(|id| id.len() > 20) {
        return Err(values.conflict(format!("id=`{id}` is longer than 20 bytes; shorten it")));
    }
    let disk = DiskConfig {
        path: values.required_text("path", "FILE")?.into(),
        readonly: values.on_off("readonly").unwrap_or(false),
        id: id.map(str::to_owned),
    };
    devices::placed(values, FunctionKind::Disk(disk))
}

/// The value of one `--net`.
pub(super) fn net(argument: &str) -> Result<FunctionConfig, ListError> {
    net_of(&parse_option(&NET, argument)?)
}

/// A network device, from the values of the keys of [`NET`].
pub(super) fn net_of(values: &Values) -> Result<FunctionConfig, ListError> {
    let tap = values.required_text("tap", "NAME")?;
    if tap.len() > 15 || tap.contains('/') {
        return Err(values.conflict(format!(
            "tap=`{tap}` is no interface name: at most 15 bytes without `/`"
        )));
    }
    let mac = match values.get("mac") {
        Some(Value::Mac(mac)) => Some(*mac),
        _ => None,
    };
    let net = NetConfig {
        tap: tap.to_owned(),
        mac,
    };
    devices::placed(values, FunctionKind::Net(net))
}

/// The value of `--control`.
pub(super) fn control(argument: &str) -> Result<PathBuf, ListError> {
    // What fits into sockaddr_un, whose last byte is 0.
    const LONGEST: usize = 107;

    let values = parse_option(&CONTROL, argument)?;
    let path = values.required_text("path", "SOCKET")?;
    if path.len() > LONGEST || path.contains('\0') {
        return Err(values.conflict(format!(
            "path=`{path}` is no socket path: at most {LONGEST} bytes, and none of them zero"
        )));
    }
    Ok(path.into())
}
