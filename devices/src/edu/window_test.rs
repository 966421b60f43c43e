use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pci::{Bdf, IntxSink, MsiSink, PciFunction as _};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Edu, EduOptions};
use crate::{Dma, Memory};

const PATIENCE: Duration = Duration::from_secs(10);
/// From the window's documentation.
const IMAGE: u64 = 0x2000;
const LENGTH: u64 = 0x1040;
const MODE: u64 = 0x0c;
const STATUS: u64 = 0x10;
const LOAD: u64 = 0x14;

struct Nowhere;

impl MsiSink for Nowhere {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {}
}

impl IntxSink for Nowhere {
    fn set_level(&self, _asserted: bool) {}
}

struct Machine {
    edu: Arc<Edu>,
    memory: Memory,
}

impl Machine {
    fn new(options: EduOptions) -> Self {
        let memory: Memory = Arc::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("mappable"),
        );
        let sink = Arc::new(Nowhere);
        let dma = Dma::direct(Arc::clone(&memory));
        let bdf = Bdf::from_requester_id(0x18);
        let edu =
            Edu::new(bdf, dma, Arc::clone(&sink) as _, sink, None, options).expect("a thread");
        // Memory space and bus master.
        edu.write_config(0x04, &6_u16.to_le_bytes());
        Self { edu, memory }
    }

    fn movable() -> Self {
        Self::new(EduOptions {
            migration: true,
            ..EduOptions::default()
        })
    }

    fn read(&self, bar: usize, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.edu.read_bar(bar, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, bar: usize, offset: u64, value: u32) {
        self.edu.write_bar(bar, offset, &value.to_le_bytes());
    }

    fn wide(&self, offset: u64, value: u64) {
        self.edu.write_bar(0, offset, &value.to_le_bytes());
    }

    fn set_mode(&self, mode: u32) {
        self.write(2, MODE, mode);
        self.until(|machine| machine.read(2, STATUS) == 0);
    }

    fn until(&self, done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < PATIENCE, "it takes too long");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts a copy from the buffer to memory, or the other way.
    fn copy(&self, from: u64, to: u64, count: u64, command: u64) {
        self.wide(0x80, from);
        self.wide(0x88, to);
        self.wide(0x90, count);
        self.wide(0x98, command);
    }

    fn copied(&self) {
        self.until(|machine| machine.read(0, 0x98) & 1 == 0);
    }

    fn image(&self) -> Vec<u8> {
        let mut image = Vec::new();
        for at in (0..LENGTH).step_by(8) {
            let mut data = [0; 8];
            self.edu.read_bar(2, IMAGE + at, &mut data);
            image.extend(data);
        }
        image
    }

    /// Has it become like `image`. Tells what it says about that.
    fn load(&self, image: &[u8]) -> u32 {
        for (at, word) in (IMAGE..).step_by(4).zip(image.chunks(4)) {
            self.edu.write_bar(2, at, word);
        }
        self.write(2, LOAD, 1);
        self.read(2, LOAD)
    }
}

#[test]
fn another_device_goes_on_where_one_has_stood_still() {
    let here = Machine::movable();
    assert_eq!(here.read(2, 0x00).to_le_bytes(), *b"eduS");
    assert_eq!((here.read(2, 0x04), here.read(2, 0x08)), (1, 0x1040));
    here.write(0, 0x04, 0x1234_5678);
    here.memory
        .write_slice(b"what the buffer holds", GuestAddress(0x1000))
        .expect("memory");
    here.copy(0x1000, 0x4_0010, 21, 1);
    here.copied();
    here.write(0, 0x60, 0x8001);
    // What is asked for now waits.
    here.set_mode(1);
    here.write(0, 0x08, 5);
    here.copy(0x4_0010, 0x2000, 21, 0b111);
    here.set_mode(2);
    let image = here.image();
    // Nothing is taken any more.
    here.write(0, 0x04, 0);
    here.write(0, 0x64, u32::MAX);
    assert_eq!(here.image(), image);
    assert_eq!(here.read(0, 0x24), 0x8001);

    let there = Machine::movable();
    there.set_mode(2);
    assert_eq!(there.load(&image), 0);
    assert_eq!(there.image(), image);
    there.set_mode(1);
    assert_eq!(there.read(0, 0x98) & 1, 1, "it begins nothing yet");
    there.set_mode(0);
    there.copied();
    there.until(|machine| machine.read(0, 0x20) & 1 == 0);
    let mut data = [0; 21];
    there
        .memory
        .read_slice(&mut data, GuestAddress(0x2000))
        .expect("memory");
    assert_eq!(&data, b"what the buffer holds");
    assert_eq!(there.read(0, 0x04), !0x1234_5678);
    assert_eq!(there.read(0, 0x08), 120);
    // The interrupt of the copy has come on top.
    assert_eq!(there.read(0, 0x24), 0x8101);
    // The first one did none of that, and goes on as if nothing had been.
    let mut data = [0; 21];
    here.memory
        .read_slice(&mut data, GuestAddress(0x2000))
        .expect("memory");
    assert_eq!(data, [0; 21]);
    here.set_mode(0);
    here.copied();
    here.memory
        .read_slice(&mut data, GuestAddress(0x2000))
        .expect("memory");
    assert_eq!(&data, b"what the buffer holds");
}

#[test]
fn an_image_of_another_device_or_of_none_changes_nothing() {
    let here = Machine::movable();
    here.write(0, 0x04, 7);
    here.set_mode(2);
    let image = here.image();
    let there = Machine::movable();
    assert_eq!(there.load(&image), 1, "it runs");
    there.set_mode(1);
    assert_eq!(there.load(&image), 1, "it takes commands");
    there.set_mode(2);
    let before = there.image();
    for (at, value, what) in [
        (0x00, 0xfe, "another mask"),
        (0x08, 2, "more vectors"),
        (0x0c, 1, "something where zeros are"),
        (0x18, 0x02, "a status that there is not"),
        (0x38, 0x01, "a copy outside of the buffer"),
    ] {
        let mut wrong = image.clone();
        wrong[at] = value;
        assert_eq!(there.load(&wrong), 2, "{what}");
        assert_eq!(there.image(), before, "{what}");
    }
    assert_eq!(there.load(&image), 0);
}

#[test]
fn a_reset_has_a_device_run_that_stands_still() {
    let machine = Machine::movable();
    machine.set_mode(2);
    machine.edu.reset();
    assert_eq!(machine.read(2, MODE), 0);
    // The reset has taken them away.
    machine.edu.write_config(0x04, &6_u16.to_le_bytes());
    machine.write(0, 0x04, 1);
    assert_eq!(machine.read(0, 0x04), !1);
}

#[test]
fn what_is_not_in_the_window_reads_as_ones() {
    let machine = Machine::movable();
    for offset in [0x18, 0x1000, IMAGE - 4, IMAGE + LENGTH, 0x3ffc, 0x01] {
        assert_eq!(machine.read(2, offset), u32::MAX, "{offset:#x}");
    }
    let mut data = [0; 8];
    machine.edu.read_bar(2, IMAGE + LENGTH - 4, &mut data);
    assert_eq!(data, [0xff; 8]);
    machine.write(2, MODE, 3);
    assert_eq!(machine.read(2, MODE), 0);
    let plain = Machine::new(EduOptions::default());
    assert!(plain.edu.bar_sizes().iter().all(|(bar, ..)| *bar == 0));
    assert_eq!(plain.read(2, 0), u32::MAX);
    plain.write(2, MODE, 2);
    plain.write(0, 0x04, 1);
    assert_eq!(plain.read(0, 0x04), !1);
}

#[test]
fn a_device_that_is_saved_while_it_stands_still_does_so_when_it_is_restored() {
    let here = Machine::movable();
    here.write(0, 0x04, 7);
    here.set_mode(2);
    here.edu.park();
    here.until(|machine| machine.edu.parked().is_ok());
    let section = here.edu.save().expect("saved");
    let there = Machine::movable();
    there.edu.restore(&section).expect("restored");
    there.edu.resume();
    there.write(0, 0x04, 0);
    assert_eq!(there.read(0, 0x04), !7);
    let without = Machine::new(EduOptions::default());
    let refused = without.edu.restore(&section).expect_err("no window");
    assert!(refused.to_string().contains("BAR 2"), "{refused}");
}
