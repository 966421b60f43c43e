//! What tests of a stream share. Frames are made here by a way of their own.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::connection::Connection;
use super::error::Result;
use super::link::Link;
use super::receive::{Item, Receiver};
use super::send::Sender;
use super::wire::Hello;

/// Far beyond what anything takes, so that a test fails and does not hang.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// Guest memory of two pieces, with a hole between: pages 0 to 15 and 32 to 47.
pub(super) const PIECES: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 0x10_000),
    (GuestAddress(0x20_000), 0x10_000),
];

pub(super) fn memory() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&PIECES).expect("mappable")
}

/// Fills the page at `address`.
pub(super) fn fill(memory: &GuestMemoryMmap<()>, address: u64, value: u8) {
    memory
        .write_slice(&[value; 4096], GuestAddress(address))
        .expect("memory");
}

/// All of the memory.
pub(super) fn contents(
    memory: &impl vm_memory::Bytes<GuestAddress, E: std::fmt::Debug>,
) -> Vec<u8> {
    let mut all = vec![0; 0x20_000];
    let (low, high) = all.split_at_mut(0x10_000);
    memory.read_slice(low, GuestAddress(0)).expect("memory");
    memory
        .read_slice(high, GuestAddress(0x20_000))
        .expect("memory");
    all
}

pub(super) fn hello() -> Hello {
    Hello {
        writer: "nido 0.0.0".to_owned(),
        options: vec![
            "--kernel=/boot/vmlinux".to_owned(),
            "--memory=128K".to_owned(),
        ],
        memory: 0x20_000,
        others: None,
    }
}

/// A link, and the bare other end of it.
pub(super) fn pair() -> (Link, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("descriptors");
    theirs.set_read_timeout(Some(LONG)).expect("not zero");
    (Link::new(ours, LONG).expect("a socket"), theirs)
}

/// What a link hears from an end that says `bytes` and nothing more.
pub(super) fn saying(bytes: &[u8]) -> (Link, UnixStream) {
    let (link, mut peer) = pair();
    peer.write_all(bytes).expect("there is room");
    peer.shutdown(std::net::Shutdown::Write).expect("connected");
    (link, peer)
}

/// A header by its fields.
pub(super) fn header(kind: u8, reserved: [u8; 3], length: u32, checksum: u32) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = kind;
    header[1..4].copy_from_slice(&reserved);
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..12].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// A frame with the checksum that it should have.
pub(super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    let head = header(kind, [0; 3], length, 0);
    let checked = [&head[..8], payload].concat();
    let head = header(kind, [0; 3], length, crc(&checked));
    [&head[..], payload].concat()
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}

/// The payload of PAGES or ZEROS.
pub(super) fn run(address: u64, number: u64, data: &[u8]) -> Vec<u8> {
    [&address.to_le_bytes()[..], &number.to_le_bytes(), data].concat()
}

/// The frame HELLO of [`hello`].
pub(super) fn hello_frame() -> Vec<u8> {
    let json = br#"{"writer":"nido 0.0.0","options":["--kernel=/boot/vmlinux","--memory=128K"],"memory":131072}"#;
    frame(0x01, &[b"nidomove\x01\0\0\0", &json[..]].concat())
}

/// Numbers that are none in particular, the same for each seed (xorshift64).
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }
}

/// All pages of [`memory`].
pub(super) const ALL: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 16), (GuestAddress(0x20_000), 16)];

pub(super) fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A unix and a TCP connection.
pub(super) fn connections() -> [(Connection, Connection); 2] {
    let (ours, theirs) = UnixStream::pair().expect("descriptors");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a port");
    let client = TcpStream::connect(address).expect("someone listens");
    let (served, _) = listener.accept().expect("a client");
    [(ours.into(), theirs.into()), (client.into(), served.into())]
}

/// Has a target do `work` with a stream that it has accepted, in a thread of its own.
pub(super) fn target<T: Send + 'static>(
    socket: Connection,
    work: impl FnOnce(Receiver) -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::spawn(move || {
        let link = Link::new(socket, LONG).expect("a socket");
        let (mut receiver, heard) = Receiver::accept(link, LONG).expect("HELLO");
        assert_eq!(heard, hello());
        receiver.accepted("a host").expect("there is a source");
        work(receiver)
    })
}

pub(super) fn sender(socket: Connection) -> Sender {
    let link = Link::new(socket, LONG).expect("a socket");
    offered(link, LONG).expect("it is accepted")
}

/// A target that has accepted the machine of [`hello`].
pub(super) fn offered(link: Link, patience: Duration) -> Result<Sender> {
    let mut sender = Sender::offer(link, &hello())?;
    sender.accepted(patience)?;
    Ok(sender)
}

/// Takes all that comes until the guest is given. Returns the rounds and the state.
pub(super) fn take(
    receiver: &mut Receiver,
    memory: &GuestMemoryMmap<()>,
) -> Result<(u32, Vec<u8>)> {
    let mut rounds = 0;
    let state = loop {
        match receiver.next(memory, LONG)? {
            Item::Round(number) => rounds = number,
            Item::All { state, .. } => break state,
        }
    };
    receiver.ready()?;
    receiver.wait_for_yours(LONG)?;
    Ok((rounds, state))
}
