//! Devices behind root ports: where they go, and what is refused.

use super::super::testing;
use crate::config::{Config, FunctionKind};

fn config(line: &str) -> Config {
    testing::config(&format!("--kernel k {line}"))
}

fn error(line: &str) -> String {
    testing::error(&format!("--kernel k {line}"))
}

#[test]
fn every_kind_of_device_can_be_behind_a_port_whatever_the_order() {
    let config = config(
        "--device edu,bus=a,id=e --device rng,bus=b --device console,bus=c --disk path=p,bus=d --net tap=t,bus=e1,id=n \
         --device pcie-root-port,id=a,addr=1f --device pcie-root-port,id=b --device root-port,id=c \
         --device root-port,id=d --device root-port,id=e1",
    );
    let behind: Vec<_> = config
        .functions
        .iter()
        .filter(|function| function.kind != FunctionKind::RootPort)
        .map(|function| (function.id.as_deref(), function.bus.as_deref()))
        .collect();
    assert_eq!(
        behind,
        [
            (None, Some("d")),
            (Some("n"), Some("e1")),
            (Some("e"), Some("a")),
            (None, Some("b")),
            (None, Some("c")),
        ]
    );
    let port = config
        .functions
        .iter()
        .find(|f| f.id.as_deref() == Some("a"));
    let port = port.expect("there");
    assert_eq!((port.device, &port.bus), (Some(0x1f), &None));
}

#[test]
fn a_port_needs_a_name_and_cannot_be_behind_another() {
    assert_eq!(
        error("--device pcie-root-port"),
        "--device pcie-root-port: key `id` is missing; add `id=NAME`"
    );
    assert_eq!(
        error("--device pcie-root-port,id=a,bus=b"),
        "--device pcie-root-port: unknown key `bus`; valid keys: id, addr"
    );
}

#[test]
fn names_are_unique_among_all_devices() {
    assert_eq!(
        error("--device pcie-root-port,id=a --disk path=p,id=a"),
        "id=a: two devices have this name; give one of them another"
    );
}

#[test]
fn a_port_that_is_not_there_is_named_with_those_that_are() {
    assert_eq!(
        error("--device edu,bus=a"),
        "bus=a: there is no such root port; add `--device pcie-root-port,id=a`"
    );
    assert_eq!(
        error("--device edu,bus=a,id=x --device root-port,id=b --device root-port,id=c"),
        "bus=a: there is no such root port; choose one of b, c, or add `--device pcie-root-port,id=a`"
    );
    assert!(error("--device edu,bus=x --device rng,id=x").contains("no such root port"));
}

#[test]
fn a_port_has_one_place() {
    assert_eq!(
        error("--device root-port,id=a --device edu,bus=a --device rng,bus=a"),
        "bus=a: two devices ask for this port, which has room for one; add another pcie-root-port"
    );
    assert_eq!(
        error("--device root-port,id=a --device edu,bus=a,addr=3"),
        "--device edu: bus=a and addr do not go together: a port has one place; drop `addr`"
    );
}

#[test]
fn only_devices_on_bus_0_count_against_its_room() {
    let ports: String = (0..31)
        .map(|n| format!(" --device root-port,id=p{n} --device edu,bus=p{n}"))
        .collect();
    assert_eq!(config(&ports).functions.len(), 62);
    assert!(error(&format!("{ports} --device edu")).contains("ask for 32 PCI devices"));
}
