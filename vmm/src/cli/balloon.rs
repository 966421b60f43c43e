//! `--device virtio-balloon-pci`: the memory balloon.

use devices::virtio::balloon::BalloonOptions;

use super::error::UsageError;
use super::keys::{Key, Table, Values};
use super::places::{ADDR, BUS, ID};
use super::values::Kind;
use crate::config::{FunctionConfig, FunctionKind, MemoryConfig};

/// The keys.
pub(super) const TABLE: Table = Table {
    option: "--device virtio-balloon-pci",
    implied: None,
    keys: &[
        Key {
            name: "deflate-on-oom",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "let the guest take memory out of the balloon when it has no other",
        },
        Key {
            name: "free-page-reporting",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "have the guest report memory that it does not use, which the host gets back until it is used again",
        },
        ID,
        BUS,
        ADDR,
    ],
};

/// What the values of [`TABLE`] ask for.
pub(super) fn options(values: &Values) -> BalloonOptions {
    BalloonOptions {
        deflate_on_oom: values.on_off("deflate-on-oom").unwrap_or(false),
        free_page_reporting: values.on_off("free-page-reporting").unwrap_or(false),
    }
}

/// Refuses a second balloon, and one whose machine cannot give memory back.
pub(super) fn check(
    functions: &[FunctionConfig],
    memory: &MemoryConfig,
    has_iommufd: bool,
) -> Result<(), UsageError> {
    let balloons = functions
        .iter()
        .filter(|function| matches!(function.kind, FunctionKind::Balloon(_)));
    let why = match balloons.count() {
        0 => return Ok(()),
        1 => memory.stays(functions, has_iommufd),
        _ => Some("it is given twice; a guest has one balloon, so keep one of them"),
    };
    why.map_or(Ok(()), |why| {
        Err(UsageError::Message(format!(
            "--device virtio-balloon-pci: {why}"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{config, error};

    fn of(options: &str) -> BalloonOptions {
        let config = config(&format!("--kernel k --device {options}"));
        match config.functions.as_slice() {
            [
                FunctionConfig {
                    kind: FunctionKind::Balloon(options),
                    ..
                },
            ] => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_balloon_has_what_is_asked_for_and_nothing_else() {
        assert_eq!(of("virtio-balloon"), BalloonOptions::default());
        let reporting = of("balloon,free-page-reporting=on,addr=7");
        assert!(reporting.free_page_reporting && !reporting.deflate_on_oom);
        let deflating = of("virtio-balloon-pci,deflate-on-oom=on,id=b");
        assert!(deflating.deflate_on_oom && !deflating.free_page_reporting);
    }

    #[test]
    fn a_guest_has_one_balloon_and_none_whose_memory_stays_where_it_is() {
        let balloon = "--kernel k --device virtio-balloon";
        for (further, says) in [
            ("--device balloon", "it is given twice"),
            ("--memory 1G,hugepages=on", "write hugepages=off"),
            ("--object iommufd,id=i", "by --device virtio-mem"),
            ("--disk vhost-user=/s", "beside vhost-user"),
        ] {
            let error = error(&format!("{balloon} {further}"));
            assert!(
                error.starts_with("--device virtio-balloon-pci: "),
                "{error}"
            );
            assert!(error.contains(says), "{error}");
        }
        config(&format!("{balloon} --memory 1G,shared=on,prefault=on"));
        config("--kernel k --memory 1G,hugepages=on --object iommufd,id=i");
    }
}
