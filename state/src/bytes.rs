//! Bytes in a state: blocks of registers, structures of the kernel.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::RestoreError;

/// Bytes, which a state shows as hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// All of them.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// All of them, which have to be `length`.
    ///
    /// # Errors
    /// There are more or fewer.
    pub fn exactly(&self, what: &str, length: usize) -> Result<&[u8], RestoreError> {
        if self.0.len() == length {
            return Ok(&self.0);
        }
        Err(RestoreError::damaged(
            what,
            format_args!("{} bytes instead of {length}", self.0.len()),
        ))
    }

    /// All of them, which have to be `N`.
    ///
    /// # Errors
    /// There are more or fewer.
    pub fn array<const N: usize>(&self, what: &str) -> Result<[u8; N], RestoreError> {
        let mut array = [0; N];
        array.copy_from_slice(self.exactly(what, N)?);
        Ok(array)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS[usize::from(value & 0xf)]);
        let text: String = self
            .0
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
            .collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Digits)
    }
}

struct Digits;

impl Visitor<'_> for Digits {
    type Value = Bytes;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an even number of hexadecimal digits")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let pairs = text.as_bytes().chunks(2);
        let bytes = pairs.map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        });
        let bytes = bytes.collect::<Option<Vec<u8>>>();
        bytes
            .map(Bytes)
            .ok_or_else(|| E::custom("no even number of hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_the_same_after_writing_and_reading(bytes in any::<Vec<u8>>()) {
            let bytes = Bytes::from(bytes);
            let text = serde_json::to_string(&bytes).expect("a string");
            prop_assert_eq!(serde_json::from_str::<Bytes>(&text).expect("bytes"), bytes);
        }
    }

    #[test]
    fn other_text_is_no_bytes() {
        for text in ["\"0\"", "\"0g\"", "\"0A\"", "\"é\"", "\"+1\"", "[1]", "1"] {
            assert!(serde_json::from_str::<Bytes>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_number_of_bytes_is_told() {
        let bytes = Bytes::new(&[1, 2, 3]);
        assert_eq!(bytes.array::<3>("three"), Ok([1, 2, 3]));
        let error = bytes.array::<4>("the registers").expect_err("too few");
        assert_eq!(
            error.to_string(),
            "the registers cannot be: 3 bytes instead of 4"
        );
    }
}
