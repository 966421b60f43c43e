//! The file: one line that says what follows, then the state as JSON.
//!
//! ```text
//! nido-state 1 bytes=183422 sha256=<64 digits>
//! {"writer":"nido 0.1.0",...}
//! ```

use std::io::Read;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{FileError, SaveError};
use crate::section::Sections;

/// Most bytes of a state.
pub const LIMIT: usize = 64 << 20;
/// Most bytes of the first line.
const FIRST_LINE: usize = 128;
const MAGIC: &str = "nido-state";
const FORMAT: u32 = 1;

/// All of a machine but its memory, which is in a file beside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// Who has written it.
    pub writer: String,
    /// Where the guest's memory is.
    pub memory: MemoryFile,
    /// The command line of such a machine.
    pub options: Vec<String>,
    /// What the machine's parts say.
    pub sections: Sections,
}

/// The file of the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFile {
    /// Its name, in the same directory.
    pub file: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The file's bytes.
///
/// # Errors
/// The state is larger than any.
pub fn encode(state: &MachineState) -> Result<Vec<u8>, SaveError> {
    let body = serde_json::to_vec(state).map_err(SaveError::new)?;
    if body.len() > LIMIT {
        return Err(SaveError::new(format_args!(
            "the state has {} bytes, and {LIMIT} are the most",
            body.len()
        )));
    }
    let first = format!(
        "{MAGIC} {FORMAT} bytes={} sha256={}\n",
        body.len(),
        sum(&body)
    );
    let mut file = first.into_bytes();
    file.extend(body);
    Ok(file)
}

/// The state that `file` holds.
///
/// # Errors
/// What is wrong with it.
pub fn decode(file: &[u8]) -> Result<MachineState, FileError> {
    let head = file.get(..FIRST_LINE.min(file.len())).unwrap_or_default();
    let foreign = || FileError::Foreign(String::from_utf8_lossy(head).chars().take(24).collect());
    let end = head
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(foreign)?;
    let (first, body) = file.split_at(end + 1);
    let (format, rest) = format_of(first).ok_or_else(foreign)?;
    if format != FORMAT {
        return Err(FileError::Format(format));
    }
    let (bytes, announced) = announced(rest).ok_or_else(foreign)?;
    if body.len() != bytes {
        return Err(FileError::Length {
            announced: bytes,
            found: body.len(),
        });
    }
    let found = sum(body);
    if found != announced {
        return Err(FileError::Checksum { announced, found });
    }
    serde_json::from_slice(body).map_err(FileError::Body)
}

/// The state that `source` holds, of which no more than [`LIMIT`] bytes and a line are read.
///
/// # Errors
/// It cannot be read, or what is wrong with it.
pub fn read(source: impl Read) -> Result<MachineState, FileError> {
    let most = LIMIT + FIRST_LINE;
    let mut file = Vec::new();
    source.take(most as u64 + 1).read_to_end(&mut file)?;
    if file.len() > most {
        return Err(FileError::TooLarge);
    }
    decode(&file)
}

/// Whether `source` begins as the state of a machine does, of whatever format.
///
/// # Errors
/// It cannot be read.
pub fn is_state(source: impl Read) -> std::io::Result<bool> {
    let mut head = Vec::new();
    source.take(MAGIC.len() as u64 + 1).read_to_end(&mut head)?;
    Ok(head == format!("{MAGIC} ").as_bytes())
}

/// The format that the first line names, and what follows in it.
fn format_of(line: &[u8]) -> Option<(u32, &str)> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (format, rest) = line
        .strip_prefix(MAGIC)?
        .strip_prefix(' ')?
        .split_once(' ')?;
    Some((format.parse().ok()?, rest))
}

/// The length and the checksum that the first line names in format 1.
fn announced(rest: &str) -> Option<(usize, String)> {
    let (bytes, sum) = rest.strip_prefix("bytes=")?.split_once(" sha256=")?;
    Some((bytes.parse().ok()?, sum.to_owned()))
}

/// The checksum of `bytes`, as digits.
fn sum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::Section;

    fn state() -> MachineState {
        let mut sections = Sections::default();
        let section = Section::new("timer", 1, &[1, 2, 3]).expect("a section");
        sections.add("00:01.0", section);
        MachineState {
            writer: "nido 0.0.0".to_owned(),
            memory: MemoryFile {
                file: "memory.1".to_owned(),
                bytes: 4096,
            },
            options: vec!["--cpus".to_owned(), "2".to_owned()],
            sections,
        }
    }

    fn file() -> Vec<u8> {
        encode(&state()).expect("small")
    }

    #[test]
    fn a_state_is_the_same_after_writing_and_reading() {
        assert_eq!(decode(&file()).expect("whole"), state());
        assert_eq!(read(file().as_slice()).expect("whole"), state());
    }

    #[test]
    fn each_truncated_file_is_refused() {
        let file = file();
        for length in 0..file.len() {
            assert!(decode(&file[..length]).is_err(), "{length}");
        }
        let mut longer = file;
        longer.push(b' ');
        assert!(matches!(decode(&longer), Err(FileError::Length { .. })));
    }

    #[test]
    fn each_flipped_bit_is_found() {
        let file = file();
        for index in 0..file.len() {
            for bit in 0..8 {
                let mut other = file.clone();
                other[index] ^= 1 << bit;
                assert!(decode(&other).is_err(), "bit {bit} of byte {index}");
            }
        }
    }

    #[test]
    fn other_files_are_told_by_how_they_begin() {
        for (bytes, text) in [
            (b"".as_slice(), "\"\""),
            (b"\x7fELF\x02\x01\n", "ELF"),
            (b"nido-state x bytes=0 sha256=\n", "nido-state x"),
            (b"nido-state 1 bytes=-1 sha256=0\n", "nido-state 1"),
        ] {
            let error = decode(bytes).expect_err("no state").to_string();
            assert!(
                error.starts_with("this is no state of nido: it begins with "),
                "{error}"
            );
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_state_is_told_from_other_files_by_how_it_begins() {
        for (bytes, is_one) in [
            (file().as_slice(), true),
            (b"nido-state 2 whatever", true),
            (b"nido-states", false),
            (b"", false),
        ] {
            assert_eq!(is_state(bytes).expect("readable"), is_one);
        }
    }

    #[test]
    fn a_later_format_is_refused_by_its_number() {
        let error = decode(b"nido-state 2 whatever that has\n").expect_err("later");
        assert!(matches!(error, FileError::Format(2)), "{error}");
    }

    #[test]
    fn what_is_larger_than_any_state_is_not_read_to_its_end() {
        let error = read(std::io::repeat(b'x')).expect_err("endless");
        assert!(matches!(error, FileError::TooLarge), "{error}");
    }

    #[test]
    fn a_body_that_is_no_state_is_refused_with_its_place() {
        let body = br#"{"writer":"nido","memory":{"file":"m"}}"#;
        let first = format!("{MAGIC} 1 bytes={} sha256={}\n", body.len(), sum(body));
        let file = [first.as_bytes(), body].concat();
        let error = decode(&file).expect_err("half a state").to_string();
        assert!(
            error.contains("missing field `bytes` at line 1 column 38"),
            "{error}"
        );
    }

    #[test]
    fn deeply_nested_bodies_are_refused() {
        let body = "[".repeat(1 << 20).into_bytes();
        let first = format!("{MAGIC} 1 bytes={} sha256={}\n", body.len(), sum(&body));
        assert!(decode(&[first.into_bytes(), body].concat()).is_err());
    }
}
