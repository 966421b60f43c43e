//! The commands that have the guest give memory back to the host.

use std::fmt::Write as _;
use std::time::Duration;

use devices::virtio::balloon::{BalloonControl, BalloonFigures};

use super::monitor::Monitor;
use super::parser::{Answer, Value};
use super::workers::Kind;

/// How long a guest has to say how its memory is.
const PATIENCE: Duration = Duration::from_secs(1);

/// `balloon`: at once.
pub(super) fn set(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Size(size)] = values else {
        return Err("balloon: the argument is missing".to_owned());
    };
    let balloon = balloon(monitor)?;
    if *size > monitor.all_memory {
        return Err(format!(
            "balloon: the guest has {} MiB of memory, and cannot give {} MiB back; write a smaller size",
            monitor.all_memory >> 20,
            size >> 20
        ));
    }
    if !balloon.set_target(*size) {
        return Err(NONE.to_owned());
    }
    let driver = balloon.figures().is_some_and(|now| now.has_driver);
    Ok(format!(
        "the guest is asked for a balloon of {} KiB{}\n",
        size.div_ceil(1024),
        match driver {
            true => "",
            false => ", and has no driver for it at the moment",
        }
    )
    .into())
}

/// `balloon-status`: when the guest has said how its memory is, or has not.
pub(super) fn status(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let balloon = balloon(monitor)?;
    let work = move || describe(&balloon);
    Ok(monitor.workers.begin(Kind::Look, work)?.into())
}

fn describe(balloon: &BalloonControl) -> Result<String, String> {
    let statistics = balloon.statistics(PATIENCE);
    let figures = balloon.figures().ok_or(NONE)?;
    let BalloonFigures {
        target,
        actual,
        inflated,
        reported,
        has_driver,
        deflates_on_oom,
        reports,
    } = figures;
    let switch = |on| if on { "on" } else { "off" };
    let mut lines = format!(
        "target: {target}\nactual: {actual}\ngiven_back_by_balloon: {inflated}\ngiven_back_by_reports: {reported}\n\
         driver: {}\ndeflate_on_oom: {}\nfree_page_reporting: {}\n",
        if has_driver { "at work" } else { "none" },
        switch(deflates_on_oom),
        switch(reports),
    );
    if let Some(statistics) = statistics {
        let age = statistics.heard.elapsed();
        let _ = writeln!(lines, "guest_said: {} ms ago", age.as_millis());
        for (name, value) in statistics.entries() {
            let _ = writeln!(lines, "guest_{name}: {value}");
        }
    }
    Ok(lines)
}

/// The line of `status`, if there is a balloon.
pub(super) fn line(monitor: &Monitor) -> String {
    let figures = monitor.balloon.get().and_then(|one| one.figures());
    figures.map_or(String::new(), |figures| {
        format!(
            "balloon: {} MiB, of {} MiB that are asked for\n",
            figures.actual >> 20,
            figures.target >> 20
        )
    })
}

const NONE: &str =
    "this machine has no balloon; start nido with `--device virtio-balloon`, or `device-add` one";

fn balloon(monitor: &Monitor) -> Result<BalloonControl, String> {
    monitor.balloon.get().ok_or_else(|| NONE.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use devices::virtio::balloon::{Balloon, BalloonOptions, Reclaim};
    use vm_memory::GuestAddress;

    use super::super::commands::COMMANDS;
    use super::super::control_test::bare;
    use super::super::parser;
    use super::*;

    struct Nothing;

    impl Reclaim for Nothing {
        fn reclaim(&self, _start: GuestAddress, _length: u64) -> io::Result<u64> {
            Ok(0)
        }
    }

    fn made() -> Balloon {
        Balloon::new(BalloonOptions::default(), Arc::new(Nothing)).expect("a descriptor")
    }

    fn ask(monitor: &Monitor, request: &str) -> String {
        let answer = parser::answer(COMMANDS, monitor, request);
        let text = match answer.later {
            None => answer.text,
            Some(later) => parser::outcome(later.outcome.recv().expect("an outcome")),
        };
        text.trim_end().to_owned()
    }

    #[test]
    fn a_machine_without_a_balloon_says_how_to_have_one() {
        let (monitor, _events) = bare();
        for request in ["balloon size=1M", "balloon-status"] {
            let text = ask(&monitor, request);
            assert!(
                text.starts_with("error: this machine has no balloon"),
                "{text}"
            );
        }
        assert!(!ask(&monitor, "status").contains("balloon"));
    }

    #[test]
    fn the_size_that_is_asked_for_is_in_the_status_and_no_more_than_there_is_can_be() {
        let (monitor, _events) = bare();
        let balloon = made();
        monitor.balloon.set(balloon.control()).expect("the first");
        assert_eq!(
            ask(&monitor, "balloon size=128M"),
            "the guest is asked for a balloon of 131072 KiB, and has no driver for it at the moment"
        );
        let status = ask(&monitor, "status");
        assert!(
            status.ends_with("\nballoon: 0 MiB, of 128 MiB that are asked for"),
            "{status}"
        );
        let details = ask(&monitor, "balloon-status");
        assert!(
            details.starts_with("target: 134217728\nactual: 0\n"),
            "{details}"
        );
        assert!(details.contains("\ndriver: none\n"), "{details}");
        let text = ask(&monitor, "balloon size=1025M");
        assert!(
            text.starts_with("error: balloon: the guest has 1024 MiB"),
            "{text}"
        );
        let text = ask(&monitor, "balloon size=lots");
        assert!(text.contains("expected a number of bytes"), "{text}");
    }

    #[test]
    fn another_balloon_is_refused_while_there_is_one() {
        let (monitor, _events) = bare();
        let (one, other) = (made(), made());
        monitor.balloon.set(one.control()).expect("the first");
        let error = monitor
            .balloon
            .set(other.control())
            .expect_err("the second");
        assert!(
            error.to_string().contains("has a balloon already"),
            "{error}"
        );
        drop(one);
        assert!(monitor.balloon.get().is_none());
        monitor.balloon.set(other.control()).expect("alone");
    }
}
