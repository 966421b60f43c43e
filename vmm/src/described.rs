//! All of a machine that stands still but its memory: how it is made, and what its parts are like.

use state::{MachineState, MemoryFile};

use crate::cli;
use crate::config::Way;
use crate::machine::Machine;

/// What describes `machine`, whose memory is in `file`, if it is in one. What the guest has asked of the remapping unit
/// may be carried out for that, so it may write to memory.
///
/// # Errors
/// The part that cannot be described, and why.
pub(crate) fn describe(machine: &Machine, file: &str) -> Result<MachineState, String> {
    let config = machine.config();
    let way = match file {
        "" => Way::Moved,
        _ => Way::Saved,
    };
    if let Some(why) = config.immovable(way) {
        return Err(why);
    }
    let sections = machine.save()?;
    let options = cli::written(&config).ok_or(
        "a path of the machine is no text (UTF-8), which no state of it can have: give the file another name",
    )?;
    Ok(MachineState {
        writer: concat!("nido ", env!("CARGO_PKG_VERSION")).to_owned(),
        memory: MemoryFile {
            file: file.to_owned(),
            bytes: config.all_memory(),
        },
        options,
        sections,
    })
}
