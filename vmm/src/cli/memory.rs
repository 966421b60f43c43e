//! `--device virtio-mem-pci`: memory that comes and goes while the guest runs.

use super::error::UsageError;
use super::keys::{Key, ListError, Table, Values};
use super::places::{ADDR, ID};
use super::values::Kind;
use crate::config::{FunctionConfig, FunctionKind, MemoryConfig, MemoryDeviceConfig};

/// Bytes of a block if nothing else is said, and at the least: what the host has huge pages of.
const LEAST_BLOCK: u64 = 2 << 20;
const MOST_BLOCK: u64 = 1 << 30;

/// The keys.
pub(super) const TABLE: Table = Table {
    option: "--device virtio-mem-pci",
    implied: None,
    keys: &[
        Key {
            name: "size",
            aliases: &[],
            kind: Kind::Size { least: LEAST_BLOCK },
            default: "required",
            help: "how much the guest can have besides --memory; Linux takes multiples of 128M",
        },
        Key {
            name: "requested",
            aliases: &["requested-size"],
            kind: Kind::Size { least: 0 },
            default: "0",
            help: "how much of it the guest is to have at first",
        },
        Key {
            name: "block-size",
            aliases: &[],
            kind: Kind::Size { least: LEAST_BLOCK },
            default: "2M",
            help: "what it comes and goes in: a power of two, up to 1G",
        },
        ID,
        ADDR,
    ],
};

/// The device that the values of [`TABLE`] ask for.
pub(super) fn device(values: &Values) -> Result<MemoryDeviceConfig, ListError> {
    let block = values.number("block-size").unwrap_or(LEAST_BLOCK);
    if !block.is_power_of_two() || !(LEAST_BLOCK..=MOST_BLOCK).contains(&block) {
        return Err(values.conflict(format!(
            "block-size={block} is not possible; write a power of two from 2M to 1G"
        )));
    }
    let size = values.required_number("size")?;
    let requested = values.number("requested").unwrap_or(0);
    for (key, bytes) in [("size", size), ("requested", requested)] {
        if !bytes.is_multiple_of(block) {
            return Err(values.conflict(format!(
                "{key}={bytes} is no multiple of block-size, which is {}M; write one",
                block >> 20
            )));
        }
    }
    if size == 0 || requested > size {
        return Err(values.conflict(format!(
            "size={size} is not possible with requested={requested}; write a larger size"
        )));
    }
    Ok(MemoryDeviceConfig {
        size,
        requested,
        block,
    })
}

/// Refuses a second memory device, and one whose machine cannot give memory back.
pub(super) fn check(functions: &[FunctionConfig], memory: &MemoryConfig) -> Result<(), UsageError> {
    let devices = functions
        .iter()
        .filter(|function| matches!(function.kind, FunctionKind::Memory(_)));
    let why = match devices.count() {
        0 => return Ok(()),
        1 => memory.cannot_be_plugged(functions),
        _ => Some("it is given twice; a guest has one memory device, so make that larger"),
    };
    why.map_or(Ok(()), |why| {
        Err(UsageError::Message(format!(
            "--device virtio-mem-pci: {why}"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{config, error};

    #[test]
    fn a_memory_device_has_the_sizes_that_are_asked_for() {
        let config = config("--kernel k --memory 1G --device virtio-mem,size=2G");
        let [device] = config.functions.as_slice() else {
            panic!("{config:?}")
        };
        let expected = MemoryDeviceConfig {
            size: 2 << 30,
            requested: 0,
            block: 2 << 20,
        };
        assert_eq!(device.kind, FunctionKind::Memory(expected));
        assert_eq!(config.further_memory(), 2 << 30);
        assert_eq!(config.all_memory(), 3 << 30);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_with_those_that_can() {
        for (keys, says) in [
            ("id=m", "key `size` is missing"),
            ("size=0", "write a larger size"),
            (
                "size=3M",
                "size=3145728 is no multiple of block-size, which is 2M",
            ),
            ("size=1G,requested=1M", "requested=1048576 is no multiple"),
            ("size=1G,requested=2G", "write a larger size"),
            (
                "size=1G,block-size=3M",
                "write a power of two from 2M to 1G",
            ),
            (
                "size=1G,block-size=1M",
                "write a power of two from 2M to 1G",
            ),
            (
                "size=4G,block-size=2G",
                "write a power of two from 2M to 1G",
            ),
            ("size=1G,bus=p", "unknown key `bus`"),
        ] {
            let error = error(&format!("--kernel k --device virtio-mem,{keys}"));
            assert!(error.starts_with("--device virtio-mem-pci: "), "{error}");
            assert!(error.contains(says), "{keys}: {error}");
        }
    }

    #[test]
    fn a_guest_has_one_memory_device_and_none_whose_memory_stays_where_it_is() {
        let device = "--kernel k --device virtio-mem,size=1G";
        for (further, says) in [
            ("--device virtio-mem,size=1G", "it is given twice"),
            ("--memory 1G,hugepages=on", "write hugepages=off"),
            ("--net vhost-user=/s", "beside vhost-user"),
        ] {
            let error = error(&format!("{device} {further}"));
            assert!(error.contains(says), "{error}");
        }
        config(&format!("{device} --object iommufd,id=i"));
        config(&format!(
            "{device} --memory 1G,shared=on,prefault=on --device balloon"
        ));
    }
}
