//! All of a machine that stands still but its memory: how it is made, and what its parts are like.

use state::{MachineState, MemoryFile};

use crate::cli;
use crate::config::{Config, Way};
use crate::machine::Machine;

/// Who says it.
pub(crate) const WRITER: &str = concat!("nido ", env!("CARGO_PKG_VERSION"));

/// What describes `machine`, whose memory is in `file`, if it is in one. What the guest has asked of the remapping unit
/// may be carried out for that, so it may write to memory.
///
/// # Errors
/// The part that cannot be described, and why.
pub(crate) fn describe(machine: &Machine, file: &str) -> Result<MachineState, String> {
    let way = match file {
        "" => Way::Moved,
        _ => Way::Saved,
    };
    let (config, options) = as_options(machine, way)?;
    let sections = machine.save()?;
    Ok(MachineState {
        writer: WRITER.to_owned(),
        memory: MemoryFile {
            file: file.to_owned(),
            bytes: config.all_memory(),
        },
        options,
        sections,
    })
}

/// How such a machine is made that is to go on elsewhere that `way`: its configuration, and the same as a command line.
///
/// # Errors
/// It cannot be in another process, and why.
pub(crate) fn as_options(machine: &Machine, way: Way) -> Result<(Config, Vec<String>), String> {
    let config = machine.config();
    if let Some(why) = config.immovable(way) {
        return Err(why);
    }
    let options = cli::written(&config).ok_or(
        "a path of the machine is no text (UTF-8), which no state of it can have: give the file another name",
    )?;
    Ok((config, options))
}
