//! What may be given beside `--restore` and `--incoming`: what the host has to give. All else is part of
//! the machine, and comes with it.

use std::fmt;
use std::path::PathBuf;

use super::error::UsageError;
use super::keys::{Table, parse_option};
use super::places::{ADDR, ID};
use super::values::Value;
use super::virtio::{DISK, NET};
use super::{Arguments, assign, options};
use crate::config::{Config, FileSource, FunctionConfig, FunctionKind, IommufdConfig};

/// Options that say what the machine is, by their names.
const OF_THE_MACHINE: [&str; 5] = ["cmdline", "memory", "cpus", "vsock", "device"];

/// What is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Where the machine comes from.
    origin: &'static str,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    pub(crate) control: Option<PathBuf>,
    no_reboot: bool,
    disks: Vec<(Which, PathBuf)>,
    taps: Vec<(Which, String)>,
    iommufds: Vec<IommufdConfig>,
}

/// Names a device of the machine.
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

/// What `arguments` change in a machine that comes from `origin`, such as `the snapshot of --restore`.
/// `given` tells whether an option is there.
///
/// # Errors
/// They say what only the machine can say, or do not name a device.
pub(super) fn changes(
    arguments: &Arguments,
    given: impl Fn(&str) -> bool,
    origin: &'static str,
) -> Result<Changes, UsageError> {
    if let Some(option) = OF_THE_MACHINE.iter().find(|option| given(option)) {
        return Err(UsageError::Message(format!(
            "--{option} is part of the machine, which {origin} has; leave it out"
        )));
    }
    let control = arguments.control.as_deref().map(options::control);
    let disks = arguments.disk.iter();
    let disks = disks.map(|argument| change(&DISK, argument, ("path", "FILE"), origin));
    let taps = arguments.net.iter();
    let taps = taps.map(|argument| change(&NET, argument, ("tap", "NAME"), origin));
    let objects = arguments.object.iter();
    let objects = objects.map(|argument| assign::object(argument));
    Ok(Changes {
        origin,
        kernel: arguments.kernel.clone(),
        initramfs: arguments.initramfs.clone(),
        control: control.transpose()?,
        no_reboot: arguments.no_reboot,
        disks: disks
            .map(|change| change.map(|(which, path)| (which, path.into())))
            .collect::<Result<_, _>>()?,
        taps: taps.collect::<Result<_, _>>()?,
        iommufds: objects.collect::<Result<_, _>>()?,
    })
}

/// Which device, and the value of the one key that may change.
fn change(
    table: &Table,
    argument: &str,
    (key, example): (&'static str, &'static str),
    origin: &str,
) -> Result<(Which, String), UsageError> {
    let values = parse_option(table, argument)?;
    let mut given = values.given();
    if let Some(fixed) = given.find(|given| ![key, ID.name, ADDR.name].contains(given)) {
        let problem = format!(
            "{fixed} is part of the machine, which {origin} has; give id, or addr, and {key}"
        );
        return Err(values.conflict(problem).into());
    }
    let which = match (values.text(ID.name), values.get(ADDR.name)) {
        (Some(id), None) => Which::Id(id.to_owned()),
        (None, Some(Value::Slot(device))) => Which::Place(*device),
        _ => {
            let problem = format!("which device of {origin}? give either id or addr");
            return Err(values.conflict(problem).into());
        }
    };
    let value = values.required_text(key, example)?;
    Ok((which, value.to_owned()))
}

impl Changes {
    /// Has `config` be as they say.
    ///
    /// # Errors
    /// It has no device that is to change.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), UsageError> {
        if let Some(kernel) = &self.kernel {
            config.kernel.clone_from(kernel);
        }
        if self.initramfs.is_some() {
            config.initramfs.clone_from(&self.initramfs);
        }
        config.control.clone_from(&self.control);
        config.reboot &= !self.no_reboot;
        self.replace_iommufds(&mut config.iommufds)?;
        let functions = &mut config.functions;
        for (which, path) in &self.disks {
            match find(functions, which) {
                Some(FunctionKind::Disk(disk)) => disk.path.clone_from(path),
                _ => return Err(self.unknown("--disk", which, functions, is_disk)),
            }
        }
        for (which, tap) in &self.taps {
            match find(functions, which) {
                Some(FunctionKind::Net(net)) => net.tap.clone_from(tap),
                _ => return Err(self.unknown("--net", which, functions, is_net)),
            }
        }
        Ok(())
    }

    /// Only whoever starts nido says which file of the host, or which of the descriptors that are open, is an
    /// iommufd, but for the node that is one everywhere.
    fn replace_iommufds(&self, iommufds: &mut [IommufdConfig]) -> Result<(), UsageError> {
        let usual = FileSource::Path(intel_vtd_host::IOMMUFD_PATH.into());
        if let Some(other) = iommufds.iter().find(|iommufd| iommufd.source != usual) {
            return Err(UsageError::Message(format!(
                "--object iommufd,id={}: {} says which file or descriptor of this host that is, which only whoever starts nido does; it has \
                 to be {} there",
                other.id,
                self.origin,
                intel_vtd_host::IOMMUFD_PATH
            )));
        }
        for wanted in &self.iommufds {
            let found = iommufds.iter_mut().find(|one| one.id == wanted.id);
            let Some(iommufd) = found else {
                return Err(UsageError::Message(format!(
                    "--object iommufd,id={}: {} has no such iommufd",
                    wanted.id, self.origin
                )));
            };
            iommufd.clone_from(wanted);
        }
        Ok(())
    }

    /// No device of that option is the one that is meant: those that could be.
    fn unknown(
        &self,
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
            "{option} {which}: {} has no such device; {remedy}",
            self.origin
        ))
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
