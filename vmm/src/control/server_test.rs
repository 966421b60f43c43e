//! The turns of clients, one by one.

use std::io::Read;

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::super::control_test::{Scratch, bare};
use super::*;

#[test]
fn the_wish_to_stop_is_heard_before_the_next_answer() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let socket = Socket::bind(&path).expect("a free name");
    let stop = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
    let (monitor, _events) = bare();
    let other_end = stop.try_clone().expect("a descriptor");
    let mut server = Server::new(socket, other_end, monitor).expect("descriptors");
    let mut clients: Vec<UnixStream> = (0..2)
        .map(|_| {
            let client = UnixStream::connect(&path).expect("someone listens");
            client.set_nonblocking(true).expect("a socket");
            server.accept();
            client
        })
        .collect();
    let mut answer = [0; 1024];

    for client in &mut clients {
        client.write_all(b"status\n").expect("taken");
    }
    assert!(server.serve().is_continue());
    for client in &mut clients {
        assert!(client.read(&mut answer).expect("an answer") > 0);
        client.write_all(b"status\n").expect("taken");
    }
    stop.write(1).expect("far from its limit");
    assert!(server.serve().is_break());
    for client in &mut clients {
        let error = client.read(&mut answer).expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
