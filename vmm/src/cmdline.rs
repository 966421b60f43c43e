//! The kernel command line (`--cmdline`): what of it a kernel can take, by linux-loader's rules.

use linux_loader::cmdline::{Cmdline, Error};

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CmdlineError {
    /// It is longer than the kernel reads.
    #[error("--cmdline: {size} bytes are more than this kernel takes ({limit}); shorten it")]
    TooLong {
        /// Its size.
        size: usize,
        /// What fits.
        limit: usize,
    },
    /// The kernel's own option parser knows printable ASCII.
    #[error(
        "--cmdline: {text:?} has {found:?} at byte {position}, and a kernel takes blanks and printable ASCII characters; remove \
         it, or write something else in its place"
    )]
    Character {
        /// The command line.
        text: String,
        /// The first character that it cannot have.
        found: char,
        /// Where that is.
        position: usize,
    },
}

/// `text` without blanks around it, for a kernel that reads `limit` bytes and a terminating zero.
///
/// # Errors
/// It is too long, or has a character that is not printable ASCII.
pub(crate) fn check(text: &str, limit: usize) -> Result<Cmdline, CmdlineError> {
    let too_long = || CmdlineError::TooLong {
        size: text.trim().len(),
        limit,
    };
    let mut cmdline = Cmdline::new(limit.saturating_add(1)).map_err(|_| too_long())?;
    match cmdline.insert_str(text) {
        Ok(()) => Ok(cmdline),
        Err(Error::InvalidAscii) => Err(character(text).unwrap_or_else(too_long)),
        // No other rule is about a whole line.
        Err(_) => Err(too_long()),
    }
}

/// Names what is not printable.
fn character(text: &str) -> Option<CmdlineError> {
    let printable = |character: char| character == ' ' || character.is_ascii_graphic();
    let mut inner = text
        .char_indices()
        .skip_while(|(_, character)| character.is_whitespace());
    let (position, found) = inner.find(|(_, character)| !printable(*character))?;
    Some(CmdlineError::Character {
        text: text.to_owned(),
        found,
        position,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str, limit: usize) -> Vec<u8> {
        let cmdline = check(text, limit).expect("valid");
        cmdline
            .as_cstring()
            .expect("no zeroes")
            .into_bytes_with_nul()
    }

    #[test]
    fn what_fits_is_handed_on_as_it_is() {
        assert_eq!(bytes("", 0), b"\0");
        let text = "console=ttyS0 dyndbg=\"file a.c +p\" -- --init arguments";
        assert_eq!(bytes(text, text.len()), format!("{text}\0").as_bytes());
        assert_eq!(bytes(" a  b\n", 4), b"a  b\0");
    }

    #[test]
    fn one_byte_too_many_is_refused_with_both_numbers() {
        let error = check("console", 6).expect_err("too long").to_string();
        assert_eq!(
            error,
            "--cmdline: 7 bytes are more than this kernel takes (6); shorten it"
        );
    }

    #[test]
    fn a_character_that_no_kernel_takes_is_named_with_its_place() {
        let error = check("a=1\tb=2", 100).expect_err("a tab").to_string();
        assert!(
            error.starts_with("--cmdline: \"a=1\\tb=2\" has '\\t' at byte 3, "),
            "{error}"
        );
        assert!(error.contains("remove it"), "{error}");
        assert!(check("caf\u{e9}", 100).is_err());
        assert!(check("a\0b", 100).is_err());
    }
}
