//! The lines by which guest-init and lab-agent report.
//!
//! A guest writes its lines through the kernel log, so that no kernel message can fall into the
//! middle of one; what stands before the marker (a time stamp) is ignored.

use std::fmt;

/// Starts what a line says.
pub const MARKER: &str = "@nido ";

/// Starts a line of the logs of a guest's guest, of which the guest is the judge.
pub const RELAYED: &str = "level 3, ";

/// A line of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestLine {
    /// Init runs; the number of the boot, from 0.
    Begin(u32),
    /// A check is over.
    Report {
        /// Boot, from 0.
        boot: u32,
        /// The check as the plan writes it.
        check: String,
        /// Whether it passed.
        passed: bool,
        /// What was seen.
        detail: String,
    },
    /// The guest wants this word typed on its console.
    Ask(String),
    /// The guest wants this said to nido's control socket, and `ok` or the error typed on its
    /// serial port. What the agent does itself is said in the same way: `count` and what
    /// follows ([`crate::agent`]).
    Request(String),
    /// All checks of the boot are over, and the guest leaves.
    End(u32),
}

impl fmt::Display for GuestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(boot) => write!(f, "{MARKER}begin {boot}"),
            Self::Ask(word) => write!(f, "{MARKER}ask {word}"),
            Self::Request(text) => write!(f, "{MARKER}request {text}"),
            Self::End(boot) => write!(f, "{MARKER}end {boot}"),
            Self::Report {
                boot,
                check,
                passed,
                detail,
            } => {
                write!(
                    f,
                    "{MARKER}report {boot} {check} {} {detail}",
                    if *passed { "ok" } else { "fail" }
                )
            }
        }
    }
}

impl GuestLine {
    /// Reads a line of the console; None if it is not one of ours. A report without the number of
    /// its boot, which a guest that boots once may leave out, is of boot 0.
    pub fn parse(line: &str) -> Option<Self> {
        let text = line.split_once(MARKER)?.1.trim_end();
        let (kind, rest) = text.split_once(' ')?;
        if kind == "ask" {
            return Some(Self::Ask(rest.to_owned()));
        }
        if kind == "request" {
            return Some(Self::Request(rest.to_owned()));
        }
        let (boot, rest) = match rest.split_once(' ').unwrap_or((rest, "")) {
            (number, rest) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                (number.parse().ok()?, rest)
            }
            _ => (0, rest),
        };
        match kind {
            "begin" => Some(Self::Begin(boot)),
            "end" => Some(Self::End(boot)),
            "report" => {
                let mut words = rest.splitn(3, ' ');
                let check = words.next()?.to_owned();
                let passed = match words.next()? {
                    "ok" => true,
                    "fail" => false,
                    _ => return None,
                };
                Some(Self::Report {
                    boot,
                    check,
                    passed,
                    detail: words.next().unwrap_or_default().to_owned(),
                })
            }
            _ => None,
        }
    }
}

/// A line of the agent to xtask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentLine {
    /// Something worth showing to a person.
    Note(String),
    /// A line of the guest's console.
    Guest(String),
    /// A reason for which the scenario failed.
    Failure(String),
    /// A result of a benchmark, as `key=value` words.
    Measure(String),
    /// The scenario is over, after this many milliseconds, with this many checks passed.
    Done {
        /// Milliseconds from the start of nido.
        milliseconds: u64,
        /// Checks that passed.
        passed: usize,
    },
}

/// Starts a line of the agent.
pub const AGENT_MARKER: &str = "@lab ";

impl fmt::Display for AgentLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(text) => write!(f, "{AGENT_MARKER}note {text}"),
            Self::Guest(text) => write!(f, "{AGENT_MARKER}guest {text}"),
            Self::Failure(text) => write!(f, "{AGENT_MARKER}failure {text}"),
            Self::Measure(text) => write!(f, "{AGENT_MARKER}measure {text}"),
            Self::Done {
                milliseconds,
                passed,
            } => write!(f, "{AGENT_MARKER}done {milliseconds} {passed}"),
        }
    }
}

impl AgentLine {
    /// Reads a line; None if it is not one of the agent's.
    pub fn parse(line: &str) -> Option<Self> {
        let text = line
            .split_once(AGENT_MARKER)?
            .1
            .trim_end_matches(['\r', '\n']);
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match kind {
            "note" => Self::Note(rest.to_owned()),
            "guest" => Self::Guest(rest.to_owned()),
            "failure" => Self::Failure(rest.to_owned()),
            "measure" => Self::Measure(rest.to_owned()),
            "done" => {
                let (milliseconds, passed) = rest.split_once(' ')?;
                Self::Done {
                    milliseconds: milliseconds.parse().ok()?,
                    passed: passed.trim().parse().ok()?,
                }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_line_is_read_back_behind_a_time_stamp() {
        let line = GuestLine::Report {
            boot: 2,
            check: "smp=2".into(),
            passed: false,
            detail: "1 of 2".into(),
        };
        assert_eq!(
            GuestLine::parse(&format!("[    3.141592] {line}\r")),
            Some(line)
        );
        assert_eq!(
            GuestLine::parse("[    0.1] @nido begin 0"),
            Some(GuestLine::Begin(0))
        );
        let short = GuestLine::Report {
            boot: 0,
            check: "payload".into(),
            passed: true,
            detail: "a b".into(),
        };
        assert_eq!(GuestLine::parse("@nido report payload ok a b"), Some(short));
        assert_eq!(GuestLine::parse("@nido report x disk ok"), None);
        assert_eq!(
            GuestLine::parse("@nido ask 12ab"),
            Some(GuestLine::Ask("12ab".into()))
        );
        assert_eq!(
            GuestLine::parse("[ 2.0] @nido request device-del disk"),
            Some(GuestLine::Request("device-del disk".into()))
        );
        assert_eq!(GuestLine::parse("DMAR: Enable scalable mode"), None);
    }

    #[test]
    fn an_agent_line_is_read_back() {
        for line in [
            AgentLine::Note("x y".into()),
            AgentLine::Guest(String::new()),
            AgentLine::Failure("a".into()),
            AgentLine::Measure("vmm=nido".into()),
            AgentLine::Done {
                milliseconds: 5,
                passed: 3,
            },
        ] {
            assert_eq!(AgentLine::parse(&line.to_string()), Some(line));
        }
    }
}
