//! Whose place a socket takes, and that it leaves nothing behind.

use std::os::unix::net::UnixDatagram;

use super::super::control_test::Scratch;
use super::*;

fn error(path: &Path) -> String {
    match Socket::bind(path) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(error) => error.to_string(),
    }
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
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    drop(UnixListener::bind(&path).expect("a free name"));
    assert!(path.exists());
    let socket = Socket::bind(&path).expect("a dead socket");
    UnixStream::connect(&path).expect("a live one");
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
}

#[test]
fn a_directory_that_does_not_exist_is_an_error_with_a_remedy() {
    let scratch = Scratch::new();
    let text = error(&scratch.path("missing/socket"));
    assert!(text.starts_with("--control path=/"), "{text}");
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
