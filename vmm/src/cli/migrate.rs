//! The argument of `migrate`, a command of the control socket.

use std::time::Duration;

use super::error::UsageError;
use super::keys::{Key, Table, split};
use super::values::Kind;
use crate::config::MigrateConfig;
use crate::endpoint::Endpoint;

/// Longest pause that is wanted, in milliseconds, if none is given.
const PAUSE: u64 = 100;
/// The bounds of it.
const LEAST_PAUSE: u64 = 1;
const MOST_PAUSE: u64 = 60_000;
/// Most connections.
const STREAMS_MOST: u64 = MigrateConfig::STREAMS_MOST as u64;

/// The key that may be given several times.
const UNPLUG: &str = "unplug";

/// The keys of `migrate`.
const MIGRATE: Table = Table {
    option: "migrate",
    implied: Some("to"),
    keys: &[
        Key {
            name: "to",
            aliases: &[],
            kind: Kind::Text("unix:PATH|tcp:HOST:PORT"),
            default: "required",
            help: "where `nido --incoming` waits; write `,,` for a comma",
        },
        Key {
            name: "pause",
            aliases: &[],
            kind: Kind::Bounded {
                least: LEAST_PAUSE,
                most: MOST_PAUSE,
            },
            default: "100",
            help: "the longest time that the guest is meant to stand still at the end, in milliseconds",
        },
        Key {
            name: "slow-down",
            aliases: &[],
            kind: Kind::OnOff,
            default: "on",
            help: "slow the guest down if it writes memory faster than the connection takes it",
        },
        Key {
            name: "streams",
            aliases: &[],
            kind: Kind::Bounded {
                least: 1,
                most: STREAMS_MOST,
            },
            default: "1",
            help: "connections that carry memory at the same time",
        },
        Key {
            name: UNPLUG,
            aliases: &[],
            kind: Kind::Text("ID"),
            default: "none",
            help: "have the guest let go of this device of the host before, which is plugged in again if the guest stays; may be \
                   given several times",
        },
    ],
};

/// What the argument of `migrate` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The keys, explained.
    Help(String),
    /// A migration.
    Migrate(MigrateConfig),
}

/// Parses the argument of `migrate`.
pub(crate) fn migrate(argument: &str) -> Result<Asked, UsageError> {
    if argument == "help" {
        return Ok(Asked::Help(MIGRATE.help()));
    }
    let (unplug, others): (Vec<_>, Vec<_>) = split(argument).into_iter().partition(|element| {
        element
            .split_once('=')
            .is_some_and(|(key, _)| key == UNPLUG)
    });
    let values = MIGRATE.parse(&others)?;
    let unplug = unplug.iter().filter_map(|element| element.split_once('='));
    let unplug: Vec<_> = unplug.map(|(_, id)| id.to_owned()).collect();
    if unplug.iter().any(String::is_empty) {
        let problem = "unplug= names no device; write its id".to_owned();
        return Err(values.conflict(problem).into());
    }
    let text = values.required_text("to", "unix:PATH")?;
    let to: Endpoint = text
        .parse()
        .map_err(|error| values.conflict(format!("to=`{text}`: {error}")))?;
    if let Endpoint::Unix(path) = &to
        && path.is_relative()
    {
        let problem = format!("to=`{text}` is relative, and to what is not clear; write unix:/...");
        return Err(values.conflict(problem).into());
    }
    let pause = values.number("pause").unwrap_or(PAUSE);
    if !(LEAST_PAUSE..=MOST_PAUSE).contains(&pause) {
        let problem = format!(
            "pause={pause} is out of range; write {LEAST_PAUSE} to {MOST_PAUSE} (milliseconds)"
        );
        return Err(values.conflict(problem).into());
    }
    let streams = values.number("streams").unwrap_or(1);
    let streams = u32::try_from(streams)
        .ok()
        .filter(|streams| (1..=STREAMS_MOST).contains(&u64::from(*streams)));
    let Some(streams) = streams else {
        let problem = format!("streams is out of range; write 1 to {STREAMS_MOST}");
        return Err(values.conflict(problem).into());
    };
    Ok(Asked::Migrate(MigrateConfig {
        to,
        pause: Duration::from_millis(pause),
        slow_down: values.on_off("slow-down").unwrap_or(true),
        streams,
        unplug,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_enough() {
        for (argument, pause, slow_down, streams, unplug) in [
            ("unix:/s", 100, true, 1, &[][..]),
            ("to=unix:/s,pause=300", 300, true, 1, &[]),
            ("slow-down=off,to=unix:/s,streams=16", 100, false, 16, &[]),
            ("unix:/s,unplug=a,,b,unplug=c", 100, true, 1, &["a,b", "c"]),
            ("unplug=a,to=unix:/s", 100, true, 1, &["a"]),
        ] {
            let asked = Asked::Migrate(MigrateConfig {
                to: Endpoint::Unix("/s".into()),
                pause: Duration::from_millis(pause),
                slow_down,
                streams,
                unplug: unplug.iter().map(|id| (*id).to_owned()).collect(),
            });
            assert_eq!(migrate(argument).expect(argument), asked);
        }
        assert!(matches!(migrate("help"), Ok(Asked::Help(help)) if help.contains("pause=NUMBER")));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_remedy() {
        for (argument, part) in [
            ("pause=3", "key `to` is missing"),
            ("/s", "unix:PATH"),
            ("unix:s", "write unix:/..."),
            ("unix:/s,pause=0", "1 to 60000"),
            ("unix:/s,pause=60001", "1 to 60000"),
            (
                "unix:/s,odd=1",
                "valid keys: to, pause, slow-down, streams, unplug",
            ),
            ("unix:/s,streams=0", "1 to 16"),
            ("unix:/s,streams=17", "1 to 16"),
            ("unix:/s,unplug=", "write its id"),
            ("unplug=a", "key `to` is missing"),
        ] {
            let error = migrate(argument).expect_err(argument).to_string();
            assert!(
                error.starts_with("migrate: ") && error.contains(part),
                "{error}"
            );
        }
    }
}
