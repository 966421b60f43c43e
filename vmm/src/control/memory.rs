//! The command that has the guest plug memory and unplug it.

use super::monitor::Monitor;
use super::parser::{Answer, Value};

/// `memory`: at once.
pub(super) fn set(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Size(size)] = values else {
        return Err("memory: the argument is missing".to_owned());
    };
    let device = monitor.plugged.as_ref();
    let figures = device.and_then(|device| Some((device, device.figures()?)));
    let Some((device, figures)) = figures else {
        return Err(
            "this machine has no memory to be plugged; start nido with `--device virtio-mem,size=SIZE`"
                .to_owned(),
        );
    };
    if !device.request(*size) {
        return Err(format!(
            "memory: the guest can have 0 to {}M of it, in multiples of {}M; write one",
            figures.size >> 20,
            figures.block >> 20
        ));
    }
    Ok(format!(
        "the guest is asked to have {} MiB plugged{}\n",
        size >> 20,
        match figures.has_driver {
            true => "",
            false => ", and has no driver for it at the moment",
        }
    )
    .into())
}

/// The line of `status`, if there is such memory.
pub(super) fn line(monitor: &Monitor) -> String {
    let figures = monitor.plugged.as_ref().and_then(|one| one.figures());
    figures.map_or(String::new(), |figures| {
        format!(
            "plugged: {} MiB, of {} MiB that are asked for, and {} MiB that there are\n",
            figures.plugged >> 20,
            figures.requested >> 20,
            figures.size >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use devices::virtio::balloon::Reclaim;
    use devices::virtio::mem::{Mem, MemOptions, Plug};
    use vm_memory::GuestAddress;

    use super::super::commands::COMMANDS;
    use super::super::control_test::bare;
    use super::super::parser::answer;
    use super::*;

    struct Nothing;

    impl Reclaim for Nothing {
        fn reclaim(&self, _start: GuestAddress, _length: u64) -> io::Result<u64> {
            Ok(0)
        }
    }

    impl Plug for Nothing {
        fn hold(&self, _start: GuestAddress, _length: u64, _block: u64) -> io::Result<()> {
            Ok(())
        }

        fn release(&self, _start: GuestAddress, _length: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_size_that_can_be_is_asked_for_and_in_the_status() {
        let (monitor, _events) = bare();
        let ask = |monitor: &Monitor, request: &str| answer(COMMANDS, monitor, request).text;
        let text = ask(&monitor, "memory size=1G");
        assert!(
            text.starts_with("error: this machine has no memory to be plugged"),
            "{text}"
        );
        let options = MemOptions {
            address: 1 << 32,
            size: 1 << 30,
            block: 4 << 20,
            requested: 0,
        };
        let device = Mem::new(&options, Arc::new(Nothing)).expect("a descriptor");
        let monitor = Monitor {
            plugged: Some(device.control()),
            ..monitor
        };
        assert_eq!(
            ask(&monitor, "memory size=128M"),
            "the guest is asked to have 128 MiB plugged, and has no driver for it at the moment\n\n"
        );
        let status = ask(&monitor, "status");
        let line = "plugged: 0 MiB, of 128 MiB that are asked for, and 1024 MiB that there are";
        assert!(status.lines().any(|other| other == line), "{status}");
        for size in ["2G", "2M", "1"] {
            let text = ask(&monitor, &format!("memory size={size}"));
            assert!(
                text.contains("0 to 1024M of it, in multiples of 4M"),
                "{text}"
            );
        }
    }
}
