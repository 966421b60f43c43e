//! The command line: strings in, typed values out, nothing opened.

mod devices;
mod keys;
mod values;

use std::path::PathBuf;

use clap::Parser;

use crate::config::{Config, DiskConfig, FunctionConfig, FunctionKind, MemoryConfig, NetConfig};
use devices::{ADDR, Device, DeviceError, Parsed};
use keys::{Key, ListError, Table, parse_option};
use values::{Kind, Value};

const EXIT_CODES: &str = "\
Keys in the terminal:
  Ctrl-A x       end the virtual machine
  Ctrl-A Ctrl-A  send Ctrl-A to the guest

Exit codes:
  0  the guest turned itself off, or Ctrl-A x
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

    /// Reserved for host IOMMU objects
    #[arg(long, value_name = "KEYS", hide = true)]
    object: Vec<String>,

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

const MEMORY: Table = Table {
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

const DISK: Table = Table {
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
            help: "serial number, 20 bytes at most",
        },
        ADDR,
    ],
};

const NET: Table = Table {
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
        ADDR,
    ],
};

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
    if let Some(object) = arguments.object.first() {
        return Err(UsageError::Message(format!(
            "--object {object}: this version of nido assigns no host devices, so it has no objects; \
             remove the option"
        )));
    }

    let mut functions = Vec::new();
    for argument in &arguments.disk {
        functions.push(disk(argument)?);
    }
    for argument in &arguments.net {
        functions.push(net(argument)?);
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
            memory: memory(&arguments.memory)?,
            cpus: cpus(&arguments.cpus)?,
            functions,
            iommu,
            reboot: !arguments.no_reboot,
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
    } else {
        return None;
    };
    Some(format!(
        "{} key=value[,key=value]...\n{}",
        table.option,
        table.help()
    ))
}

fn memory(argument: &str) -> Result<MemoryConfig, ListError> {
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

fn disk(argument: &str) -> Result<FunctionConfig, ListError> {
    let values = parse_option(&DISK, argument)?;
    let id = values.text("id");
    if let Some(id) = id.filter(|id| id.len() > 20) {
        return Err(values.conflict(format!("id=`{id}` is longer than 20 bytes; shorten it")));
    }
    let disk = DiskConfig {
        path: values.required_text("path", "FILE")?.into(),
        readonly: values.on_off("readonly").unwrap_or(false),
        id: id.map(str::to_owned),
    };
    Ok(FunctionConfig {
        device: devices::slot(&values),
        kind: FunctionKind::Disk(disk),
    })
}

fn net(argument: &str) -> Result<FunctionConfig, ListError> {
    let values = parse_option(&NET, argument)?;
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
    Ok(FunctionConfig {
        device: devices::slot(&values),
        kind: FunctionKind::Net(net),
    })
}

/// Refuses what cannot be together on the bus.
fn check_functions(functions: &[FunctionConfig]) -> Result<(), UsageError> {
    let mut taken = Vec::new();
    for device in functions.iter().filter_map(|function| function.device) {
        if taken.contains(&device) {
            return Err(UsageError::Message(format!(
                "addr={device:x}: two devices ask for this place; give one of them another"
            )));
        }
        taken.push(device);
    }
    if functions.len() > MOST_FUNCTIONS {
        return Err(UsageError::Message(format!(
            "--disk, --net and --device ask for {} PCI devices; the bus has room for {MOST_FUNCTIONS}, so remove some",
            functions.len()
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
mod tests;
