//! The argument of `snapshot`, a command of the control socket.

use super::error::UsageError;
use super::keys::{Key, Table, parse_option};
use super::values::Kind;
use crate::config::SnapshotConfig;

/// The keys of `snapshot`.
const SNAPSHOT: Table = Table {
    option: "snapshot",
    implied: Some("path"),
    keys: &[
        Key {
            name: "path",
            aliases: &[],
            kind: Kind::Text("DIR"),
            default: "required",
            help: "directory, made if there is none; a snapshot in it is replaced; write `,,` for a comma",
        },
        Key {
            name: "live",
            aliases: &[],
            kind: Kind::OnOff,
            default: "on where nobody else maps guest memory",
            help: "have the guest go on while its memory is written",
        },
    ],
};

/// What the argument of `snapshot` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The keys, explained.
    Help(String),
    /// A snapshot.
    Snapshot(SnapshotConfig),
}

/// Parses the argument of `snapshot`.
pub(crate) fn snapshot(argument: &str) -> Result<Asked, UsageError> {
    if argument == "help" {
        return Ok(Asked::Help(SNAPSHOT.help()));
    }
    let values = parse_option(&SNAPSHOT, argument)?;
    let path = values.required_text("path", "DIR")?;
    if !path.starts_with('/') {
        let problem =
            format!("path=`{path}` is relative, and to what is not clear; begin it with /");
        return Err(values.conflict(problem).into());
    }
    Ok(Asked::Snapshot(SnapshotConfig {
        path: path.into(),
        live: values.on_off("live"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_enough() {
        for (argument, live) in [
            ("/s,,1", None),
            ("path=/s,,1,live=on", Some(true)),
            ("live=off,path=/s,,1", Some(false)),
        ] {
            let path = "/s,1".into();
            let asked = Asked::Snapshot(SnapshotConfig { path, live });
            assert_eq!(snapshot(argument).expect(argument), asked);
        }
        assert!(matches!(snapshot("help"), Ok(Asked::Help(help)) if help.contains("path=DIR")));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_remedy() {
        for (argument, part) in [
            ("s", "begin it with /"),
            ("live=on", "key `path` is missing"),
            ("/s,live=1", "expected"),
            ("/s,odd=1", "valid keys: path, live"),
        ] {
            let error = snapshot(argument).expect_err(argument).to_string();
            assert!(
                error.starts_with("snapshot: ") && error.contains(part),
                "{error}"
            );
        }
    }
}
