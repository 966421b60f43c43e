//! Back ends that speak vhost-user over a real socket, as much of it as is asked of them, and the
//! ones that do not. Numbers of requests are those of the protocol's specification.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};
use pci::PciFunction as _;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::{UserBlockOptions, UserNetOptions, VhostUser};
use crate::Memory;
use crate::virtio::testing::{BASE_FEATURES, Driver, MEMORY_SIZE, eventually};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;

/// `VIRTIO_F_VERSION_1`, `VHOST_USER_F_PROTOCOL_FEATURES` and `VIRTIO_BLK_F_MQ`.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 12;
/// `MQ`, `REPLY_ACK`, `CONFIG`.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9;

/// A back end for one device.
#[derive(Clone)]
struct BackEnd {
    features: u64,
    queues: u64,
    /// This request is not answered.
    deaf_to: u32,
    /// What it was asked, with the first eight bytes.
    heard: Arc<Mutex<Vec<(u32, u64)>>>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl BackEnd {
    fn new(features: u64, queues: u64) -> Self {
        Self {
            features,
            queues,
            deaf_to: 0,
            heard: Arc::default(),
            streams: Arc::default(),
        }
    }

    /// Listens at a path of its own, until the test ends.
    fn listen(&self, name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nido-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let back_end = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = stream.try_clone().unwrap();
                back_end.streams.lock().unwrap().push(own);
                let back_end = back_end.clone();
                thread::spawn(move || back_end.serve(stream));
            }
        });
        path
    }

    fn serve(&self, mut stream: UnixStream) -> Option<()> {
        loop {
            let mut header = [0; 12];
            stream.read_exact(&mut header).ok()?;
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let (request, flags, size) = (word(0), word(4), word(8));
            let mut body = vec![0; size as usize];
            stream.read_exact(&mut body).ok()?;
            let mut first = body.clone();
            first.resize(8, 0);
            let first = u64::from_le_bytes(first[..8].try_into().unwrap());
            self.heard.lock().unwrap().push((request, first));
            let answer = match request {
                _ if request == self.deaf_to => continue,
                GET_FEATURES => self.features.to_le_bytes().to_vec(),
                GET_PROTOCOL_FEATURES => PROTOCOL.to_le_bytes().to_vec(),
                GET_QUEUE_NUM => self.queues.to_le_bytes().to_vec(),
                // A disk of 0x800 sectors; who asks for more than is known gets nothing.
                GET_CONFIG if body[4..8] != 60_u32.to_le_bytes() => vec![0; 12],
                GET_CONFIG => [&body[..12], &0x800_u64.to_le_bytes(), &body[20..]].concat(),
                // The index, and seven entries taken.
                GET_VRING_BASE => [&body[..4], &7_u32.to_le_bytes()].concat(),
                // VHOST_USER_NEED_REPLY
                _ if flags & 8 != 0 => vec![0; 8],
                _ => continue,
            };
            let length = u32::try_from(answer.len()).unwrap();
            let header = [request, 5, length].map(u32::to_le_bytes).concat();
            stream.write_all(&[header, answer].concat()).ok()?;
        }
    }

    /// The first words that came with `request`.
    fn heard(&self, request: u32) -> Vec<u64> {
        let heard = self.heard.lock().unwrap();
        let of_it = heard.iter().filter(|(other, _)| *other == request);
        of_it.map(|(_, first)| *first).collect()
    }

    /// Ends all connections.
    fn close(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
}

/// Guest memory in a file.
fn shared() -> Memory {
    let file: std::fs::File = memfd_create(c"test", MFdFlags::empty()).unwrap().into();
    file.set_len(MEMORY_SIZE as u64).unwrap();
    let file = FileOffset::new(file, 0);
    let range = (GuestAddress(0), MEMORY_SIZE, Some(file));
    Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap())
}

fn open(socket: PathBuf, queues: u16, memory: Memory) -> Result<VhostUser, String> {
    let queues = queues..=queues;
    VhostUser::block(&UserBlockOptions { socket, queues }, memory)
        .map_err(|error| error.to_string())
}

/// A disk of two queues.
fn two(socket: PathBuf, memory: Memory) -> Result<VhostUser, String> {
    open(socket, 2, memory)
}

fn block(socket: PathBuf, queues: u16) -> Result<VhostUser, String> {
    open(socket, queues, shared())
}

fn driver(device: VhostUser, memory: &Memory) -> Driver {
    let dma = crate::Dma::direct(Arc::clone(memory));
    Driver::with_memory(Box::new(device), 0, Arc::clone(memory), dma)
}

#[test]
fn queues_are_handed_over_and_taken_back() {
    let back_end = BackEnd::new(FEATURES | 1 << 9 | 1 << 29, 2);
    let memory = shared();
    let device = two(back_end.listen("handed"), Arc::clone(&memory)).unwrap();
    let driver = driver(device, &memory);
    // FLUSH and EVENT_IDX, which the back end has, and MQ; no
    // INDIRECT_DESC.
    assert_eq!(driver.offered(), 3 << 32 | 1 << 29 | 1 << 12 | 1 << 9);
    driver.start(1 << 29, 2);
    eventually("both queues run", || {
        back_end.heard(SET_VRING_ENABLE).len() == 2
    });
    // Without ACCESS_PLATFORM, of which it knows nothing.
    assert_eq!(back_end.heard(SET_FEATURES), [1 << 32 | 1 << 30 | 1 << 29]);
    assert_eq!(back_end.heard(SET_VRING_ENABLE), [1 << 32, 1 << 32 | 1]);
    assert_eq!(back_end.heard(SET_VRING_KICK).len(), 2);
    let refused = driver.function.parkable().unwrap_err();
    assert!(refused.contains("vhost-user"), "{refused}");
    let refused = driver.function.save().unwrap_err().to_string();
    assert!(refused.contains("without vhost-user"), "{refused}");
    driver.set_status(0);
    eventually("both are stopped", || driver.status() == 0);
    assert_eq!(back_end.heard(GET_VRING_BASE), [0, 1]);
    assert_eq!(back_end.heard(SET_VRING_ENABLE)[2..], [0, 1]);
    driver.start(0, 2);
    eventually("both run again", || {
        back_end.heard(SET_VRING_ENABLE).len() == 6
    });
}

#[test]
fn a_disk_has_its_back_ends_configuration_and_our_number_of_queues() {
    let back_end = BackEnd::new(FEATURES | 1 << 6 | 1 << 9 | 1 << 63, 4);
    let device = block(back_end.listen("disk"), 3).unwrap();
    let memory = shared();
    let driver = driver(device, &memory);
    // MQ, FLUSH, BLK_SIZE, and nothing that nobody knows.
    assert_eq!(driver.offered(), 3 << 32 | 1 << 12 | 1 << 9 | 1 << 6);
    assert_eq!(driver.read(0x200), 0x800_u64.to_le_bytes());
    assert_eq!(driver.read(0x200 + 34), 3_u16.to_le_bytes());
}

#[test]
fn a_network_card_has_an_address_of_its_own_and_what_its_back_end_has() {
    // CSUM, MRG_RXBUF and MQ, for which there is no control queue.
    let back_end = BackEnd::new(1 << 32 | 1 << 30 | 1 << 22 | 1 << 15 | 1, 2);
    let memory = shared();
    let mac = [2, 0, 0, 0, 0, 9];
    let options = UserNetOptions {
        socket: back_end.listen("net"),
        mac: Some(mac),
    };
    let device = VhostUser::net(&options, Arc::clone(&memory)).unwrap();
    let driver = driver(device, &memory);
    // CSUM, MAC, MRG_RXBUF, STATUS, VERSION_1, ACCESS_PLATFORM.
    let offered = 3 << 32 | 1 << 16 | 1 << 15 | 1 << 5 | 1;
    assert_eq!(driver.offered(), offered);
    assert_eq!(driver.read(0x200), mac);
    driver.start(offered & 0xffff_ffff, 2);
    eventually("both queues run", || {
        back_end.heard(SET_VRING_ENABLE).len() == 2
    });
    // Of address and status it knows nothing.
    let told = [1 << 32 | 1 << 30 | 1 << 15 | 1];
    assert_eq!(back_end.heard(SET_FEATURES), told);
    driver.set_status(0);
    eventually("both are stopped", || driver.status() == 0);
    assert_eq!(back_end.heard(GET_VRING_BASE), [0, 1]);
}

#[test]
fn a_back_end_that_ends_is_connected_to_again_after_a_reset() {
    let back_end = BackEnd::new(FEATURES, 2);
    let memory = shared();
    let device = two(back_end.listen("ends"), Arc::clone(&memory)).unwrap();
    let driver = driver(device, &memory);
    driver.start(0, 2);
    eventually("it runs", || back_end.heard(SET_VRING_ENABLE).len() == 2);
    back_end.close();
    driver.expect_needs_reset();
    driver.set_status(0);
    eventually("it is reset", || driver.status() == 0);
    driver.start(0, 2);
    eventually("it runs again", || {
        back_end.heard(SET_VRING_ENABLE).len() == 4
    });
    assert_eq!(back_end.heard(GET_FEATURES).len(), 2);
}

#[test]
fn a_back_end_that_does_not_answer_is_given_up() {
    let mut back_end = BackEnd::new(FEATURES, 2);
    back_end.deaf_to = GET_PROTOCOL_FEATURES;
    let error = two(back_end.listen("deaf"), shared()).err().unwrap();
    assert!(error.contains("no answer for"), "{error}");
}

#[test]
fn a_reset_does_not_wait_for_a_back_end_for_ever() {
    let mut back_end = BackEnd::new(FEATURES, 2);
    back_end.deaf_to = GET_VRING_BASE;
    let memory = shared();
    let device = two(back_end.listen("hangs"), Arc::clone(&memory)).unwrap();
    let driver = driver(device, &memory);
    driver.start(0, 2);
    eventually("it runs", || back_end.heard(SET_VRING_ENABLE).len() == 2);
    driver.set_status(0);
    eventually("it is reset", || driver.status() == 0);
}

/// Some back ends serve a queue as soon as they have its notifications: what is not going to run does
/// not get there.
#[test]
fn a_queue_does_not_run_before_all_are_set_up() {
    let back_end = BackEnd::new(FEATURES, 2);
    let memory = shared();
    let device = two(back_end.listen("half"), Arc::clone(&memory)).unwrap();
    let driver = driver(device, &memory);
    assert!(driver.negotiate(BASE_FEATURES));
    driver.queue(0, 16);
    // The other's used ring is outside of memory.
    driver.write(22, &1_u16.to_le_bytes());
    driver.write(24, &16_u16.to_le_bytes());
    for (at, address) in [(32, 0x20000_u32), (40, 0x28000), (48, 0x7000_0000)] {
        driver.write(at, &address.to_le_bytes());
    }
    driver.write(28, &1_u16.to_le_bytes());
    driver.set_status(15);
    driver.expect_needs_reset();
    assert!(back_end.heard(SET_VRING_KICK).is_empty());
}

#[test]
fn a_back_end_that_says_what_nobody_asked_is_cut_off() {
    let back_end = BackEnd::new(FEATURES, 2);
    let memory = shared();
    let device = two(back_end.listen("talks"), Arc::clone(&memory)).unwrap();
    let driver = driver(device, &memory);
    driver.start(0, 2);
    eventually("it runs", || back_end.heard(SET_VRING_ENABLE).len() == 2);
    for stream in back_end.streams.lock().unwrap().iter_mut() {
        stream.write_all(b"hello").unwrap();
    }
    driver.expect_needs_reset();
}

#[test]
fn what_a_back_end_lacks_is_named() {
    let says = |back_end: BackEnd, name: &str, words: &[&str]| {
        let error = block(back_end.listen(name), 4).err().unwrap();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    says(BackEnd::new(1 << 30, 4), "old", &["VIRTIO_F_VERSION_1"]);
    let simple = BackEnd::new(1 << 32, 4);
    says(simple, "simple", &["VHOST_USER_F_PROTOCOL_FEATURES"]);
    let narrow = BackEnd::new(FEATURES, 2);
    says(narrow, "narrow", &["has 2 queues", "queues=2"]);
}

#[test]
fn a_back_end_that_is_not_there_and_private_memory_are_told_with_the_remedy() {
    let error = two(PathBuf::from("/nowhere/at/all"), shared())
        .err()
        .unwrap();
    assert!(error.contains("/nowhere/at/all"), "{error}");
    assert!(error.contains("start the back end first"), "{error}");
    let back_end = BackEnd::new(FEATURES, 2);
    let private = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap();
    let error = two(back_end.listen("private"), Arc::new(private))
        .err()
        .unwrap();
    assert!(error.contains("shared=on"), "{error}");
}
