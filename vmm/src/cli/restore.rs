//! `--restore`, and what may be given beside it: what the host has to give. The machine is the snapshot's.

use std::fmt;
use std::path::PathBuf;

use super::error::UsageError;
use super::keys::{Key, Table, parse_option};
use super::places::{ADDR, ID};
use super::values::{Kind, Value};
use super::virtio::{DISK, NET};
use super::{Arguments, options};
use crate::config::{Config, FunctionConfig, FunctionKind};

/// The keys of `--restore`.
pub(super) const RESTORE: Table = Table {
    option: "--restore",
    implied: Some("path"),
    keys: &[
        Key {
            name: "path",
            aliases: &[],
            kind: Kind::Text("DIR"),
            default: "required",
            help: "directory that `snapshot` on the control socket has written; write `,,` for a comma",
        },
        Key {
            name: "paused",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "have the guest wait for `resume` on the control socket",
        },
    ],
};

/// Options that say what the machine is, by their names.
const OF_THE_MACHINE: [&str; 6] = ["cmdline", "memory", "cpus", "vsock", "device", "object"];

/// A snapshot to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restore {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Whether the guest waits for a client of the control socket.
    pub(crate) paused: bool,
    changes: Changes,
}

/// What is not as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Changes {
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    control: Option<PathBuf>,
    no_reboot: bool,
    disks: Vec<(Which, PathBuf)>,
    taps: Vec<(Which, String)>,
}

/// Names a device of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Id(String),
    /// By its device number on bus 0.
    Place(u8),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "id={id}"),
            Self::Place(device) => write!(f, "addr={device:x}"),
        }
    }
}

/// What `arguments` say about it. `given` tells whether an option is there.
pub(super) fn restore(
    arguments: &Arguments,
    given: impl Fn(&str) -> bool,
) -> Result<Restore, UsageError> {
    if let Some(option) = OF_THE_MACHINE.iter().find(|option| given(option)) {
        return Err(UsageError::Message(format!(
            "--{option} is part of the machine, which the snapshot of --restore has; leave it out"
        )));
    }
    let argument = arguments.restore.as_deref().unwrap_or_default();
    let values = parse_option(&RESTORE, argument)?;
    let path = values.required_text("path", "DIR")?;
    let paused = values.on_off("paused").unwrap_or(false);
    let control = arguments.control.as_deref().map(options::control);
    let control = control.transpose()?;
    if paused && control.is_none() {
        return Err(UsageError::Message(
            "--restore: paused=on needs somebody to say `resume`; add `--control path=SOCKET`"
                .to_owned(),
        ));
    }
    let disks = arguments.disk.iter();
    let disks = disks.map(|argument| change(&DISK, argument, "path", "FILE"));
    let taps = arguments.net.iter();
    let taps = taps.map(|argument| change(&NET, argument, "tap", "NAME"));
    Ok(Restore {
        path: path.into(),
        paused,
        changes: Changes {
            kernel: arguments.kernel.clone(),
            initramfs: arguments.initramfs.clone(),
            control,
            no_reboot: arguments.no_reboot,
            disks: disks
                .map(|change| change.map(|(which, path)| (which, path.into())))
                .collect::<Result<_, _>>()?,
            taps: taps.collect::<Result<_, _>>()?,
        },
    })
}

/// Which device, and the value of the one key that may change.
fn change(
    table: &Table,
    argument: &str,
    key: &'static str,
    example: &'static str,
) -> Result<(Which, String), UsageError> {
    let values = parse_option(table, argument)?;
    let mut given = values.given();
    if let Some(fixed) = given.find(|given| ![key, ID.name, ADDR.name].contains(given)) {
        let problem = format!(
            "{fixed} is part of the machine, which the snapshot of --restore has; give id, or addr, and {key}"
        );
        return Err(values.conflict(problem).into());
    }
    let which = match (values.text(ID.name), values.get(ADDR.name)) {
        (Some(id), None) => Which::Id(id.to_owned()),
        (None, Some(Value::Slot(device))) => Which::Place(*device),
        _ => {
            let problem = "which device of the snapshot? give either id or addr".to_owned();
            return Err(values.conflict(problem).into());
        }
    };
    let value = values.required_text(key, example)?;
    Ok((which, value.to_owned()))
}

impl Restore {
    /// The machine that the snapshot was taken of, whose command line has had `options`, with what is
    /// changed.
    ///
    /// # Errors
    /// What is changed is not there, or `options` are no machine's.
    pub(crate) fn config(&self, options: &[String]) -> Result<Config, UsageError> {
        let mut config = super::configuration(options)?;
        self.changes.apply(&mut config)?;
        Ok(config)
    }
}

impl Changes {
    fn apply(&self, config: &mut Config) -> Result<(), UsageError> {
        if let Some(kernel) = &self.kernel {
            config.kernel.clone_from(kernel);
        }
        if self.initramfs.is_some() {
            config.initramfs.clone_from(&self.initramfs);
        }
        config.control.clone_from(&self.control);
        config.reboot &= !self.no_reboot;
        let functions = &mut config.functions;
        for (which, path) in &self.disks {
            match find(functions, which) {
                Some(FunctionKind::Disk(disk)) => disk.path.clone_from(path),
                _ => return Err(unknown("--disk", which, functions, is_disk)),
            }
        }
        for (which, tap) in &self.taps {
            match find(functions, which) {
                Some(FunctionKind::Net(net)) => net.tap.clone_from(tap),
                _ => return Err(unknown("--net", which, functions, is_net)),
            }
        }
        Ok(())
    }
}

fn find<'a>(functions: &'a mut [FunctionConfig], which: &Which) -> Option<&'a mut FunctionKind> {
    let mut functions = functions.iter_mut();
    let found = functions.find(|function| match which {
        Which::Id(id) => function.id.as_ref() == Some(id),
        Which::Place(device) => function.bus.is_none() && function.device == Some(*device),
    });
    found.map(|function| &mut function.kind)
}

fn is_disk(kind: &FunctionKind) -> bool {
    matches!(kind, FunctionKind::Disk(_))
}

fn is_net(kind: &FunctionKind) -> bool {
    matches!(kind, FunctionKind::Net(_))
}

/// No device of that option is the one that is meant: those that could be.
fn unknown(
    option: &str,
    which: &Which,
    functions: &[FunctionConfig],
    is_one: fn(&FunctionKind) -> bool,
) -> UsageError {
    let ones = functions.iter().filter(|function| is_one(&function.kind));
    let names = ones.map(|one| match (&one.id, one.device) {
        (Some(id), _) => format!("id={id}"),
        (None, Some(device)) => format!("addr={device:x}"),
        (None, None) => "one without a name".to_owned(),
    });
    let remedy = match names.collect::<Vec<_>>().as_slice() {
        [] => "it has none for this option".to_owned(),
        names => format!("choose one of {}", names.join(", ")),
    };
    UsageError::Message(format!(
        "{option} {which}: the snapshot has no such device; {remedy}"
    ))
}

#[cfg(test)]
mod restore_test;
