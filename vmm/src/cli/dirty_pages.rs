//! The argument of `dirty-pages`, a command of the control socket.

use std::time::Duration;

use super::error::UsageError;
use super::keys::{Key, Table, parse_option};
use super::values::Kind;
use crate::config::{FollowConfig, WriterKind};

/// Milliseconds of a round if none are given, and the bounds of them.
const TIME: u64 = 1000;
const LEAST_TIME: u64 = 1;
const MOST_TIME: u64 = 30_000;
const MOST_ROUNDS: u64 = 8;
/// Milliseconds of all rounds: a client waits that long, and nothing else that takes long is done.
const MOST: u64 = 60_000;

/// The keys of `dirty-pages`.
const DIRTY_PAGES: Table = Table {
    option: "dirty-pages",
    implied: None,
    keys: &[
        Key {
            name: "for",
            aliases: &[],
            kind: Kind::Bounded {
                least: LEAST_TIME,
                most: MOST_TIME,
            },
            default: "1000",
            help: "how long the guest is followed, in milliseconds",
        },
        Key {
            name: "rounds",
            aliases: &[],
            kind: Kind::Bounded {
                least: 1,
                most: MOST_ROUNDS,
            },
            default: "1",
            help: "how often, each time with what was written since; all of them take 60 s at the most",
        },
        Key {
            name: "of",
            aliases: &[],
            kind: Kind::Text("vcpus|devices|vhost|host-devices"),
            default: "all of them",
            help: "whose pages to list",
        },
    ],
};

/// What the argument of `dirty-pages` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The keys, explained.
    Help(String),
    /// What was written.
    Follow(FollowConfig),
}

/// Parses the argument of `dirty-pages`, which may be empty.
pub(crate) fn dirty_pages(argument: &str) -> Result<Asked, UsageError> {
    let values = match argument {
        "help" => return Ok(Asked::Help(DIRTY_PAGES.help())),
        "" => DIRTY_PAGES.parse(&[])?,
        argument => parse_option(&DIRTY_PAGES, argument)?,
    };
    let number = |key: &str, least, most, default| {
        let number = values.number(key).unwrap_or(default);
        match (least..=most).contains(&number) {
            true => Ok(number),
            false => Err(values.conflict(format!(
                "{key}={number} is out of range; write {least} to {most}"
            ))),
        }
    };
    let time = number("for", LEAST_TIME, MOST_TIME, TIME)?;
    let rounds = number("rounds", 1, MOST_ROUNDS, 1)?;
    if time * rounds > MOST {
        let problem = format!(
            "{rounds} rounds of {time} ms take longer than {MOST} ms; write less of either"
        );
        return Err(values.conflict(problem).into());
    }
    let of = values.text("of").map(|text| {
        let mut kinds = WriterKind::ALL.into_iter();
        let kind = kinds.find(|kind| kind.name() == text);
        kind.ok_or_else(|| {
            let names = WriterKind::ALL.map(WriterKind::name).join(", ");
            values.conflict(format!(
                "of=`{text}` is nobody who writes; choose one of {names}"
            ))
        })
    });
    Ok(Asked::Follow(FollowConfig {
        time: Duration::from_millis(time),
        rounds: u32::try_from(rounds).unwrap_or(1),
        of: of.transpose()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_enough() {
        for (argument, time, rounds, of) in [
            ("", 1000, 1, None),
            ("for=20", 20, 1, None),
            (
                "of=host-devices,rounds=2",
                1000,
                2,
                Some(WriterKind::HostDevices),
            ),
            (
                "of=vcpus,for=30000,rounds=2",
                30_000,
                2,
                Some(WriterKind::Vcpus),
            ),
        ] {
            let asked = Asked::Follow(FollowConfig {
                time: Duration::from_millis(time),
                rounds,
                of,
            });
            assert_eq!(dirty_pages(argument).expect(argument), asked);
        }
        assert!(matches!(dirty_pages("help"), Ok(Asked::Help(help)) if help.contains("rounds=")));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_remedy() {
        for (argument, part) in [
            ("for=0", "1 to 30000"),
            ("for=30001", "1 to 30000"),
            ("rounds=9", "1 to 8"),
            ("rounds=0", "1 to 8"),
            ("for=20000,rounds=4", "write less of either"),
            (
                "of=disks",
                "choose one of vcpus, devices, vhost, host-devices",
            ),
            ("odd=1", "valid keys: for, rounds, of"),
        ] {
            let error = dirty_pages(argument).expect_err(argument).to_string();
            assert!(
                error.starts_with("dirty-pages: ") && error.contains(part),
                "{error}"
            );
        }
    }
}
