//! Requests: a command and its arguments, in words that are separated by blanks. A last argument
//! may have blanks in it.
//!
//! One table says what there is: it drives the parser, and it is what `help` prints.

use intel_vtd::{Pasid, SourceId};
use pci::Bdf;

use super::monitor::Monitor;
use super::workers::Pending;
use crate::cli::parse_size;
use crate::event::Event;

/// A command.
pub(super) struct Command {
    /// The first word of a request.
    pub(super) name: &'static str,
    /// The words that follow.
    pub(super) arguments: &'static [Argument],
    /// One line of explanation.
    pub(super) help: &'static str,
    /// Carries it out, given a value for each argument. The error tells the user what to do
    /// instead.
    pub(super) run: fn(&Monitor, &[Value]) -> Result<Answer, String>,
}

/// What a word after the command stands for.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    /// Who makes a request.
    Requester,
    /// The address that it names.
    Address,
    /// A device to add, as `--device` has it. The rest of the request.
    Device,
    /// A device to remove.
    Removal,
    /// Where a snapshot goes. The rest of the request.
    Snapshot,
    /// Where the guest goes. The rest of the request.
    Migration,
    /// For how long and by whom. The rest of the request, which may be nothing.
    DirtyPages,
    /// A number of bytes.
    Size,
    /// The nido that takes it. The rest of the request.
    Upgrade,
}

/// An argument's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Who makes a request.
    Requester(SourceId, Option<Pasid>),
    /// An address.
    Address(u64),
    /// The argument of a `--device`.
    Device(String),
    /// Where a snapshot goes.
    Snapshot(String),
    /// Where the guest goes.
    Migration(String),
    /// For how long and by whom.
    DirtyPages(String),
    /// A number of bytes.
    Size(u64),
    /// The nido that takes it.
    Upgrade(String),
    /// The name of a device, and whether it is removed by force.
    Removal(String, bool),
}

/// What a command came to.
#[derive(Default)]
pub(super) struct Answer {
    /// What the client is told.
    pub(super) text: String,
    /// Work that has begun: what it comes to is the answer, in place of the text.
    pub(super) later: Option<Pending>,
    /// What happens to the machine once the client was told.
    pub(super) event: Option<Event>,
}

impl From<Pending> for Answer {
    fn from(work: Pending) -> Self {
        Self {
            later: Some(work),
            ..Self::default()
        }
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self {
            text,
            ..Self::default()
        }
    }
}

impl Argument {
    /// What help shows.
    fn syntax(self) -> &'static str {
        match self {
            Self::Requester => "BDF[,pasid=N]",
            Self::Address => "ADDRESS",
            Self::Device => "TYPE,bus=PORT[,key=value]...",
            Self::Removal => "ID[,force=on]",
            Self::Snapshot => "DIR[,live=on|off]",
            Self::Migration => "unix:PATH|tcp:HOST:PORT[,key=value]...",
            Self::DirtyPages => "[key=value,...]",
            Self::Size => "size=SIZE",
            Self::Upgrade => "FILE",
        }
    }

    fn parse(self, word: &str) -> Option<Value> {
        match self {
            Self::Requester => requester(word),
            Self::Address => number(word).map(Value::Address),
            Self::Device => Some(Value::Device(word.to_owned())),
            Self::Removal => removal(word),
            Self::Snapshot => Some(Value::Snapshot(word.to_owned())),
            Self::Migration => Some(Value::Migration(word.to_owned())),
            Self::DirtyPages => Some(Value::DirtyPages(word.to_owned())),
            Self::Size => parse_size(word.strip_prefix("size=").unwrap_or(word)).map(Value::Size),
            Self::Upgrade => Some(Value::Upgrade(word.to_owned())),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Requester => {
                "bus, device and function in hexadecimal, and a PASID of at most 20 bits if the request has one, \
                 such as 00:03.0 or 00:03.0,pasid=1"
            }
            Self::Address => "a number of at most 64 bits, such as 0xfffff000",
            Self::Device => "what `--device` takes",
            Self::Snapshot => "a directory, and keys that `snapshot help` explains",
            Self::Migration => "where another nido waits, and keys that `migrate help` explains",
            Self::DirtyPages => "keys that `dirty-pages help` explains",
            Self::Size => "a number of bytes, such as 512M or 2G",
            Self::Upgrade => "the path of a nido",
            Self::Removal => {
                "the id of a device, or of the port that it is behind, and force=on to pull it out"
            }
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

/// Carries out one request, which is one of `commands`, and writes what the client is to be sent.
pub(super) fn answer(commands: &[Command], monitor: &Monitor, request: &str) -> Answer {
    let answer = run(commands, monitor, request);
    let answer = answer.unwrap_or_else(|problem| Answer::from(refusal(&problem)));
    Answer {
        text: framed(&answer.text),
        ..answer
    }
}

/// What a client is sent when work has come to its end.
pub(super) fn outcome(outcome: Result<String, String>) -> String {
    framed(&outcome.unwrap_or_else(|problem| refusal(&problem)))
}

fn refusal(problem: &str) -> String {
    format!("error: {problem}")
}

/// The empty line is the end, so there can be none before.
fn framed(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.is_empty());
    let mut framed: String = lines.flat_map(|line| [line, "\n"]).collect();
    framed.push('\n');
    framed
}

fn run(commands: &[Command], monitor: &Monitor, request: &str) -> Result<Answer, String> {
    let (name, rest) = request
        .trim()
        .split_once(char::is_whitespace)
        .unwrap_or((request.trim(), ""));
    if name.is_empty() {
        return Err("the request is empty; `help` lists the commands".to_owned());
    }
    let Some(command) = commands.iter().find(|command| command.name == name) else {
        return Err(format!(
            "unknown command `{}`; `help` lists the commands",
            name.escape_debug()
        ));
    };
    let arguments: Vec<&str> = match command.arguments {
        [Argument::Device | Argument::Snapshot | Argument::Migration]
            if !rest.trim().is_empty() =>
        {
            vec![rest.trim()]
        }
        [Argument::DirtyPages] => vec![rest.trim()],
        _ => rest.split_whitespace().collect(),
    };
    let values = command.values(&arguments)?;
    // What it asks for would be this process's alone, which is about to end.
    if monitor.upgrades.entrance.is_closed() {
        return Err(
            "another nido takes the guest over at this moment: connect again, and ask that one"
                .to_owned(),
        );
    }
    (command.run)(monitor, &values)
}

fn removal(word: &str) -> Option<Value> {
    let (id, force) = match word.rsplit_once(",force=") {
        None => (word, false),
        Some((id, "on")) => (id, true),
        Some((id, "off")) => (id, false),
        Some(_) => return None,
    };
    // As in the lists of the command line.
    let id = id.replace(",,", ",");
    (!id.is_empty()).then_some(Value::Removal(id, force))
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
mod parser_test;
