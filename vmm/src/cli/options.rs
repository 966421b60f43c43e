//! The options that describe the whole machine with `key=value` lists: `--memory` and `--control`.

use std::path::PathBuf;

use super::keys::{Key, ListError, Table, parse_option};
use super::values::Kind;
use crate::config::MemoryConfig;

/// Bytes that a kernel needs to say that it has too little.
const LEAST_MEMORY: u64 = 16 << 20;
/// Longest socket path: what fits into `sockaddr_un`, whose last byte is 0.
pub(super) const SOCKET_PATH_LENGTH: usize = 107;

/// The keys of `--memory`.
pub(super) const MEMORY: Table = Table {
    option: "--memory",
    implied: Some("size"),
    keys: &[
        Key {
            name: "size",
            aliases: &[],
            kind: Kind::Size {
                least: LEAST_MEMORY,
            },
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
        Key {
            name: "shared",
            aliases: &["share"],
            kind: Kind::OnOff,
            default: "on with --object iommufd or vhost-user",
            help: "have other processes be able to map it, for a vhost-user device that is plugged in",
        },
    ],
};

/// The keys of `--control`.
pub(super) const CONTROL: Table = Table {
    option: "--control",
    implied: None,
    keys: &[Key {
        name: "path",
        aliases: &[],
        kind: Kind::ShortText("SOCKET", SOCKET_PATH_LENGTH),
        default: "required",
        help: "Unix socket to make, removed at the end; write `,,` for a comma",
    }],
};

/// The value of `--memory`.
pub(super) fn memory(argument: &str) -> Result<MemoryConfig, ListError> {
    const PAGE: u64 = 4096;
    const HUGE_PAGE: u64 = 2 << 20;

    let values = parse_option(&MEMORY, argument)?;
    let size = values.number("size").unwrap_or(512 << 20);
    let hugepages = values.on_off("hugepages").unwrap_or(false);
    let (page, kind) = if hugepages {
        (HUGE_PAGE, "huge page of 2M")
    } else {
        (PAGE, "page of 4K")
    };
    if size < LEAST_MEMORY {
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
        shared: values.on_off("shared").unwrap_or(false),
    })
}

/// The value of `--control`.
pub(super) fn control(argument: &str) -> Result<PathBuf, ListError> {
    let values = parse_option(&CONTROL, argument)?;
    let path = values.required_text("path", "SOCKET")?;
    if path.len() > SOCKET_PATH_LENGTH || path.contains('\0') {
        return Err(values.conflict(format!(
            "path=`{path}` is no socket path: at most {SOCKET_PATH_LENGTH} bytes, and none of them zero"
        )));
    }
    Ok(path.into())
}
