//! `--incoming`: a machine that another nido migrates.

use super::Arguments;
use super::changes::{Changes, changes};
use super::error::UsageError;
use super::keys::{Key, Table, parse_option};
use super::values::Kind;
use crate::config::Config;
use crate::endpoint::Endpoint;

/// The keys of `--incoming`.
pub(super) const INCOMING: Table = Table {
    option: "--incoming",
    implied: Some("from"),
    keys: &[Key {
        name: "from",
        aliases: &[],
        kind: Kind::Text("unix:PATH|tcp:HOST:PORT"),
        default: "required",
        help: "where to wait for a machine that `migrate` on another nido's control socket sends; write `,,` for a comma",
    }],
};

/// A machine that is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    /// Where it comes.
    pub(crate) from: Endpoint,
    /// What is not as it was.
    pub(crate) changes: Changes,
}

/// What `arguments` say about it. `given` tells whether an option is there.
pub(super) fn incoming(
    arguments: &Arguments,
    given: impl Fn(&str) -> bool,
) -> Result<Incoming, UsageError> {
    if arguments.restore.is_some() {
        return Err(UsageError::Message(
            "--incoming and --restore each have a machine of their own; leave one of them out"
                .to_owned(),
        ));
    }
    let changes = changes(arguments, given, "the machine of --incoming")?;
    let argument = arguments.incoming.as_deref().unwrap_or_default();
    let values = parse_option(&INCOMING, argument)?;
    let from = values.required_text("from", "unix:PATH")?;
    let from = from
        .parse()
        .map_err(|error| values.conflict(format!("from=`{from}`: {error}")))?;
    Ok(Incoming { from, changes })
}

impl Incoming {
    /// The machine that another nido describes by `options`, with what is changed.
    ///
    /// # Errors
    /// What is changed is not there, or `options` are no machine's.
    pub(crate) fn config(&self, options: &[String]) -> Result<Config, UsageError> {
        let mut config = super::configuration(options, "the machine of --incoming")?;
        self.changes.apply(&mut config)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Request;
    use crate::cli::testing::{error, request};

    #[test]
    fn a_machine_comes_to_a_unix_socket_or_a_tcp_port_and_may_find_other_taps() {
        for from in ["unix:/run/in.sock", "tcp:localhost:4444", "tcp:[::1]:4444"] {
            let line = format!("--incoming {from} --net id=lan,tap=tap7");
            let Request::Incoming { incoming, .. } = request(&line).expect(&line) else {
                panic!("{line}");
            };
            assert_eq!(incoming.from.to_string(), from);
            let options = ["--kernel=/k", "--net=tap=tap0,id=lan"].map(str::to_owned);
            let config = incoming.config(&options).expect("a machine");
            let net = format!("{:?}", config.functions);
            assert!(net.contains("tap7"), "{net}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_the_remedy() {
        for (line, part) in [
            ("--incoming udp:1", "unix:PATH"),
            ("--incoming tcp:here", "PORT"),
            (
                "--incoming unix:/s --memory 1G",
                "--memory is part of the machine",
            ),
            ("--incoming unix:/s --restore /d", "leave one of them out"),
        ] {
            let text = error(line);
            assert!(text.contains(part), "{line}: {text}");
        }
    }
}
