//! `--restore`: a snapshot to go on with.

use std::path::PathBuf;

use super::Arguments;
use super::changes::{Changes, changes};
use super::error::UsageError;
use super::keys::{Key, Table, parse_option};
use super::values::Kind;
use crate::config::Config;

/// The keys of `--restore`.
pub(super) const RESTORE: Table = Table {
    option: "--restore",
    implied: Some("path"),
    keys: &[
        Key {
            name: "path",
            aliases: &[],
            kind: Kind::Text("DIR"),
            default: "required",
            help: "directory that `snapshot` on the control socket has written; write `,,` for a comma",
        },
        Key {
            name: "paused",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "have the guest wait for `resume` on the control socket",
        },
    ],
};

/// A snapshot to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restore {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Whether the guest waits for a client of the control socket.
    pub(crate) paused: bool,
    /// What is not as it was.
    pub(crate) changes: Changes,
}

/// What `arguments` say about it. `given` tells whether an option is there.
pub(super) fn restore(
    arguments: &Arguments,
    given: impl Fn(&str) -> bool,
) -> Result<Restore, UsageError> {
    let changes = changes(arguments, given, "the snapshot of --restore")?;
    let argument = arguments.restore.as_deref().unwrap_or_default();
    let values = parse_option(&RESTORE, argument)?;
    let path = values.required_text("path", "DIR")?;
    let paused = values.on_off("paused").unwrap_or(false);
    if paused && changes.control.is_none() {
        return Err(UsageError::Message(
            "--restore: paused=on needs somebody to say `resume`; add `--control path=SOCKET`"
                .to_owned(),
        ));
    }
    Ok(Restore {
        path: path.into(),
        paused,
        changes,
    })
}

impl Restore {
    /// The machine that the snapshot was taken of, whose command line has had `options`, with what is
    /// changed.
    ///
    /// # Errors
    /// What is changed is not there, or `options` are no machine's.
    pub(crate) fn config(&self, options: &[String]) -> Result<Config, UsageError> {
        let mut config = super::configuration(options, "the machine of --restore")?;
        self.changes.apply(&mut config)?;
        Ok(config)
    }
}

#[cfg(test)]
mod restore_test;
