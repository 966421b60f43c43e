//! The console.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::console::{Console, ConsoleInput, ConsoleSender};
use super::testing::{Driver, Ring};

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
