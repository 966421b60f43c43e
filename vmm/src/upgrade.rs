//! In-place upgrade: another nido, of this or another version, goes on with the guest on the same host,
//! with what this one has open.
//!
//! The new nido is a child of the old one. It is [looked at](candidate) first, then [started](successor),
//! is [given](handover) the open files, and makes the machine while the guest runs. Then the guest stands
//! still, and goes over in the frames of a [migration](crate::migration) that sends no memory, which both have
//! mapped: [`replace()`] is the old side of it, [`heir`] the new one. Until the new one has said that it runs
//! the guest, the old one is whole and goes on with it, whatever becomes of the new one.
//!
//! Then the old process ends. The one that was started first stays, with its number, as a [keeper]: it
//! waits for the end of the one that has the guest, and ends as that does.

mod candidate;
mod descriptors;
mod handover;
mod heir;
mod keeper;
mod replace;
mod successor;
mod upgrades;

pub(crate) use heir::{Heir, receive, watch_keeper};
pub(crate) use keeper::keep;
pub(crate) use replace::replace;
pub(crate) use upgrades::Upgrades;

use std::ffi::OsString;

/// What a nido is started with to say which handovers it knows.
const ASK: &str = "--internal-handover-version";
/// What it is started with to take a guest over, before the number of a descriptor.
const TAKE_OVER: &str = "--internal-take-over";
/// What it is started with to keep one that was upgraded, before the number of a descriptor.
const KEEP: &str = "--internal-keep";

/// What one nido asks of another by its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Which handovers it knows.
    Version,
    /// To take a guest over, by this descriptor.
    TakeOver(i32),
    /// To keep a nido that has the guest now, to which this descriptor leads.
    Keep(i32),
}

/// What the command line asks for, if it is one of ours. What follows is that of the nido that was started first, for
/// those who look at processes.
pub(crate) fn asked(mut arguments: impl Iterator<Item = OsString>) -> Option<Asked> {
    let first = arguments.nth(1)?;
    let mut number = || arguments.next()?.to_str()?.parse().ok();
    match first.to_str()? {
        ASK => Some(Asked::Version),
        TAKE_OVER => number().map(Asked::TakeOver),
        KEEP => number().map(Asked::Keep),
        _ => None,
    }
}

/// The command line that this nido, or the one before it, was started with by somebody else.
fn original_arguments() -> impl Iterator<Item = OsString> {
    let mut arguments = std::env::args_os();
    let skipped = match asked(std::env::args_os()) {
        Some(Asked::TakeOver(_) | Asked::Keep(_)) => 3,
        Some(Asked::Version) | None => 1,
    };
    arguments.by_ref().take(skipped).for_each(drop);
    arguments
}

/// The answer to [`Asked::Version`].
pub(crate) fn version() -> String {
    format!(
        "nido-handover {} {}\n",
        handover::VERSION,
        crate::described::WRITER
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_nido_asks_of_another_is_told_from_what_people_ask() {
        let what = |line: &str| asked(line.split(' ').map(OsString::from));
        assert_eq!(
            what("nido --internal-handover-version"),
            Some(Asked::Version)
        );
        assert_eq!(
            what("nido --internal-take-over 7 --kernel k"),
            Some(Asked::TakeOver(7))
        );
        assert_eq!(what("nido --internal-keep 8"), Some(Asked::Keep(8)));
        for line in [
            "nido",
            "nido --kernel k",
            "nido --internal-take-over",
            "nido --internal-keep x",
            "nido --kernel k --internal-keep 8",
        ] {
            assert_eq!(what(line), None, "{line}");
        }
    }
}
