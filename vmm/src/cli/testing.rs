//! Command lines in one string, for tests.

use super::error::UsageError;
use super::{Request, parse};
use crate::config::Config;

/// Parses `line`, whose words are separated by blanks.
pub(crate) fn request(line: &str) -> Result<Request, UsageError> {
    parse(std::iter::once("nido").chain(line.split_whitespace()))
}

/// The machine that `line` describes.
pub(crate) fn config(line: &str) -> Config {
    match request(line).expect(line) {
        Request::Run { config, .. } => *config,
        other => panic!("{line}: {other:?}"),
    }
}

/// Why `line` is refused.
pub(super) fn error(line: &str) -> String {
    request(line).expect_err(line).to_string()
}

/// What `line` prints.
pub(super) fn printed(line: &str) -> String {
    match request(line).expect(line) {
        Request::Print(text) => text,
        other => panic!("{line}: {other:?}"),
    }
}
