//! Keys, and standard inputs of every kind.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;

use super::*;
use crate::event::Event;
use crate::event_loop::EventLoop;

fn pass(escaped: &mut bool, input: &[u8]) -> (Vec<u8>, bool) {
    Filter { escaped }.pass(input)
}

#[test]
fn ctrl_a_x_quits_even_across_reads() {
    assert_eq!(pass(&mut false, b"ab\x01xc"), (b"ab".to_vec(), true));
    let mut escaped = false;
    assert_eq!(pass(&mut escaped, b"ab\x01"), (b"ab".to_vec(), false));
    assert_eq!(pass(&mut escaped, b"x"), (vec![], true));
}

#[test]
fn ctrl_a_twice_is_one_ctrl_a_and_other_keys_pass() {
    assert_eq!(pass(&mut false, b"\x01\x01x"), (b"\x01x".to_vec(), false));
    assert_eq!(pass(&mut false, b"\x01b"), (b"\x01b".to_vec(), false));
}

/// A guest that has room for so many bytes, and keeps them.
#[derive(Default)]
struct Guest {
    room: usize,
    taken: Vec<u8>,
}

struct Bench {
    guest: Arc<Mutex<Guest>>,
    events: Receiver<Event>,
    thread: nix::unistd::Pid,
    _reading: Subscription,
    _event_loop: EventLoop,
}

fn reading(input: File, room: usize) -> Bench {
    let (sender, events) = channel();
    let guest = Arc::new(Mutex::new(Guest {
        room,
        taken: Vec::new(),
    }));
    let other = Arc::clone(&guest);
    let push = move |bytes: &[u8]| {
        let mut guest = other.lock();
        let count = bytes.len().min(guest.room);
        guest.room -= count;
        guest.taken.extend(&bytes[..count]);
        count
    };
    let event_loop = EventLoop::start(sender.clone()).expect("a thread");
    let (tell, told) = channel();
    let _ = event_loop
        .handle()
        .subscribe(Teller(tell), &[])
        .expect("it runs");
    let quit = move || drop(sender.send(Event::Quit));
    let reading = start(event_loop.handle(), input, quit, Arc::default(), push).expect("a timer");
    Bench {
        guest,
        events,
        thread: told.recv().expect("told"),
        _reading: reading,
        _event_loop: event_loop,
    }
}

impl Bench {
    fn taken(&self) -> Vec<u8> {
        self.guest.lock().taken.clone()
    }

    fn expect(&self, expected: &[u8]) {
        let start = Instant::now();
        while self.taken() != expected {
            assert!(start.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Nothing happens, and the loop does not look for it all the time.
    fn rests(&self) {
        let before = self.cpu_time();
        thread::sleep(Duration::from_millis(300));
        assert!(self.cpu_time() - before < Duration::from_millis(100));
    }

    /// What the loop's thread has used of a processor.
    fn cpu_time(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.thread);
        let times = std::fs::read_to_string(path).expect("statistics");
        let nanoseconds = times.split(' ').next().and_then(|time| time.parse().ok());
        Duration::from_nanos(nanoseconds.expect("a number"))
    }
}

/// Tells the number of the loop's thread.
struct Teller(Sender<nix::unistd::Pid>);

impl MutEventSubscriber for Teller {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}

    fn init(&mut self, _ops: &mut EventOps<'_>) {
        self.0.send(nix::unistd::gettid()).expect("it waits");
    }
}

fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().expect("descriptors");
    (
        File::from(OwnedFd::from(reader)),
        File::from(OwnedFd::from(writer)),
    )
}

#[test]
fn a_pipe_is_read_until_it_is_closed() {
    let (input, mut keyboard) = pipe();
    let bench = reading(reopen(&input).expect("a pipe"), usize::MAX);
    keyboard.write_all(b"one").expect("room");
    bench.expect(b"one");
    keyboard.write_all(b" two").expect("room");
    bench.expect(b"one two");
    drop((keyboard, input));
    bench.rests();
}

#[test]
fn a_pipe_that_blocks_is_read_as_well() {
    let (input, mut keyboard) = pipe();
    let bench = reading(input, usize::MAX);
    keyboard.write_all(b"one").expect("room");
    bench.expect(b"one");
    keyboard.write_all(b"\x01x").expect("room");
    let event = bench.events.recv_timeout(Duration::from_secs(60));
    assert_eq!(event, Ok(Event::Quit));
}

#[test]
fn a_socket_is_read() {
    let (input, mut keyboard) = std::os::unix::net::UnixStream::pair().expect("descriptors");
    let input = File::from(OwnedFd::from(input));
    assert!(reopen(&input).is_none(), "a socket cannot be opened");
    let bench = reading(input, usize::MAX);
    keyboard.write_all(b"one").expect("room");
    bench.expect(b"one");
    drop(keyboard);
    bench.rests();
}

#[test]
fn a_terminal_is_read_and_the_key_to_quit_found() {
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let mut keyboard = File::from(terminal.master);
    let own = File::from(terminal.slave);
    let bench = reading(reopen(&own).expect("a terminal"), usize::MAX);
    // Line by line: this terminal is not in raw mode.
    keyboard.write_all(b"one\n").expect("room");
    bench.expect(b"one\n");
    keyboard.write_all(b"\x01x\n").expect("room");
    let event = bench.events.recv_timeout(Duration::from_secs(60));
    assert_eq!(event, Ok(Event::Quit));
}

#[test]
fn opening_anew_leaves_the_input_of_others_as_it_was() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = |file: &File| {
        let flags = fcntl(file, FcntlArg::F_GETFL).expect("its flags");
        OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
    };
    let (input, _keyboard) = pipe();
    let own = reopen(&input).expect("a pipe");
    assert_eq!((flags(&input), flags(&own)), (false, true));
}

#[test]
fn a_regular_file_is_read_to_its_end_as_the_guest_has_room() {
    let path = std::env::temp_dir().join(format!("nido-stdin-{}", std::process::id()));
    let text: Vec<u8> = (0..20_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
    let text: Vec<u8> = text.into_iter().filter(|byte| *byte != ESCAPE).collect();
    std::fs::write(&path, &text).expect("room on the disk");
    let input = File::open(&path).expect("it is there");
    std::fs::remove_file(&path).expect("it is there");
    let bench = reading(input, 5000);
    bench.expect(&text[..5000]);
    bench.guest.lock().room = usize::MAX;
    bench.expect(&text);
    bench.rests();
}

#[test]
fn there_is_nothing_in_dev_null() {
    let bench = reading(File::open("/dev/null").expect("it is there"), usize::MAX);
    bench.rests();
    assert_eq!(bench.taken(), b"");
    assert!(bench.events.try_recv().is_err());
}

#[test]
fn a_guest_that_takes_no_more_input_gets_the_rest_later() {
    let (input, mut keyboard) = pipe();
    let bench = reading(reopen(&input).expect("a pipe"), 2);
    keyboard.write_all(b"one").expect("room");
    bench.expect(b"on");
    // Closed while there is something left: no reason to look at it all the time.
    drop((keyboard, input));
    bench.rests();
    bench.guest.lock().room = 100;
    bench.expect(b"one");
}
