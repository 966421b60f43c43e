//! Parsing of the command line: strings in, typed values out, nothing opened.

mod assign;
mod balloon;
mod brought;
mod changes;
mod devices;
mod dirty_pages;
mod edu;
mod error;
mod incoming;
mod intel_iommu;
mod keys;
mod memory;
mod migrate;
mod options;
mod places;
mod restore;
mod snapshot;
mod upgrade;
mod values;
mod virtio;
mod written;

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use crate::config::{Config, FunctionConfig, IommuConfig};
use crate::layout::boot::CMDLINE_MAX;
use assign::IOMMUFD;
pub(crate) use devices::{Device, Parsed, parse as parse_device};
pub(crate) use dirty_pages::{Asked as DirtyPagesAsked, dirty_pages as parse_dirty_pages};
pub(crate) use error::UsageError;
use incoming::INCOMING;
pub(crate) use incoming::Incoming;
use keys::Table;
pub(crate) use migrate::{Asked as MigrateAsked, migrate as parse_migrate};
use options::{CONTROL, MEMORY};
use restore::RESTORE;
pub(crate) use restore::Restore;
pub(crate) use snapshot::{Asked as SnapshotAsked, snapshot as parse_snapshot};
pub(crate) use upgrade::{Asked as UpgradeAsked, upgrade as parse_upgrade};
pub(crate) use values::size as parse_size;
use virtio::{DISK, NET, VSOCK};
pub(crate) use written::written;

/// Options that take a list of keys, but for `--device`.
const KEY_LISTS: [&Table; 8] = [
    &MEMORY, &DISK, &NET, &VSOCK, &IOMMUFD, &CONTROL, &RESTORE, &INCOMING,
];

const EXIT_CODES: &str = "\
Keys in the terminal:
  Ctrl-A x       end the virtual machine
  Ctrl-A Ctrl-A  send Ctrl-A to the guest

Exit codes:
  0  the guest turned itself off; Ctrl-A x; `quit` on the control socket
  1  nido failed (the reason is on the standard error stream)
  2  the command line is not valid
  3  the guest asked for a reset, under --no-reboot
  4  the guest crashed its CPU (triple fault)
  128 + N  ended by signal N";

/// A micro-VMM for KVM with a complete Intel VT-d.
///
/// The guest's first serial port is on the standard streams; nido's own messages go to standard
/// error.
#[derive(Debug, Parser)]
#[command(name = "nido", version, after_help = EXIT_CODES, max_term_width = 120)]
// Brackets mean here what they mean in usage texts.
#[allow(rustdoc::broken_intra_doc_links)]
struct Arguments {
    /// Kernel: a bzImage, or an ELF vmlinux with a PVH entry note
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// Initial ramdisk
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,

    /// Kernel command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "console=ttyS0",
        allow_hyphen_values = true
    )]
    cmdline: String,

    /// Guest memory: SIZE[,hugepages=on][,prefault=on] (`help` explains)
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,

    /// Number of vCPUs, 1 to 255
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: String,

    /// virtio disk: path=FILE[,readonly=on][,id=ID], or vhost-user=SOCKET (repeatable; `help` explains)
    #[arg(long, value_name = "KEYS")]
    disk: Vec<String>,

    /// virtio network device: tap=NAME[,mac=ADDRESS][,vhost=on], or vhost-user=SOCKET (repeatable;
    /// `help` explains)
    #[arg(long, value_name = "KEYS")]
    net: Vec<String>,

    /// Sockets between guest and host (AF_VSOCK, /dev/vhost-vsock): cid=N (`help` explains)
    #[arg(long, value_name = "KEYS")]
    vsock: Vec<String>,

    /// Device: TYPE[,key=value]... (repeatable; `help` lists types, `TYPE,help` lists keys)
    #[arg(long, value_name = "TYPE")]
    device: Vec<String>,

    /// iommufd of the host, for assigned devices: iommufd,id=ID[,path=FILE] (repeatable; `help`
    /// explains)
    #[arg(long, value_name = "KEYS")]
    object: Vec<String>,

    /// Control socket: path=SOCKET (`help` explains; a client that writes `help` to it gets its
    /// commands)
    #[arg(long, value_name = "KEYS")]
    control: Option<String>,

    /// Go on with the snapshot in a directory: DIR[,paused=on]; only what the host has to give may be
    /// changed beside it (`help` explains)
    #[arg(long, value_name = "DIR")]
    restore: Option<String>,

    /// Go on with a machine that another nido migrates: unix:PATH or tcp:HOST:PORT to wait at; only what
    /// the host has to give may be changed beside it (`help` explains)
    #[arg(long, value_name = "WHERE")]
    incoming: Option<String>,

    /// End with exit code 3 when the guest resets itself, instead of starting it again
    #[arg(long)]
    no_reboot: bool,

    /// More messages; repeat for still more
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Run a virtual machine.
    Run {
        /// The machine.
        config: Box<Config>,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Go on with a snapshot.
    Restore {
        /// Which one, and what changes.
        restore: Box<Restore>,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Wait for a machine.
    Incoming {
        /// Where, and what changes.
        incoming: Box<Incoming>,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Print this text on standard output and end.
    Print(String),
}

/// Parses a command line, whose first element is the name of the program.
pub(crate) fn parse<I, T>(arguments: I) -> Result<Request, UsageError>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let matches = Arguments::command().try_get_matches_from(arguments)?;
    let arguments = Arguments::from_arg_matches(&matches)?;
    if let Some(text) = key_help(&arguments) {
        return Ok(Request::Print(text));
    }
    let verbosity = arguments.verbose;
    let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    if arguments.incoming.is_some() {
        let incoming = Box::new(incoming::incoming(&arguments, given)?);
        return Ok(Request::Incoming {
            incoming,
            verbosity,
        });
    }
    if arguments.restore.is_some() {
        let restore = Box::new(restore::restore(&arguments, given)?);
        return Ok(Request::Restore { restore, verbosity });
    }
    Ok(match machine(arguments)? {
        Machine::Config(config) => Request::Run { config, verbosity },
        Machine::Help(text) => Request::Print(text),
    })
}

/// What options that describe a machine ask for.
enum Machine {
    Config(Box<Config>),
    /// Help of `--device`: the text to print.
    Help(String),
}

fn machine(arguments: Arguments) -> Result<Machine, UsageError> {
    let objects = arguments.object.iter();
    let objects = objects.map(|argument| assign::object(argument));
    let iommufds = objects.collect::<Result<Vec<_>, _>>()?;
    let Devices { functions, iommu } = match devices(&arguments)? {
        Asked::Devices(devices) => devices,
        Asked::Help(text) => return Ok(Machine::Help(text)),
    };
    places::check(&functions)?;
    virtio::check(&functions, iommu.is_some())?;
    let memory = options::memory(&arguments.memory)?;
    balloon::check(&functions, &memory, !iommufds.is_empty())?;
    memory::check(&functions, &memory)?;
    assign::check(&iommufds, &functions, iommu.as_ref())?;

    let kernel = arguments.kernel.ok_or_else(|| {
        UsageError::Message(
            "--kernel is missing; add `--kernel FILE` with a bzImage or a PVH vmlinux".to_owned(),
        )
    })?;
    let control = arguments.control.as_deref().map(options::control);
    Ok(Machine::Config(Box::new(Config {
        kernel,
        initramfs: arguments.initramfs,
        cmdline: cmdline(arguments.cmdline)?,
        memory,
        cpus: cpus(&arguments.cpus)?,
        functions,
        iommufds,
        iommu,
        reboot: !arguments.no_reboot,
        control: control.transpose()?,
        claimed_later: false,
        plugged_later: Vec::new(),
    })))
}

/// The machine that `options` describe, which come from `origin`.
pub(crate) fn configuration(options: &[String], origin: &str) -> Result<Config, UsageError> {
    let words = std::iter::once("nido").chain(options.iter().map(String::as_str));
    let arguments = Arguments::try_parse_from(words).map_err(|error| {
        // What follows the first line is for whoever has typed them.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        UsageError::Message(format!("{origin}: {}", line.trim_start_matches("error: ")))
    })?;
    match machine(arguments)? {
        Machine::Config(config) => Ok(*config),
        Machine::Help(_) => Err(UsageError::Message(format!(
            "{origin} is none: it asks for help"
        ))),
    }
}

/// What `--disk`, `--net`, `--vsock` and `--device` ask for.
enum Asked {
    Devices(Devices),
    /// Help of `--device`: the text to print.
    Help(String),
}

/// The devices of a machine.
#[derive(Default)]
struct Devices {
    functions: Vec<FunctionConfig>,
    iommu: Option<IommuConfig>,
}

fn devices(arguments: &Arguments) -> Result<Asked, UsageError> {
    let mut devices = Devices::default();
    for argument in &arguments.disk {
        devices.functions.push(virtio::disk(argument)?);
    }
    for argument in &arguments.net {
        devices.functions.push(virtio::net(argument)?);
    }
    for argument in &arguments.vsock {
        devices.functions.push(virtio::vsock(argument)?);
    }
    for argument in &arguments.device {
        match devices::parse(argument)? {
            Parsed::Help(text) => return Ok(Asked::Help(text)),
            Parsed::Device(Device::Function(function)) => devices.functions.push(function),
            Parsed::Device(Device::Iommu(unit)) => {
                if devices.iommu.replace(unit).is_some() {
                    return Err(UsageError::Message(
                        "--device intel-iommu is given twice; a machine has one unit, so keep one of them".to_owned(),
                    ));
                }
            }
        }
    }
    Ok(Asked::Devices(devices))
}

/// The text of `--disk help` and the like.
fn key_help(arguments: &Arguments) -> Option<String> {
    let asks = |list: &[String]| list.iter().any(|argument| argument == "help");
    let object = |text: &String| assign::asks_for_help(text);
    let asked = [
        arguments.memory == "help",
        asks(&arguments.disk),
        asks(&arguments.net),
        asks(&arguments.vsock),
        arguments.object.iter().any(object),
        arguments.control.as_deref() == Some("help"),
        arguments.restore.as_deref() == Some("help"),
        arguments.incoming.as_deref() == Some("help"),
    ];
    let (table, _) = KEY_LISTS.iter().zip(asked).find(|(_, asked)| *asked)?;
    Some(format!(
        "{} key=value[,key=value]...\n{}",
        table.option,
        table.help()
    ))
}

fn cpus(argument: &str) -> Result<u8, UsageError> {
    argument
        .parse()
        .ok()
        .filter(|cpus| *cpus >= 1)
        .ok_or_else(|| {
            UsageError::Message(format!(
                "--cpus {argument}: not valid; write a number from 1 to 255"
            ))
        })
}

/// What a kernel that is loaded later takes of it may be less.
fn cmdline(argument: String) -> Result<String, UsageError> {
    crate::cmdline::check(&argument, CMDLINE_MAX - 1)
        .map(|_| argument)
        .map_err(|error| UsageError::Message(error.to_string()))
}

#[cfg(test)]
mod cli_test;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod testing;
