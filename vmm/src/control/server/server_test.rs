//! The turns of clients, one by one.

use std::io::Read;

use event_manager::{EventManager, SubscriberOps};

use super::super::control_test::bare;
use super::*;
use crate::socket::scratch::Scratch;

#[test]
fn the_wish_to_stop_is_heard_before_the_next_answer() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let socket = Socket::bind(&path).expect("a free name");
    let stop = Arc::<AtomicBool>::default();
    let (monitor, _events) = bare();
    let server = Server::new(socket, Arc::clone(&stop), monitor).expect("descriptors");
    let sources = server.sources();
    let mut manager = EventManager::<Server>::new().expect("descriptors");
    let id = manager.add_subscriber(server);
    let mut ops = manager.event_ops(id).expect("added");
    for source in sources {
        ops.add(source).expect("a source");
    }
    let mut clients: Vec<UnixStream> = (0..2)
        .map(|_| {
            let client = UnixStream::connect(&path).expect("someone listens");
            client.set_nonblocking(true).expect("a socket");
            client
        })
        .collect();
    let settle = |manager: &mut EventManager<Server>| {
        while manager.run_with_timeout(100).expect("served") > 0 {}
    };
    let mut answer = [0; 1024];

    for client in &mut clients {
        client.write_all(b"status\n").expect("taken");
    }
    settle(&mut manager);
    for client in &mut clients {
        assert!(client.read(&mut answer).expect("an answer") > 0);
        client.write_all(b"status\n").expect("taken");
    }
    stop.store(true, Ordering::Release);
    for _ in 0..10 {
        manager.run_with_timeout(0).expect("served");
    }
    for client in &mut clients {
        let error = client.read(&mut answer).expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
