//! The program itself, before its virtual machine runs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LONG, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A pipe that nobody writes to can be opened as soon as somebody does.
fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("coreutils").success());
}

#[test]
fn a_signal_ends_nido_while_it_waits_for_a_slow_file() {
    let directory = vmm_sys_util::tempdir::TempDir::new().expect("a directory");
    let (kernel, socket) = (
        directory.as_path().join("kernel"),
        directory.as_path().join("socket"),
    );
    pipe(&kernel);
    let mut nido = Command::new(env!("CARGO_BIN_EXE_nido"))
        .arg("--kernel")
        .arg(&kernel)
        .arg("--control")
        .arg(format!("path={}", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    until("its control socket", || socket.exists());
    let id = Pid::from_raw(i32::try_from(nido.id()).expect("an id"));
    kill(id, Signal::SIGTERM).expect("it lives");
    let mut status = None;
    until("its end", || {
        status = nido.try_wait().expect("a child");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(128 + 15));
    assert!(!socket.exists());
}
