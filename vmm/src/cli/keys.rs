//! `key=value` lists: the tables that describe them, and the parser that the tables drive.
//!
//! One table serves both ways: what it says is what is accepted, and what `help` prints.

use std::fmt;

use super::values::{self, Kind, Value};

/// One key that an option or a device type understands.
pub(crate) struct Key {
    /// The name that help and errors use.
    pub(crate) name: &'static str,
    /// Other spellings that are accepted.
    pub(crate) aliases: &'static [&'static str],
    /// What its value looks like.
    pub(crate) kind: Kind,
    /// What is assumed when it is not given, in words.
    pub(crate) default: &'static str,
    /// One line of explanation.
    pub(crate) help: &'static str,
}

impl Key {
    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

/// A named list of keys: an option such as `--disk`, or one type of `--device`.
pub(crate) struct Table {
    /// As errors name it, such as `--disk` or `--device edu`.
    pub(crate) option: &'static str,
    /// The key that a first element without `=` is the value of.
    pub(crate) implied: Option<&'static str>,
    /// All keys.
    pub(crate) keys: &'static [Key],
}

/// Why a list was refused. Every message names the option, the value and what to write instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListError {
    #[error("{option}: unknown key `{key}`; valid keys: {valid}")]
    UnknownKey {
        option: &'static str,
        key: String,
        valid: String,
    },
    #[error("{option}: key `{key}` is given twice{as_alias}; keep one of them")]
    Repeated {
        option: &'static str,
        key: String,
        as_alias: AsAlias,
    },
    #[error("{option}: `{text}` has no value; write `{text}=VALUE` (valid keys: {valid})")]
    NoValue {
        option: &'static str,
        text: String,
        valid: String,
    },
    #[error("{option}: {key}=`{value}` is not valid: expected {expected}")]
    BadValue {
        option: &'static str,
        key: &'static str,
        value: String,
        expected: String,
    },
    #[error("{option}: key `{key}` is missing; add `{key}={example}`")]
    Missing {
        option: &'static str,
        key: &'static str,
        example: &'static str,
    },
    #[error("{option}: {problem}")]
    Conflict {
        option: &'static str,
        problem: String,
    },
}

/// The note in a message about a key that was repeated under another name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AsAlias(Option<&'static str>);

impl fmt::Display for AsAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, " (it is another name of `{name}`)"),
            None => Ok(()),
        }
    }
}

/// The values of one list, by key.
#[derive(Debug)]
pub(crate) struct Values {
    option: &'static str,
    values: Vec<(&'static str, Value)>,
}

impl Values {
    /// The value of `key`, if it was given.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// The keys that were given.
    pub(crate) fn given(&self) -> impl Iterator<Item = &'static str> {
        self.values.iter().map(|(name, _)| *name)
    }

    /// The value of an on/off key, if it was given.
    pub(crate) fn on_off(&self, key: &str) -> Option<bool> {
        match self.get(key) {
            Some(Value::OnOff(on)) => Some(*on),
            _ => None,
        }
    }

    /// The value of a number or size key, if it was given.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// The value of a text key, if it was given.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The value of a text key that must be given.
    pub(crate) fn required_text(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<&str, ListError> {
        self.text(key).ok_or(ListError::Missing {
            option: self.option,
            key,
            example,
        })
    }

    /// The value of a number key that must be given.
    pub(crate) fn required_number(&self, key: &'static str) -> Result<u64, ListError> {
        self.number(key).ok_or(ListError::Missing {
            option: self.option,
            key,
            example: "NUMBER",
        })
    }

    /// An error about values that do not go together.
    pub(crate) fn conflict(&self, problem: String) -> ListError {
        ListError::Conflict {
            option: self.option,
            problem,
        }
    }
}

impl Table {
    /// Names of all keys, for messages.
    pub(crate) fn valid(&self) -> String {
        if self.keys.is_empty() {
            return "none".to_owned();
        }
        self.keys
            .iter()
            .map(|key| key.name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Parses the elements of a list.
    pub(crate) fn parse(&self, elements: &[String]) -> Result<Values, ListError> {
        let option = self.option;
        let mut parsed = Values {
            option,
            values: Vec::new(),
        };
        for (position, element) in elements.iter().enumerate() {
            let (name, text) = match (element.split_once('='), self.implied) {
                (Some((name, text)), _) => (name, text),
                (None, Some(implied)) if position == 0 => (implied, element.as_str()),
                (None, _) => {
                    let text = element.clone();
                    return Err(ListError::NoValue {
                        option,
                        text,
                        valid: self.valid(),
                    });
                }
            };
            let Some(key) = self.keys.iter().find(|key| key.answers_to(name)) else {
                let key = name.to_owned();
                return Err(ListError::UnknownKey {
                    option,
                    key,
                    valid: self.valid(),
                });
            };
            if parsed.get(key.name).is_some() {
                let as_alias = AsAlias((name != key.name).then_some(key.name));
                return Err(ListError::Repeated {
                    option,
                    key: name.to_owned(),
                    as_alias,
                });
            }
            let value = values::parse(&key.kind, text).map_err(|expected| ListError::BadValue {
                option,
                key: key.name,
                value: text.to_owned(),
                expected,
            })?;
            parsed.values.push((key.name, value));
        }
        Ok(parsed)
    }

    /// The help text of the list: one entry per key.
    pub(crate) fn help(&self) -> String {
        let mut lines = String::new();
        for key in self.keys {
            let head = format!("{}={}", key.name, key.kind.syntax());
            lines.push_str(&format!("  {head:<28}{}", key.help));
            if let Some(range) = key.kind.range() {
                lines.push_str(&format!(" [{range}]"));
            }
            lines.push_str(&format!(" [default: {}]", key.default));
            if !key.aliases.is_empty() {
                lines.push_str(&format!(" (also: {})", key.aliases.join(", ")));
            }
            lines.push('\n');
        }
        if self.keys.is_empty() {
            lines.push_str("  (no keys)\n");
        }
        lines
    }
}

/// Splits at commas; a doubled comma stands for a comma in a value.
pub(crate) fn split(list: &str) -> Vec<String> {
    let mut elements = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            elements.push(String::new());
        } else if let Some(last) = elements.last_mut() {
            last.push(character);
        }
    }
    elements
}

/// Parses an option's argument with its table.
pub(crate) fn parse_option(table: &Table, argument: &str) -> Result<Values, ListError> {
    table.parse(&split(argument))
}
