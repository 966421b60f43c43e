//! The argument of `upgrade`, a command of the control socket.

use std::path::PathBuf;

use super::error::UsageError;
use super::keys::{Key, Table, parse_option};
use super::values::Kind;

/// The keys of `upgrade`.
const UPGRADE: Table = Table {
    option: "upgrade",
    implied: Some("exec"),
    keys: &[Key {
        name: "exec",
        aliases: &[],
        kind: Kind::Text("FILE"),
        default: "required",
        help: "the nido that is to go on with the guest; write `,,` for a comma",
    }],
};

/// What the argument of `upgrade` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The keys, explained.
    Help(String),
    /// An upgrade to this program, whose path is absolute.
    Upgrade(PathBuf),
}

/// Parses the argument of `upgrade`.
pub(crate) fn upgrade(argument: &str) -> Result<Asked, UsageError> {
    if argument == "help" {
        return Ok(Asked::Help(UPGRADE.help()));
    }
    let values = parse_option(&UPGRADE, argument)?;
    let path = PathBuf::from(values.required_text("exec", "FILE")?);
    if path.is_relative() {
        let problem = format!(
            "exec=`{}` is relative, and to what is not clear; write exec=/...",
            path.display()
        );
        return Err(values.conflict(problem).into());
    }
    Ok(Asked::Upgrade(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_enough_and_has_to_be_absolute() {
        for argument in ["exec=/usr/bin/nido", "/usr/bin/nido"] {
            let asked = upgrade(argument).expect(argument);
            assert_eq!(asked, Asked::Upgrade("/usr/bin/nido".into()));
        }
        for (argument, part) in [
            ("nido", "write exec=/..."),
            ("exec=/a,odd=1", "valid keys: exec"),
            ("", "exec"),
        ] {
            let error = upgrade(argument).expect_err(argument).to_string();
            assert!(
                error.starts_with("upgrade: ") && error.contains(part),
                "{error}"
            );
        }
        assert!(matches!(upgrade("help"), Ok(Asked::Help(help)) if help.contains("exec=FILE")));
    }
}
