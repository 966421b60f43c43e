//! Whose place a socket takes, and that it leaves nothing behind.

use std::env;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;

use super::scratch::Scratch;
use super::*;

fn error(path: &Path) -> String {
    match Socket::bind(path) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(error) => error.to_string(),
    }
}

/// What is in the directory, in order.
fn names(scratch: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(scratch.path("")).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.into_string().expect("text"))
        .collect();
    names.sort();
    names
}

/// A path of `length` bytes in a new directory whose path has `directory` bytes.
fn path_of(scratch: &Scratch, directory: usize, length: usize) -> PathBuf {
    let fill = |path: PathBuf, bytes: usize| {
        let left = bytes + 1 - super::length(&path.join("x"));
        path.join("x".repeat(left))
    };
    let directory = fill(scratch.path(""), directory);
    fs::create_dir_all(&directory).expect("a new directory");
    fill(directory, length)
}

#[test]
fn a_socket_is_its_owners_and_goes_with_it() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let socket = Socket::bind(&path).expect("a free name");
    let mode = fs::metadata(&path)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(names(&scratch), ["socket"]);
    drop(socket);
    assert!(names(&scratch).is_empty());
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    drop(UnixListener::bind(&path).expect("a free name"));
    assert!(path.exists());
    let socket = Socket::bind(&path).expect("a dead socket");
    UnixStream::connect(&path).expect("a live one");
    assert_eq!(names(&scratch), ["socket"]);
    drop(socket);
}

#[test]
fn nothing_else_is_replaced() {
    let scratch = Scratch::new();
    let file = scratch.path("file");
    fs::write(&file, "precious").expect("a free name");
    assert!(error(&file).contains("a file that is not a socket is there; remove it"));
    assert_eq!(fs::read(&file).expect("still there"), b"precious");

    let live = scratch.path("live");
    let socket = Socket::bind(&live).expect("a free name");
    assert!(error(&live).contains("another process listens there; end it"));
    assert!(live.exists());
    drop(socket);

    let datagram = scratch.path("datagram");
    let _socket = UnixDatagram::bind(&datagram).expect("a free name");
    assert!(error(&datagram).contains("choose a path"));
    assert!(datagram.exists());

    let link = scratch.path("link");
    std::os::unix::fs::symlink(&file, &link).expect("a free name");
    assert!(error(&link).contains("not a socket"));
    assert_eq!(names(&scratch), ["datagram", "file", "link"]);
}

#[test]
fn a_directory_that_does_not_exist_is_an_error_with_a_remedy() {
    let scratch = Scratch::new();
    let text = error(&scratch.path("missing/socket"));
    assert!(text.starts_with("No such file or directory"), "{text}");
    assert!(
        text.contains("choose a path in a directory that exists"),
        "{text}"
    );
}

#[test]
fn the_socket_of_a_successor_stays() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let first = Socket::bind(&path).expect("a free name");
    fs::rename(&path, scratch.path("away")).expect("the socket");
    let second = Socket::bind(&path).expect("a free name");
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

/// Set in the process that [`nobody_else_gets_in_at_any_time_whatever_the_umask`] starts.
const UNDER_UMASK_0: &str = "NIDO_TEST_UNDER_UMASK_0";

#[test]
fn nobody_else_gets_in_at_any_time_whatever_the_umask() {
    if env::var_os(UNDER_UMASK_0).is_some() {
        return watch_modes();
    }
    let (_, module) = module_path!().split_once("::").expect("a crate");
    let output = Command::new("sh")
        .args(["-c", "umask 0; exec \"$0\" --exact \"$1\""])
        .arg(env::current_exe().expect("this"))
        .arg(format!(
            "{module}::nobody_else_gets_in_at_any_time_whatever_the_umask"
        ))
        .env(UNDER_UMASK_0, "1")
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" 1 passed"), "{text}");
}

/// Makes sockets while another thread looks at all that can be seen of them.
fn watch_modes() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    fs::write(scratch.path("file"), "").expect("a free name");
    let mode = |path: &Path| fs::symlink_metadata(path).map(|file| file.permissions().mode());
    // Of use only if it is what it says.
    assert_eq!(mode(&scratch.path("file")).expect("a file") & 0o777, 0o666);
    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for name in names(&scratch).iter().filter(|name| *name != "file") {
                    if let Ok(mode) = mode(&scratch.path(name)) {
                        assert_eq!(mode & 0o077, 0, "{name}");
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let mut made = 0;
        // On a busy machine, the watcher may not have had a turn yet.
        while made < 1000 || seen.load(Ordering::Relaxed) == 0 && !watcher.is_finished() {
            drop(Socket::bind(&path).expect("a free name"));
            made += 1;
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("nothing is open to others");
    });
}

#[test]
fn a_listener_that_accepts_nobody_is_in_use() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let listener = UnixListener::bind(&path).expect("a free name");
    let (sender, connected) = channel();
    let target = path.clone();
    // What a client has left stays in the queue until it is accepted.
    let clients =
        thread::spawn(
            move || {
                while UnixStream::connect(&target).is_ok() && sender.send(()).is_ok() {}
            },
        );
    let full = loop {
        if let Err(error) = connected.recv_timeout(Duration::from_millis(500)) {
            break error;
        }
    };
    assert_eq!(full, RecvTimeoutError::Timeout);
    assert!(error(&path).contains("another process listens there; end it"));
    assert_eq!(names(&scratch), ["socket"]);
    drop(listener);
    clients.join().expect("it was refused");
}

#[test]
fn one_that_came_alive_after_it_was_found_dead_keeps_its_place() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    drop(UnixListener::bind(&path).expect("a free name"));
    assert_eq!(Found::at(&path).expect("a dead socket"), Found::Dead);
    // Another nido has found it, too, and is faster.
    let faster = Socket::bind(&path).expect("a dead socket");
    let staging = Staging::beside(&path).expect("a directory to write to");
    let refused = remove_dead(&path, &staging).expect_err("someone listens");
    assert!(
        refused.to_string().contains("another process listens"),
        "{refused}"
    );
    drop(staging);
    UnixStream::connect(&path).expect("the faster one");
    assert_eq!(names(&scratch), ["socket"]);
    drop(faster);
    assert!(names(&scratch).is_empty());
}

#[test]
fn of_many_that_replace_a_dead_socket_one_gets_its_place() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    for _ in 0..50 {
        drop(UnixListener::bind(&path).expect("a free name"));
        let sockets: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| Socket::bind(&path)))
                .collect();
            let ends = threads.into_iter().map(|thread| thread.join());
            ends.filter_map(|end| end.expect("no panic").ok()).collect()
        });
        assert_eq!(sockets.len(), 1);
        UnixStream::connect(&path).expect("the one");
        drop(sockets);
        assert!(names(&scratch).is_empty());
    }
}

#[test]
fn paths_have_a_limit_that_is_told() {
    let scratch = Scratch::new();
    let longest = path_of(&scratch, 90, 107);
    let socket = Socket::bind(&longest).expect("the longest");
    UnixStream::connect(&longest).expect("someone listens");
    drop(socket);
    for (directory, length) in [(90, 108), (91, 93)] {
        let text = error(&path_of(&scratch, directory, length));
        assert!(
            text.ends_with(
                "too long; choose a path of at most 107 bytes, in a directory whose path has at most 90"
            ),
            "{text}"
        );
    }
}

#[test]
fn what_a_killed_process_has_left_is_in_nobodys_way() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let left: Vec<_> = (0..15)
        .map(|_| Staging::beside(&path).expect("a free name"))
        .collect();
    let socket = Socket::bind(&path).expect("a free name");
    let last = Staging::beside(&path).expect("a free name");
    assert!(error(&scratch.path("other")).contains("left of processes that were killed"));
    drop((left, last, socket));
    assert!(names(&scratch).is_empty());
}

#[test]
fn a_directory_that_someone_keeps_locked_delays_and_no_more() {
    let scratch = Scratch::new();
    let lock = lock(&scratch.path("socket")).expect("nobody has it");
    let socket = Socket::bind(&scratch.path("socket")).expect("a free name");
    assert_eq!(names(&scratch), ["socket"]);
    drop((lock, socket));
}
