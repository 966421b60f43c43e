//! The console.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use pci::PciFunction as _;
use state::Section;
use vm_memory::{Bytes, GuestAddress};

use super::console::{Console, ConsoleInput, ConsoleSender};
use super::device::VirtioDevice as _;
use super::testing::{Driver, PACKED, Ring, eventually};

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn console() -> (Driver, ConsoleSender, Screen, Ring, Ring) {
    let (sender, input) = ConsoleInput::channel().unwrap();
    let screen = Screen::default();
    let driver = Driver::new(Box::new(Console::new(input, Box::new(screen.clone()))));
    let mut rings = driver.start(0, 2);
    let tx = rings.remove(1);
    (driver, sender, screen, rings.remove(0), tx)
}

#[test]
fn what_the_guest_writes_is_shown() {
    let (driver, _sender, screen, _rx, tx) = console();
    let text: Vec<u8> = (0..10000_u32).map(|n| (n % 96) as u8 + 32).collect();
    driver
        .memory
        .write_slice(&text, GuestAddress(0x40000))
        .unwrap();
    tx.add(&driver, &[(0x40000, 100, false), (0x40064, 9900, false)]);
    driver.kick(&tx);
    assert_eq!(tx.used(&driver), (0, 0));
    assert_eq!(*screen.0.lock().unwrap(), text);
}

#[test]
fn what_is_typed_arrives_in_order_even_if_it_was_typed_first() {
    let (driver, sender, _screen, rx, _tx) = console();
    assert_eq!(sender.send(b"hello ").unwrap(), 6);
    rx.add(&driver, &[(0x40000, 4, true)]);
    driver.kick(&rx);
    assert_eq!(rx.used(&driver), (0, 4));
    rx.add(&driver, &[(0x40004, 4, true)]);
    driver.kick(&rx);
    assert_eq!(rx.used(&driver), (1, 2));
    rx.add(&driver, &[(0x40006, 100, true)]);
    driver.kick(&rx);
    sender.send(b"world").unwrap();
    assert_eq!(rx.used(&driver), (2, 5));
    let mut text = [0; 11];
    driver
        .memory
        .read_slice(&mut text, GuestAddress(0x40000))
        .unwrap();
    assert_eq!(&text, b"hello world");
}

#[test]
fn input_that_nobody_reads_is_bounded() {
    let (_driver, sender, _screen, _rx, _tx) = console();
    assert_eq!(sender.send(&vec![b'x'; 100_000]).unwrap(), 65536);
    assert_eq!(sender.send(b"y").unwrap(), 0);
}

#[test]
fn input_survives_a_reset() {
    let (driver, sender, _screen, _rx, _tx) = console();
    sender.send(b"early").unwrap();
    let rx = driver.start(0, 2).remove(0);
    rx.add(&driver, &[(0x40000, 16, true)]);
    driver.kick(&rx);
    assert_eq!(rx.used(&driver).1, 5);
}

#[test]
fn more_input_than_one_turn_handles_arrives() {
    let (driver, sender, _screen, rx, _tx) = console();
    sender.send(&[b'z'; 1000]).unwrap();
    let mut total = 0;
    while total < 1000 {
        for _ in 0..16 {
            rx.add(&driver, &[(0x40000, 4, true)]);
        }
        driver.kick(&rx);
        for _ in 0..16 {
            if total < 1000 {
                total += rx.used(&driver).1;
            }
        }
    }
    assert_eq!(total, 1000);
}

#[test]
fn what_was_typed_and_not_read_arrives_elsewhere_before_what_is_typed_there() {
    for features in [0, PACKED] {
        let (sender, input) = ConsoleInput::channel().unwrap();
        let screen = Screen::default();
        let console = Console::new(input, Box::new(screen.clone()));
        let driver = Driver::new(Box::new(console));
        let queues = driver.start_queues(features, 2);
        sender.send(b"typed here, ").unwrap();
        let (next, input) = ConsoleInput::channel().unwrap();
        next.send(b"and there").unwrap();
        let console = Console::new(input, Box::new(screen.clone()));
        let section = driver.saved();
        let driver = driver.restored(Box::new(console), &section).unwrap();
        driver.function.resume();
        queues[0].add(&driver, &[(0x40000, 100, true)]);
        queues[0].kick(&driver);
        assert_eq!(queues[0].used(&driver), 21);
        let mut text = [0; 21];
        driver
            .memory
            .read_slice(&mut text, GuestAddress(0x40000))
            .unwrap();
        assert_eq!(&text, b"typed here, and there");
        queues[1].add(&driver, &[(0x40000, 12, false)]);
        queues[1].kick(&driver);
        queues[1].used(&driver);
        eventually("it is shown", || {
            *screen.0.lock().unwrap() == b"typed here, "
        });
    }
}

#[test]
fn more_than_a_console_keeps_is_refused() {
    let (_sender, input) = ConsoleInput::channel().unwrap();
    let mut console = Console::new(input, Box::<Screen>::default());
    let state = serde_json::json!({ "typed": "00".repeat(65537) });
    let section = Section::new("console", 1, &state).unwrap();
    let error = console.restore(&section).expect_err("too long");
    let text = "what was typed cannot be: 65537 bytes, and 65536 are the most";
    assert_eq!(error.to_string(), text);
}
