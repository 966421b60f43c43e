//! Events that concern the machine as a whole, and the outcomes of its run.

use std::fmt;

/// Something that concerns the machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest turned itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU shut down.
    TripleFault {
        /// Which one.
        vcpu: u8,
    },
    /// A vCPU, or the event loop, cannot go on.
    Failed(String),
    /// The user typed the key to quit.
    Quit,
    /// A signal asks the process to end.
    Signal(i32),
    /// Somebody asks for a pause, or for its end.
    Attend,
    /// The vCPUs are to leave the guest for a moment.
    Kick,
}

/// For people: what has happened, which may be several lines.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("it turned itself off"),
            Self::Reset => f.write_str("it asked for a reset"),
            Self::TripleFault { vcpu } => write!(f, "vCPU {vcpu} shut down (triple fault)"),
            Self::Failed(message) => f.write_str(message.trim_end()),
            Self::Quit => f.write_str("the user ends it"),
            Self::Signal(signal) => write!(f, "signal {signal} ends it"),
            Self::Attend => f.write_str("it is to be paused, or to go on"),
            Self::Kick => f.write_str("it is slowed down"),
        }
    }
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest turned itself off, or the user quit.
    Off,
    /// The guest asked for a reset, which was not wanted.
    Reset,
    /// The guest crashed a CPU.
    TripleFault,
    /// A signal asked the process to end.
    Signal(i32),
}
