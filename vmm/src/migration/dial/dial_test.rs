//! Connections, and what becomes of the socket's file.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;

use super::*;

/// Far beyond what it takes.
const LONG: Duration = Duration::from_secs(60);

/// The path of a socket in a directory of its own.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("nido-dial-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).expect("a new directory");
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.path())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Has one side send and the other get what it sent.
fn talk(endpoint: &Endpoint, listener: &Listener) {
    let client = endpoint.connect(LONG).expect("someone listens");
    let served = listener.accept(LONG).expect("a descriptor");
    let served = served.expect("a client");
    (&client).write_all(b"hello").expect("taken");
    drop(client);
    let mut text = String::new();
    (&served).read_to_string(&mut text).expect("text");
    assert_eq!(text, "hello");
}

#[test]
fn a_unix_socket_is_its_owners_and_goes_with_its_listener() {
    let place = Place::new("mode");
    let listener = place.endpoint().listen().expect("a free name");
    let mode = fs::metadata(place.path()).expect("there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    talk(&place.endpoint(), &listener);
    drop(listener);
    assert!(!place.path().exists());
    let refused = place.endpoint().connect(LONG).expect_err("nobody is there");
    assert_eq!(refused.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_socket_in_use_is_refused_and_one_that_was_left_is_replaced() {
    let place = Place::new("use");
    drop(UnixListener::bind(place.path()).expect("a free name"));
    let listener = place.endpoint().listen().expect("a dead socket");
    let Err(refused) = place.endpoint().listen() else {
        panic!("two listen there");
    };
    assert!(
        refused
            .to_string()
            .contains("another process listens there"),
        "{refused}"
    );
    // That it looked whether someone listens was a connection as any.
    let probe = listener
        .accept(LONG)
        .expect("a descriptor")
        .expect("a probe");
    assert_eq!((&probe).read(&mut [0]).expect("closed"), 0);
    talk(&place.endpoint(), &listener);
}

#[test]
fn a_port_is_told_and_connected_to() {
    let any: Endpoint = "tcp:127.0.0.1:0".parse().expect("valid");
    let listener = any.listen().expect("a port");
    let port = listener.port().expect("a port");
    let endpoint = format!("tcp:localhost:{port}").parse().expect("valid");
    talk(&endpoint, &listener);
    let again: Endpoint = format!("tcp:127.0.0.1:{port}").parse().expect("valid");
    let taken = again.listen().err().expect("it is taken");
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    drop(listener);
    let refused = again.connect(LONG).expect_err("nobody is there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn waiting_ends_after_its_limit() {
    let place = Place::new("limit");
    let listener = place.endpoint().listen().expect("a free name");
    let began = Instant::now();
    let limit = Duration::from_millis(50);
    assert!(listener.accept(limit).expect("a descriptor").is_none());
    assert!(began.elapsed() >= limit && began.elapsed() < LONG);
    // Until its queue is full, which nobody serves.
    let mut clients = 0;
    let refused = loop {
        // What a client has left stays in the queue until it is accepted.
        match place.endpoint().connect(Duration::from_millis(300)) {
            Ok(client) => drop(client),
            Err(error) => break error,
        }
        clients += 1;
        assert!(clients < 100_000, "the queue has no end");
    };
    assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
}
