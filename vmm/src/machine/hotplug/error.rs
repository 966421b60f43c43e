//! The errors of hot-plug.

use super::PATIENCE;

/// Why a device is not added or removed. Nothing has changed then, unless it says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HotPlugError {
    #[error(
        "this machine has no root port; start nido with `--device pcie-root-port,id=PORT`, once for each device to come"
    )]
    NoPorts,
    #[error("key `bus` is missing; add `bus=PORT`, where PORT is one of {ports}")]
    NoBus { ports: String },
    #[error("bus={bus}: there is no such root port; choose one of {ports}")]
    UnknownPort { bus: String, ports: String },
    #[error(
        "bus={port}: the port has a device already; remove it with `device-del {device}`, or choose another port"
    )]
    Occupied { port: String, device: String },
    #[error("bus={port}: {what}; try again in a few seconds")]
    Busy { port: String, what: &'static str },
    #[error("id={0}: another device has this name; choose another")]
    NameTaken(String),
    #[error("{what} cannot be plugged in: {why}")]
    NotPluggable {
        what: &'static str,
        why: &'static str,
    },
    #[error("the guest is paused, and could not answer; write `resume` first")]
    Paused,
    #[error("the guest is being migrated; wait for that to end, or say `migrate-cancel`")]
    Leaving,
    #[error("{0:#}")]
    Make(anyhow::Error),
    #[error("there is no device `{id}` behind a root port; {there}")]
    NoDevice { id: String, there: String },
    #[error("{0}")]
    Slot(#[from] pci::UnplugError),
    #[error("`{0}` was removed by another request meanwhile")]
    Overtaken(String),
    #[error(
        "the guest keeps `{id}`: it cancelled the removal, or was reset; try again, or write `device-del {id},force=on` to pull it out"
    )]
    Declined { id: String },
    #[error(
        "the guest has not let go of `{id}` within {} seconds; try again, or write `device-del {id},force=on` to pull it out",
        PATIENCE.as_secs()
    )]
    TimedOut { id: String },
}
