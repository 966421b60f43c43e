//! The command line: strings in, typed values out, nothing opened.

mod assign;
mod devices;
mod keys;
mod options;
mod places;
mod values;

use std::path::PathBuf;

use clap::Parser;

use crate::config::{Config, FunctionConfig, FunctionKind};
use devices::DeviceError;
pub(crate) use devices::{Device, Parsed, parse as parse_device};
use keys::ListError;
use options::{CONTROL, DISK, MEMORY, NET};

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

/// Device numbers on bus 0, without the host bridge's.
const MOST_FUNCTIONS: usize = 31;

/// A micro-VMM for KVM with a complete Intel VT-d.
///
/// The guest's first serial port is on the standard streams; nido's own messages go to standard error.
#[derive(Debug, Parser)]
#[command(name = "nido", version, after_help = EXIT_CODES, max_term_width = 120)]
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

    /// virtio disk: path=FILE[,readonly=on][,id=ID] (repeatable; `help` explains)
    #[arg(long, value_name = "KEYS")]
    disk: Vec<String>,

    /// virtio network device: tap=NAME[,mac=ADDRESS] (repeatable; `help` explains)
    #[arg(long, value_name = "KEYS")]
    net: Vec<String>,

    /// Device: TYPE[,key=value]... (repeatable; `help` lists types, `TYPE,help` lists keys)
    #[arg(long, value_name = "TYPE")]
    device: Vec<String>,

    /// iommufd of the host, for assigned devices: iommufd,id=ID[,path=FILE] (repeatable; `help` explains)
    #[arg(long, value_name = "KEYS")]
    object: Vec<String>,

    /// Control socket: path=SOCKET (`help` explains; a client that writes `help` to it gets its commands)
    #[arg(long, value_name = "KEYS")]
    control: Option<String>,

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
    /// Print this text on standard output and end.
    Print(String),
}

/// A command line that is not valid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    /// clap's message, with its own formatting; help and version are "errors" too.
    #[error(transparent)]
    Clap(#[from] clap::Error),
    /// A message of ours.
    #[error("{0}")]
    Message(String),
}

impl From<ListError> for UsageError {
    fn from(error: ListError) -> Self {
        UsageError::Message(error.to_string())
    }
}

impl From<DeviceError> for UsageError {
    fn from(error: DeviceError) -> Self {
        UsageError::Message(error.to_string())
    }
}

/// Parses a command line, whose first element is the name of the program.
pub(crate) fn parse<I, T>(arguments: I) -> Result<Request, UsageError>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let arguments = Arguments::try_parse_from(arguments)?;
    if let Some(text) = key_help(&arguments) {
        return Ok(Request::Print(text));
    }

    let mut iommufds = Vec::new();
    for argument in &arguments.object {
        iommufds.push(assign::object(argument)?);
    }
    let mut functions = Vec::new();
    for argument in &arguments.disk {
        functions.push(options::disk(argument)?);
    }
    for argument in &arguments.net {
        functions.push(options::net(argument)?);
    }
    let mut iommu = None;
    for argument in &arguments.device {
        match devices::parse(argument)? {
            Parsed::Help(text) => return Ok(Request::Print(text)),
            Parsed::Device(Device::Function(function)) => functions.push(function),
            Parsed::Device(Device::Iommu(unit)) => {
                if iommu.replace(unit).is_some() {
                    return Err(UsageError::Message(
                        "--device intel-iommu is given twice; a machine has one unit, so keep one of them".to_owned(),
                    ));
                }
            }
        }
    }
    check_functions(&functions)?;
    assign::check(&iommufds, &functions, iommu.as_ref())?;

    let kernel = arguments.kernel.ok_or_else(|| {
        UsageError::Message(
            "--kernel is missing; add `--kernel FILE` with a bzImage or a PVH vmlinux".to_owned(),
        )
    })?;
    Ok(Request::Run {
        verbosity: arguments.verbose,
        config: Box::new(Config {
            kernel,
            initramfs: arguments.initramfs,
            cmdline: cmdline(arguments.cmdline)?,
            memory: options::memory(&arguments.memory)?,
            cpus: cpus(&arguments.cpus)?,
            functions,
            iommufds,
            iommu,
            reboot: !arguments.no_reboot,
            control: arguments
                .control
                .as_deref()
                .map(options::control)
                .transpose()?,
        }),
    })
}

/// The text of `--disk help` and the like.
fn key_help(arguments: &Arguments) -> Option<String> {
    let asks = |list: &[String]| list.iter().any(|argument| argument == "help");
    let table = if arguments.memory == "help" {
        &MEMORY
    } else if asks(&arguments.disk) {
        &DISK
    } else if asks(&arguments.net) {
        &NET
    } else if arguments.control.as_deref() == Some("help") {
        &CONTROL
    } else if arguments
        .object
        .iter()
        .any(|text| assign::asks_for_help(text))
    {
        &assign::IOMMUFD
    } else {
        return None;
    };
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

fn cmdline(argument: String) -> Result<String, UsageError> {
    if argument.contains('\0') {
        return Err(UsageError::Message(
            "--cmdline: contains a zero byte; remove it".to_owned(),
        ));
    }
    Ok(argument)
}

/// Refuses what cannot be together on the bus.
fn check_functions(functions: &[FunctionConfig]) -> Result<(), UsageError> {
    places::check(functions)?;
    let mut taken = Vec::new();
    for device in functions.iter().filter_map(|function| function.device) {
        if taken.contains(&device) {
            return Err(UsageError::Message(format!(
                "addr={device:x}: two devices ask for this place; give one of them another"
            )));
        }
        taken.push(device);
    }
    let on_bus_0 = functions.iter().filter(|function| function.bus.is_none());
    let on_bus_0 = on_bus_0.count();
    if on_bus_0 > MOST_FUNCTIONS {
        return Err(UsageError::Message(format!(
            "--disk, --net and --device ask for {on_bus_0} PCI devices; the bus has room for {MOST_FUNCTIONS}, so remove some"
        )));
    }
    if functions
        .iter()
        .filter(|function| function.kind == FunctionKind::Console)
        .count()
        > 1
    {
        return Err(UsageError::Message(
            "--device virtio-console is given twice; the standard streams serve one, so keep one of them".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod cli_test;
