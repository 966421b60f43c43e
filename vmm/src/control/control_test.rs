//! Clients of the control socket, on real sockets: well-behaved ones and others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use intel_vtd::{EventSink, InterruptMessage};
use parking_lot::Mutex;
use pci::{Apertures, Bdf, ConfigChange, MsiSink, PciFunction, RootComplex};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::cli::{self, Request};
use crate::config::{FunctionConfig, FunctionKind, WriterKind};
use crate::event::Event;
use crate::event_loop::EventLoop;
use crate::irq::Unit;
use crate::machine::unit::unit_config;
use crate::machine::{HotPlug, Maker};
use crate::memory::dirty::{Follow, Following};
use crate::socket::scratch::Scratch;

struct Nobody;

impl EventSink for Nobody {
    fn deliver(&self, _message: InterruptMessage) {}
}

struct NoMaker;

impl Maker for NoMaker {
    fn make(&self, _bdf: Bdf, _kind: &FunctionKind) -> anyhow::Result<Arc<dyn PciFunction>> {
        anyhow::bail!("there is nothing to be had")
    }

    fn release(&self, _bdf: Bdf) {}
}

/// Whose memory nobody writes to.
struct NoWriters;

impl Follow for NoWriters {
    fn has_host_devices(&self) -> bool {
        false
    }

    fn follow(&self, _of: Option<WriterKind>) -> io::Result<Box<dyn Following>> {
        Err(io::Error::other("there is nobody to be followed"))
    }
}

/// A machine with nothing but a host bridge.
pub(super) fn bare() -> (Monitor, Receiver<Event>) {
    let (events, receiver) = channel();
    let apertures = Apertures {
        ecam_base: 0xe000_0000,
        buses: 3,
        mmio32: 0xc000_0000..0xd000_0000,
        mmio64: 0..0,
    };
    let root = Arc::new(RootComplex::new(apertures));
    let monitor = Monitor {
        cpus: 2,
        memory: 1 << 30,
        all_memory: 1 << 30,
        private_memory: true,
        started: Instant::now(),
        root: Arc::clone(&root),
        unit: None,
        accesses: Arc::default(),
        assigner: None,
        writers: Arc::new(NoWriters),
        hotplug: HotPlug::new(root, Box::new(NoMaker), Vec::new(), &[]),
        balloon: Arc::default(),
        plugged: None,
        workers: Workers::new().expect("a descriptor"),
        suspension: Arc::default(),
        turns: Arc::default(),
        snapshots: Arc::default(),
        migrations: Arc::default(),
        upgrades: Arc::default(),
        events,
    };
    (monitor, receiver)
}

/// The same with a remapping unit out of reset.
pub(super) fn with_unit() -> (Monitor, Receiver<Event>) {
    let (monitor, receiver) = bare();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("mappable");
    let line = ["nido", "--kernel", "k", "--device", "intel-iommu"];
    let Ok(Request::Run { config, .. }) = cli::parse(line) else {
        panic!("not a valid command line");
    };
    let config = unit_config(&config.iommu.expect("it was asked for"), false, 46);
    let unit = Unit::new(Arc::new(memory), &config, Arc::new(Nobody)).expect("valid");
    let unit = Some(unit);
    (Monitor { unit, ..monitor }, receiver)
}

struct Bench {
    path: PathBuf,
    events: Receiver<Event>,
    control: Control,
    unit: Arc<Unit>,
    _event_loop: EventLoop,
    _scratch: Scratch,
}

fn event_loop() -> EventLoop {
    EventLoop::start(channel().0).expect("a thread")
}

fn serving() -> Bench {
    serving_for(with_unit())
}

fn serving_for((monitor, events): (Monitor, Receiver<Event>)) -> Bench {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let unit = monitor.unit.clone().expect("a unit");
    let socket = Socket::bind(&path).expect("a free name");
    let event_loop = event_loop();
    let control = Control::start(socket, monitor, event_loop.handle()).expect("descriptors");
    Bench {
        path,
        events,
        control,
        unit,
        _event_loop: event_loop,
        _scratch: scratch,
    }
}

impl Bench {
    fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.path).expect("someone listens");
        // Far beyond what any answer takes, so that a test fails and does not hang.
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("not zero");
        Client(stream)
    }
}

struct Client(UnixStream);

impl Client {
    fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("taken");
    }

    /// One answer, without its empty line.
    fn receive(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\n\n") {
            self.0.read_exact(&mut byte).expect("an answer");
            bytes.extend(byte);
        }
        bytes.pop();
        String::from_utf8(bytes).expect("text")
    }

    fn ask(&mut self, request: &str) -> String {
        self.send(&format!("{request}\n"));
        self.receive()
    }

    /// Everything until the connection is closed.
    fn rest(&mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).expect("text and an end");
        text
    }
}

#[test]
fn requests_are_answered_in_order() {
    let bench = serving();
    let mut client = bench.client();
    let status = client.ask("status");
    assert!(
        status.starts_with("vcpus: 2\nmemory: 1024 MiB\nuptime: "),
        "{status}"
    );
    assert_eq!(
        client.ask("devices"),
        "00:00.0 host-bridge      8086:0d57 class 060000 rev 00\n"
    );
    client.send("help\nstats\r\nnon");
    client.send("sense\n");
    assert!(client.receive().starts_with("help "));
    let stats = client.receive();
    assert!(stats.contains("\ncontext_invalidations: 0\n"));
    // Nobody has accessed a register.
    assert!(!stats.contains("register_accesses"), "{stats}");
    assert!(
        client
            .receive()
            .starts_with("error: unknown command `nonsense`")
    );
    assert!(client.ask("iommu").starts_with("VER "));
    // That were accesses of the host's.
    assert!(!client.ask("stats").contains("register_accesses"));
    bench.unit.write(0x18, &[0; 4]);
    assert!(client.ask("stats").contains("\nregister_accesses_"));
    assert_eq!(
        client.ask("translate 00:03.0 0x1234"),
        "00:03.0 address 0x1234: pass-through\ngoes to 0x1234, block of 4 KiB, permits: read, write\n"
    );
}

#[test]
fn a_client_that_has_said_all_gets_its_answers_and_is_let_go() {
    let bench = serving();
    let mut client = bench.client();
    // The last line lacks its newline.
    client.send("bindings\nquack");
    client
        .0
        .shutdown(std::net::Shutdown::Write)
        .expect("connected");
    assert_eq!(
        client.rest(),
        "\nerror: unknown command `quack`; `help` lists the commands\n\n"
    );
}

#[test]
fn quit_is_answered_and_then_ends_the_machine() {
    let bench = serving();
    let mut client = bench.client();
    assert_eq!(bench.events.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(client.ask("quit"), "the virtual machine ends\n");
    let event = bench.events.recv_timeout(Duration::from_secs(60));
    assert_eq!(event, Ok(Event::Quit));
}

#[test]
fn a_pause_is_a_wish_that_the_machine_answers_and_status_tells_of() {
    let bench = serving();
    let mut client = bench.client();
    assert!(client.ask("status").ends_with("state: running\n"));
    client.send("pause\n");
    let event = bench.events.recv_timeout(Duration::from_secs(60));
    assert_eq!(event, Ok(Event::Attend));
    // Nobody has answered yet, which holds nobody up.
    assert!(bench.client().ask("status").ends_with("state: running\n"));
}

#[test]
fn the_end_closes_connections_and_removes_the_socket() {
    let bench = serving();
    let mut client = bench.client();
    client.ask("status");
    let path = bench.path.clone();
    drop(bench.control);
    assert_eq!(client.rest(), "");
    assert!(!path.exists());
}

#[test]
fn an_endless_line_is_refused_at_its_limit() {
    let bench = serving();
    let mut client = bench.client();
    let endless = [b'x'; 1 << 16];
    // It may be closed in the middle of this.
    let _ = client.0.write_all(&endless);
    let mut answer = Vec::new();
    let _ = client.0.read_to_end(&mut answer);
    assert_eq!(
        String::from_utf8_lossy(&answer),
        "error: a request has at most 1024 bytes\n\n"
    );
    // The longest that is taken.
    let mut client = bench.client();
    let longest = " ".repeat(1018) + "status";
    assert!(client.ask(&longest).starts_with("vcpus"));
    assert!(
        client
            .ask(&format!(" {longest}"))
            .starts_with("error: a request")
    );
}

#[test]
fn bytes_that_are_no_text_are_an_unknown_command() {
    let bench = serving();
    let mut client = bench.client();
    client.0.write_all(b"\xff\x00\xfe\n").expect("taken");
    assert!(client.receive().starts_with("error: unknown command"));
    assert!(client.ask("status").starts_with("vcpus"));
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let bench = serving();
    let mut deaf = bench.client();
    deaf.0.set_nonblocking(true).expect("a socket");
    // Until its answers fill its side, and its requests the other.
    let flood = "help\niommu\n".repeat(1000);
    let mut sent = 0;
    for _ in 0..1000 {
        match deaf.0.write(flood.as_bytes()) {
            Ok(length) => sent += length,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!(sent > 0);
    let mut client = bench.client();
    for _ in 0..10 {
        assert!(client.ask("status").starts_with("vcpus"));
    }
    // Nor does it hold up the end.
    drop(bench.control);
}

#[test]
fn one_client_too_many_is_told_so_and_may_come_back() {
    let bench = serving();
    let mut clients: Vec<Client> = (0..8).map(|_| bench.client()).collect();
    for client in &mut clients {
        assert!(client.ask("status").starts_with("vcpus"));
    }
    for _ in 0..100 {
        let mut refused = bench.client();
        assert!(
            refused.rest().starts_with("error: 8 clients are connected"),
            "no more than 8"
        );
    }
    drop(clients.pop());
    // The server notices in its own time.
    let welcome = (0..1000).any(|_| {
        let mut client = bench.client();
        client.send("status\n");
        client.receive().starts_with("vcpus")
    });
    assert!(welcome);
    assert!(clients[0].ask("status").starts_with("vcpus"));
}

#[test]
fn work_that_takes_time_holds_up_nobody_else() {
    let (monitor, events) = with_unit();
    let (go, wait) = channel::<()>();
    let maker = SlowMaker(Mutex::new(wait));
    let port = monitor
        .root
        .add_port(Bdf::new(0, 1, 0).expect("in range"), Arc::new(NoSink))
        .expect("free");
    let ports = vec![("p".to_owned(), port)];
    let hotplug = HotPlug::new(Arc::clone(&monitor.root), Box::new(maker), ports, &[]);
    let bench = serving_for((Monitor { hotplug, ..monitor }, events));
    let mut slow = bench.client();
    slow.send("device-add edu,bus=p\nstatus\n");
    let mut client = bench.client();
    let coming = "error: bus=p: its device is still on the way in; try again in a few seconds\n";
    while client.ask("device-del p") != coming {
        thread::sleep(Duration::from_millis(1));
    }
    // One that goes away meanwhile costs nothing.
    let mut gone = bench.client();
    gone.send("device-add edu,bus=p\n");
    drop(gone);
    for _ in 0..10 {
        assert!(client.ask("status").starts_with("vcpus"));
    }
    go.send(()).expect("it waits");
    assert_eq!(slow.receive(), "error: made in vain\n");
    assert!(slow.receive().starts_with("vcpus"), "in order");
}

/// A function that answers when it likes.
#[derive(Default)]
struct Moody(Arc<Mutex<()>>);

impl PciFunction for Moody {
    fn read_config(&self, _offset: u16, data: &mut [u8]) {
        let _mood = self.0.lock();
        data.fill(0);
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) -> ConfigChange {
        ConfigChange::default()
    }

    fn reset(&self) {}
}

/// Two ports with a function in each.
fn with_functions(functions: [Arc<dyn PciFunction>; 2]) -> (Monitor, Receiver<Event>) {
    let (monitor, events) = with_unit();
    let mut ports = Vec::new();
    let mut known = Vec::new();
    for ((name, function), device) in ["left", "right"].into_iter().zip(functions).zip(1..) {
        let bdf = Bdf::new(0, device, 0).expect("in range");
        let port = monitor.root.add_port(bdf, Arc::new(NoSink)).expect("free");
        monitor.root.plug(&port, function).expect("empty");
        let config = FunctionConfig {
            id: None,
            bus: Some(name.to_owned()),
            device: None,
            kind: FunctionKind::Rng,
        };
        known.push((port.function_address(), config));
        ports.push((name.to_owned(), port));
    }
    let known: Vec<_> = known.iter().map(|(bdf, config)| (*bdf, config)).collect();
    let hotplug = HotPlug::new(Arc::clone(&monitor.root), Box::new(NoMaker), ports, &known);
    (Monitor { hotplug, ..monitor }, events)
}

#[test]
fn a_device_that_does_not_answer_keeps_nobody_from_what_ends_that() {
    let mood = Arc::new(Mutex::new(()));
    let moody = Arc::new(Moody(Arc::clone(&mood)));
    let bench = serving_for(with_functions([moody, Arc::new(Moody::default())]));
    let mood = mood.lock();
    // More than there are connections: those that go away leave their work behind.
    let busy =
        "error: busy: 8 such requests are being carried out, which is the limit; wait for one\n";
    let mut client = bench.client();
    let refused = (0..1000).any(|_| {
        let mut one = bench.client();
        // It may be told that there are too many clients, as those before are not gone yet.
        let _ = one.0.write_all(b"devices\n");
        one.0
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("not zero");
        let mut answer = [0; 256];
        let length = one.0.read(&mut answer).unwrap_or(0);
        answer[..length].starts_with(busy.as_bytes())
    });
    assert!(refused, "work without end");
    assert!(client.ask("status").starts_with("vcpus"));
    assert_eq!(client.ask("stats"), busy);
    assert_eq!(
        client.ask("device-del right,force=on"),
        "right is out of the slot of right\n"
    );
    assert_eq!(client.ask("quit"), "the virtual machine ends\n");
    let event = bench.events.recv_timeout(Duration::from_secs(60));
    assert_eq!(event, Ok(Event::Quit));
    // Even the busy one can be taken away, when it lets go of what it does.
    client.send("device-del left,force=on\n");
    drop(mood);
    assert_eq!(client.receive(), "left is out of the slot of left\n");
}

struct SlowMaker(Mutex<Receiver<()>>);

impl Maker for SlowMaker {
    fn make(&self, _bdf: Bdf, _kind: &FunctionKind) -> anyhow::Result<Arc<dyn PciFunction>> {
        let _ = self.0.lock().recv();
        anyhow::bail!("made in vain")
    }

    fn release(&self, _bdf: Bdf) {}
}

struct NoSink;

impl MsiSink for NoSink {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {}
}
