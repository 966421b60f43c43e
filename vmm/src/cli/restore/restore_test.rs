//! Command lines with `--restore`: what they change in the machine of a snapshot, and what they may not.

use std::path::Path;

use super::*;
use crate::cli::testing::{error, request};
use crate::cli::{Request, UsageError};
use crate::config::FunctionKind;

/// The machine of a snapshot.
const SAVED: &str = "--kernel /k --cmdline console=ttyS0 --memory 64M --cpus 2 --no-reboot \
    --disk path=/a,id=root,addr=1 --disk path=/b,addr=2 --net tap=tap0,id=lan,addr=3 --device edu,id=edu,addr=4";

fn restore(line: &str) -> Restore {
    match request(line).expect(line) {
        Request::Restore { restore, .. } => *restore,
        other => panic!("{line}: {other:?}"),
    }
}

fn config(line: &str) -> Result<Config, UsageError> {
    let saved: Vec<_> = SAVED.split_whitespace().map(str::to_owned).collect();
    restore(line).config(&saved)
}

fn refusal(line: &str) -> String {
    config(line).expect_err(line).to_string()
}

fn disk(config: &Config, index: usize) -> &Path {
    match &config.functions[index].kind {
        FunctionKind::Disk(disk) => &disk.path,
        other => panic!("{other:?}"),
    }
}

#[test]
fn alone_it_is_the_machine_of_the_snapshot() {
    let saved = match request(SAVED).expect("a machine") {
        Request::Run { config, .. } => *config,
        other => panic!("{other:?}"),
    };
    for line in ["--restore /s", "--restore path=/s,paused=off"] {
        assert_eq!(restore(line).path, Path::new("/s"));
        assert_eq!(config(line).expect(line), saved);
    }
}

#[test]
fn what_the_host_has_to_give_can_change() {
    let line = "--restore /s --control path=/c --kernel /k2 --initramfs /i2 \
        --disk id=root,path=/a2 --disk addr=2,path=/b2 --net id=lan,tap=tap7";
    let config = config(line).expect("a machine");
    assert_eq!(config.control.as_deref(), Some(Path::new("/c")));
    assert_eq!(config.kernel, Path::new("/k2"));
    assert_eq!(config.initramfs.as_deref(), Some(Path::new("/i2")));
    assert_eq!(
        (disk(&config, 0), disk(&config, 1)),
        (Path::new("/a2"), Path::new("/b2"))
    );
    assert!(matches!(&config.functions[2].kind, FunctionKind::Net(net) if net.tap == "tap7"));
}

#[test]
fn what_the_machine_is_cannot() {
    for (option, value) in [
        ("cmdline", "quiet"),
        ("memory", "512M"),
        ("cpus", "1"),
        ("vsock", "cid=3"),
        ("device", "rng"),
    ] {
        let text = format!(
            "--{option} is part of the machine, which the snapshot of --restore has; leave it out"
        );
        assert_eq!(error(&format!("--restore /s --{option} {value}")), text);
    }
    let text = "--disk: readonly is part of the machine, which the snapshot of --restore has; give id, or addr, and path";
    assert_eq!(
        error("--restore /s --disk id=root,path=/a,readonly=on"),
        text
    );
}

#[test]
fn a_device_that_is_not_there_is_told_with_those_that_are() {
    let text = "--disk id=lan: the snapshot of --restore has no such device; choose one of id=root, addr=2";
    assert_eq!(refusal("--restore /s --disk id=lan,path=/a"), text);
    let text = "--net addr=1: the snapshot of --restore has no such device; choose one of id=lan";
    assert_eq!(refusal("--restore /s --net addr=1,tap=t"), text);
    for line in ["--disk path=/a", "--disk id=root,addr=1,path=/a"] {
        let text = "--disk: which device of the snapshot of --restore? give either id or addr";
        assert_eq!(error(&format!("--restore /s {line}")), text);
    }
    assert!(error("--restore /s --disk id=root").contains("key `path` is missing"));
}

#[test]
fn a_guest_that_waits_needs_somebody_to_wake_it() {
    assert!(error("--restore /s,paused=on").contains("add `--control path=SOCKET`"));
    assert!(restore("--restore /s,paused=on --control path=/c").paused);
}

#[test]
fn options_that_are_no_machine_are_refused() {
    let restore = restore("--restore /s");
    for options in [
        &["--cpus", "0"][..],
        &["--kernel", "k", "--cpus", "0"],
        &["--kernel", "k", "--device", "help"],
        &["--help"],
        &["--kernel", "k", "--odd"],
        &[],
    ] {
        let options: Vec<_> = options.iter().map(|word| (*word).to_owned()).collect();
        assert!(restore.config(&options).is_err(), "{options:?}");
    }
}
