//! Named fields, of registers and of table entries.

use std::fmt;

/// A field of a register or of a table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name that the specification gives it, or a word for what follows from it.
    pub name: &'static str,
    /// What it holds.
    pub value: FieldValue,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// One bit.
    Flag(bool),
    /// A number.
    Number(u64),
    /// An address, an id or a mask, which is read more easily in hexadecimal.
    Hex(u64),
    /// A value that has a name.
    Name(&'static str),
}

impl Field {
    pub(super) fn new(name: &'static str, value: impl Into<FieldValue>) -> Self {
        Self {
            name,
            value: value.into(),
        }
    }

    pub(super) fn hex(name: &'static str, value: impl Into<u64>) -> Self {
        Self::new(name, FieldValue::Hex(value.into()))
    }

    /// Whether it is anything but 0.
    pub const fn is_set(&self) -> bool {
        !matches!(
            self.value,
            FieldValue::Flag(false) | FieldValue::Number(0) | FieldValue::Hex(0)
        )
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.value {
            FieldValue::Flag(true) => write!(f, "{name}"),
            FieldValue::Flag(false) => write!(f, "{name}=0"),
            FieldValue::Number(number) => write!(f, "{name}={number}"),
            FieldValue::Hex(number) => write!(f, "{name}={number:#x}"),
            FieldValue::Name(value) => write!(f, "{name}={value}"),
        }
    }
}

impl From<bool> for FieldValue {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

macro_rules! from_number {
    ($($number:ty)*) => {
        $(impl From<$number> for FieldValue {
            fn from(number: $number) -> Self {
                Self::Number(number.into())
            }
        })*
    };
}

from_number!(u8 u16 u32 u64);

/// The fields of a typed value: names of the specification, and the methods that read them.
macro_rules! fields {
    ($of:expr; $($name:literal $get:ident),* $(,)?) => {{
        let of = $of;
        vec![$($crate::inspect::field::Field::new($name, of.$get())),*]
    }};
}
pub(super) use fields;

/// Shows the fields that are not 0, with a space before each.
pub(super) fn write_set(f: &mut fmt::Formatter<'_>, fields: &[Field]) -> fmt::Result {
    fields
        .iter()
        .filter(|field| field.is_set())
        .try_for_each(|field| write!(f, " {field}"))
}
