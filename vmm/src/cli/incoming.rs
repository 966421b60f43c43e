//! `--incoming`: a machine that another nido migrates.

use super::Arguments;
use super::brought;
use super::changes::{Changes, changes};
use super::devices::{self, Device, Parsed};
use super::error::UsageError;
use super::keys::{Key, Table, parse_option};
use super::values::Kind;
use crate::config::{Config, FunctionConfig, FunctionKind};
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
    /// Devices of this host: in the place of those that the machine had, or to be plugged in once the guest runs.
    pub(crate) devices: Vec<FunctionConfig>,
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
    // Those of the machine come with it.
    let given = |name: &str| name != "device" && given(name);
    let changes = changes(arguments, given, "the machine of --incoming")?;
    let devices = arguments.device.iter().map(|argument| device(argument));
    let devices = devices.collect::<Result<_, _>>()?;
    let argument = arguments.incoming.as_deref().unwrap_or_default();
    let values = parse_option(&INCOMING, argument)?;
    let from = values.required_text("from", "unix:PATH")?;
    let from = from
        .parse()
        .map_err(|error| values.conflict(format!("from=`{from}`: {error}")))?;
    Ok(Incoming {
        from,
        changes,
        devices,
    })
}

/// A device of this host.
fn device(argument: &str) -> Result<FunctionConfig, UsageError> {
    let problem = match devices::parse(argument)? {
        Parsed::Device(Device::Function(function)) => match &function.kind {
            FunctionKind::Vfio(_) => return Ok(function),
            _ => "it is part of the machine, which the machine of --incoming has; leave it out",
        },
        _ => "it is part of the machine, which the machine of --incoming has; leave it out",
    };
    Err(UsageError::Message(format!(
        "--device {argument}: {problem}"
    )))
}

impl Incoming {
    /// The machine that another nido describes by `options`, with what is changed.
    ///
    /// # Errors
    /// What is changed is not there, or `options` are no machine's.
    pub(crate) fn config(&self, options: &[String]) -> Result<Config, UsageError> {
        let mut config = super::configuration(options, "the machine of --incoming")?;
        self.changes.apply(&mut config)?;
        let later = brought::place(&self.devices, &mut config.functions)?;
        let mut all = config.functions.clone();
        all.extend(later.iter().cloned());
        super::places::check(&all)?;
        super::assign::check(&config.iommufds, &all, config.iommu.as_ref())?;
        config.plugged_later = later;
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
    fn devices_of_the_host_are_plugged_into_the_machine_that_comes() {
        let incoming =
            |line: &str| match request(&format!("--incoming unix:/s {line}")).expect(line) {
                Request::Incoming { incoming, .. } => incoming,
                other => panic!("{other:?}"),
            };
        let edu = "--device vfio-pci,id=e,host=0000:00:05.0,iommufd=i,bus=p";
        let there = [
            "--kernel=/k",
            "--object=iommufd,id=i",
            "--device=pcie-root-port,id=p",
        ];
        let there = there.map(str::to_owned);
        let config = incoming(edu).config(&there).expect("a machine");
        assert_eq!(config.plugged_later.len(), 1);
        assert_eq!(config.functions.len(), 1);
        let line = format!("{edu} --object iommufd,id=i,fd=7,hugepages=off");
        let config = incoming(&line).config(&there).expect("a machine");
        assert_eq!(
            config.iommufds.first().expect("one").source,
            crate::config::FileSource::Descriptor(7)
        );
        let taken = "--device=edu,bus=p".to_owned();
        let full: Vec<_> = there.iter().cloned().chain([taken]).collect();
        for (line, machine, part) in [
            (edu, &full[..], "p"),
            (edu, &there[..2], "p"),
            (edu, &[there[0].clone(), there[2].clone()], "iommufd"),
            ("--object iommufd,id=j", &there, "id=j"),
            // What a source says is no file of this host, and no descriptor.
            (
                "",
                &[
                    "--kernel=/k".to_owned(),
                    "--object=iommufd,id=i,fd=3".to_owned(),
                ],
                "/dev/iommu",
            ),
            (
                "",
                &[
                    "--kernel=/k".to_owned(),
                    "--object=iommufd,id=i,path=/dev/sda".to_owned(),
                ],
                "/dev/iommu",
            ),
        ] {
            let error = incoming(line).config(machine).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
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
            ("--incoming unix:/s --device edu", "part of the machine"),
        ] {
            let text = error(line);
            assert!(text.contains(part), "{line}: {text}");
        }
    }
}
