//! `nido`: launches virtual machines on KVM, with a complete Intel VT-d.

mod assign;
mod boot;
mod bus;
mod cli;
mod cmdline;
mod config;
mod console;
mod control;
mod cpuid;
mod described;
mod doorbell;
mod endpoint;
mod entrance;
mod event;
mod event_loop;
mod host_files;
mod irq;
mod kvm;
mod layout;
mod limits;
mod logger;
mod machine;
mod memory;
mod migration;
mod signals;
mod snapshot;
mod socket;
mod suspension;
mod terminal;
mod upgrade;
mod vcpu;
mod vm;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use cli::{Request, UsageError};
use config::Config;
use event::Outcome;
use socket::Places;
use upgrade::Asked;
use vm::{Beginning, Door};

/// Exit codes; `--help` documents them.
mod code {
    pub(super) const OK: u8 = 0;
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const GUEST_RESET: u8 = 3;
    pub(super) const GUEST_CRASH: u8 = 4;
    /// Added to the number of the signal that ended the process.
    pub(super) const SIGNAL: u8 = 128;
}

fn main() -> ExitCode {
    terminal::restore_on_panic();
    if let Some(asked) = upgrade::asked(std::env::args_os()) {
        return ExitCode::from(serve_nido(asked));
    }
    let code = match cli::parse(std::env::args_os()) {
        Ok(Request::Run { config, verbosity }) => {
            let control = config.control.clone();
            run(verbosity, Door::At(control), |_| {
                Ok((*config, Beginning::Boot))
            })
        }
        Ok(Request::Restore { restore, verbosity }) => {
            run(verbosity, Door::At(restore.changes.control.clone()), |_| {
                let (config, snapshot) = snapshot::open(&restore)?;
                Ok((config, Beginning::Snapshot(snapshot)))
            })
        }
        Ok(Request::Incoming {
            incoming,
            verbosity,
        }) => run(
            verbosity,
            Door::At(incoming.changes.control.clone()),
            |places| {
                let machine = |options: &[String]| Ok(incoming.config(options)?);
                let (config, arrival) = migration::wait(&incoming.from, machine, places)?;
                Ok((config, Beginning::Arrival(arrival)))
            },
        ),
        Ok(Request::Print(text)) => {
            // A reader that went away has seen enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            code::OK
        }
        Err(UsageError::Clap(error)) => error.exit(),
        Err(UsageError::Message(message)) => {
            eprintln!("nido: error: {message}");
            code::USAGE
        }
    };
    ExitCode::from(code)
}

/// Does what another nido has started this one for. Returns the code to end with.
fn serve_nido(asked: Asked) -> u8 {
    let failed = |error: anyhow::Error| {
        eprintln!("nido: error: {error:#}");
        code::FAILED
    };
    match asked {
        Asked::Version => {
            // A reader that went away has seen enough.
            let _ = std::io::stdout().write_all(upgrade::version().as_bytes());
            code::OK
        }
        Asked::TakeOver(number) => match upgrade::receive(number) {
            Ok(mut heir) => run(heir.verbosity(), Door::Given(heir.socket()), move |_| {
                Ok((heir.config()?, Beginning::Heir(Box::new(heir))))
            }),
            Err(error) => failed(error),
        },
        Asked::Keep(number) => upgrade::keep(number).unwrap_or_else(|error| failed(error.into())),
    }
}

/// Runs the machine that `choose` says, from where it says, with clients at `door`.
fn run(
    verbosity: u8,
    door: Door,
    choose: impl FnOnce(&Places) -> anyhow::Result<(Config, Beginning)>,
) -> u8 {
    let guard = terminal::Guard;
    let result = start(verbosity).and_then(|()| vm::run(door, choose));
    drop(guard);
    let code = match result {
        Ok(Outcome::Off) => code::OK,
        Ok(Outcome::Reset) => code::GUEST_RESET,
        Ok(Outcome::TripleFault) => code::GUEST_CRASH,
        Ok(Outcome::Signal(signal)) => signal_code(signal),
        Err(error) => {
            logger::last_words(format!("nido: error: {error:#}\n"));
            code::FAILED
        }
    };
    log::logger().flush();
    code
}

fn signal_code(signal: i32) -> u8 {
    u8::try_from(signal)
        .unwrap_or(0)
        .saturating_add(code::SIGNAL)
}

/// What comes before the first thread, and the first thread.
fn start(verbosity: u8) -> anyhow::Result<()> {
    signals::block_ending().context("blocking signals")?;
    logger::install(verbosity).context("starting to log")
}
