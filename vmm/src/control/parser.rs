//! Requests: a command and its arguments, in words that are separated by blanks.
//!
//! One table says what there is: it drives the parser, and it is what `help` prints.

use iommu::{Pasid, SourceId};
use pci::Bdf;

use super::Monitor;
use super::commands::COMMANDS;
use crate::vm::Event;

/// A command.
pub(super) struct Command {
    /// The first word of a request.
    pub(super) name: &'static str,
    /// The words that follow.
    pub(super) arguments: &'static [Argument],
    /// One line of explanation.
    pub(super) help: &'static str,
    /// Carries it out, given a value for each argument. The error tells the user what to do instead.
    pub(super) run: fn(&Monitor, &[Value]) -> Result<Answer, String>,
}

/// What a word after the command stands for.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    /// Who makes a request.
    Requester,
    /// The address that it names.
    Address,
}

/// An argument's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Who makes a request.
    Requester(SourceId, Option<Pasid>),
    /// An address.
    Address(u64),
}

/// What a command came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// What the client is told.
    pub(super) text: String,
    /// What happens to the machine once the client was told.
    pub(super) event: Option<Event>,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, event: None }
    }
}

impl Argument {
    /// What help shows.
    fn syntax(self) -> &'static str {
        match self {
            Self::Requester => "BDF[,pasid=N]",
            Self::Address => "ADDRESS",
        }
    }

    fn parse(self, word: &str) -> Option<Value> {
        match self {
            Self::Requester => requester(word),
            Self::Address => number(word).map(Value::Address),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Requester => {
                "bus, device and function in hexadecimal, and a PASID of at most 20 bits if the request has one, \
                 such as 00:03.0 or 00:03.0,pasid=1"
            }
            Self::Address => "a number of at most 64 bits, such as 0xfffff000",
        }
    }
}

impl Command {
    /// The command with its arguments, as help shows it.
    pub(super) fn syntax(&self) -> String {
        let mut syntax = self.name.to_owned();
        for argument in self.arguments {
            syntax.push(' ');
            syntax.push_str(argument.syntax());
        }
        syntax
    }

    fn values(&self, words: &[&str]) -> Result<Vec<Value>, String> {
        if words.len() != self.arguments.len() {
            return Err(format!(
                "{} takes {} arguments, not {}; write `{}`",
                self.name,
                self.arguments.len(),
                words.len(),
                self.syntax()
            ));
        }
        let pairs = self.arguments.iter().zip(words);
        pairs
            .map(|(argument, word)| {
                argument.parse(word).ok_or_else(|| {
                    format!(
                        "{}: {}=`{}` is not valid: expected {}",
                        self.name,
                        argument.syntax(),
                        word.escape_debug(),
                        argument.expected()
                    )
                })
            })
            .collect()
    }
}

/// Carries out one request, and writes what the client is to be sent.
pub(super) fn answer(monitor: &Monitor, request: &str) -> Answer {
    let outcome = run(monitor, request);
    let Answer { text, event } =
        outcome.unwrap_or_else(|problem| Answer::from(format!("error: {problem}")));
    // The empty line is the end, so there can be none before.
    let lines = text.lines().filter(|line| !line.is_empty());
    let mut framed: String = lines.flat_map(|line| [line, "\n"]).collect();
    framed.push('\n');
    Answer {
        text: framed,
        event,
    }
}

fn run(monitor: &Monitor, request: &str) -> Result<Answer, String> {
    let words: Vec<&str> = request.split_whitespace().collect();
    let Some((name, arguments)) = words.split_first() else {
        return Err("the request is empty; `help` lists the commands".to_owned());
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == *name) else {
        return Err(format!(
            "unknown command `{}`; `help` lists the commands",
            name.escape_debug()
        ));
    };
    (command.run)(monitor, &command.values(arguments)?)
}

fn requester(word: &str) -> Option<Value> {
    let (bdf, pasid) = match word.split_once(',') {
        None => (word, None),
        Some((bdf, option)) => {
            let value = number(option.strip_prefix("pasid=")?)?;
            (bdf, Some(Pasid::new(u32::try_from(value).ok()?)?))
        }
    };
    // There is one segment, which may be written out.
    let bdf = bdf.strip_prefix("0000:").unwrap_or(bdf);
    let (bus, rest) = bdf.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let bdf = Bdf::new(byte(bus)?, byte(device)?, byte(function)?)?;
    Some(Value::Requester(SourceId(bdf.as_u16()), pasid))
}

/// One or two hexadecimal digits.
fn byte(digits: &str) -> Option<u8> {
    let value = unsigned(digits, 16).filter(|_| digits.len() <= 2)?;
    u8::try_from(value).ok()
}

/// Decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => unsigned(digits, 16),
        None => unsigned(text, 10),
    }
}

/// A number without a sign, which `from_str_radix` would accept.
fn unsigned(digits: &str, radix: u32) -> Option<u64> {
    let valid = digits.chars().all(|digit| digit.is_digit(radix));
    valid.then(|| u64::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
#[path = "parser_test.rs"]
mod parser_test;
