use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use pci::{Bdf, IntxSink, MsiSink};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use super::{EndOfInterrupt, IntxLine, IoApic, Route, RouteListener};

const BASE: MmioAddress = MmioAddress(0xfec0_0000);

#[derive(Default)]
struct Sent(Mutex<Vec<(u16, u64, u32)>>);

impl MsiSink for Sent {
    fn signal(&self, requester: Bdf, address: u64, data: u32) {
        self.0
            .lock()
            .expect("not poisoned")
            .push((requester.as_u16(), address, data));
    }
}

impl Sent {
    fn take(&self) -> Vec<(u16, u64, u32)> {
        std::mem::take(&mut self.0.lock().expect("not poisoned"))
    }
}

fn ioapic() -> (Arc<IoApic>, Arc<Sent>) {
    let sent = Arc::new(Sent::default());
    let sink: Arc<dyn MsiSink> = Arc::<Sent>::clone(&sent);
    (
        IoApic::new(sink, Bdf::new(0xff, 0, 0).expect("in range")),
        sent,
    )
}

fn write(ioapic: &IoApic, register: u32, value: u32) {
    ioapic.mmio_write(BASE, 0x00, &register.to_le_bytes());
    ioapic.mmio_write(BASE, 0x10, &value.to_le_bytes());
}

fn read(ioapic: &IoApic, register: u32) -> u32 {
    ioapic.mmio_write(BASE, 0x00, &register.to_le_bytes());
    let mut data = [0; 4];
    ioapic.mmio_read(BASE, 0x10, &mut data);
    u32::from_le_bytes(data)
}

/// Writes a pin's entry, high half first.
fn program(ioapic: &IoApic, pin: u32, entry: u64) {
    write(
        ioapic,
        0x11 + 2 * pin,
        u32::try_from(entry >> 32).expect("32 bits"),
    );
    write(
        ioapic,
        0x10 + 2 * pin,
        u32::try_from(entry & 0xffff_ffff).expect("32 bits"),
    );
}

#[test]
fn identity_registers_read_as_documented() {
    let (ioapic, _) = ioapic();
    assert_eq!(read(&ioapic, 1), 0x0017_0020);
    assert_eq!(read(&ioapic, 0), 0);
    write(&ioapic, 0, 0xffff_ffff);
    assert_eq!(read(&ioapic, 0), 0x0f00_0000);
    write(&ioapic, 1, 0);
    assert_eq!(read(&ioapic, 1), 0x0017_0020);
    assert_eq!(read(&ioapic, 0x10), 0x0001_0000, "masked at reset");
    assert_eq!(read(&ioapic, 0x40), 0, "no pin 24");
    write(&ioapic, 0x40, 0xffff_ffff);
    write(&ioapic, 0xff, 0xffff_ffff);
}

#[test]
fn status_and_reserved_bits_are_read_only() {
    let (ioapic, _) = ioapic();
    write(&ioapic, 0x10, 0xffff_ffff);
    write(&ioapic, 0x11, 0xffff_ffff);
    assert_eq!(read(&ioapic, 0x10), 0x0001_afff);
    assert_eq!(read(&ioapic, 0x11), 0xffff_0000);
}

#[test]
fn a_compatibility_edge_entry_sends_once_per_edge() {
    let (ioapic, sent) = ioapic();
    // Logical destination 0x03, lowest priority, vector 0x31.
    program(&ioapic, 4, 0x0300_0000_0000_0931);
    ioapic.pulse(4);
    ioapic.set_level(4, true);
    ioapic.set_level(4, true);
    assert_eq!(
        sent.take(),
        [(0xff00, 0xfee0_3004, 0x0131), (0xff00, 0xfee0_3004, 0x0131)]
    );
}

#[test]
fn an_edge_at_a_masked_pin_is_lost() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 4, 0x0001_0031);
    ioapic.set_level(4, true);
    program(&ioapic, 4, 0x31);
    assert_eq!(sent.take(), []);
    ioapic.set_level(4, false);
    ioapic.set_level(4, true);
    assert_eq!(sent.take(), [(0xff00, 0xfee0_0000, 0x31)]);
}

#[test]
fn a_remappable_entry_puts_its_index_into_the_address() {
    let (ioapic, sent) = ioapic();
    // Index 0x8123: bits 14:0 in 63:49, bit 15 in bit 11. Format bit 48. Vector is the pin number.
    program(&ioapic, 2, 0x0123 << 49 | 1 << 48 | 1 << 11 | 2);
    ioapic.pulse(2);
    assert_eq!(
        sent.take(),
        [(0xff00, 0xfee0_0000 | 0x0123 << 5 | 0x10 | 0x4, 0x02)]
    );
}

#[test]
fn a_level_pin_waits_for_the_end_of_its_interrupt() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 16, 0x0100_0000_0000_8041);
    ioapic.set_level(16, true);
    assert_eq!(sent.take(), [(0xff00, 0xfee0_1000, 0xc041)]);
    assert_eq!(read(&ioapic, 0x30), 0xc041, "remote IRR");
    ioapic.set_level(16, false);
    ioapic.set_level(16, true);
    assert_eq!(sent.take(), []);
    ioapic.eoi(0x40);
    assert_eq!(sent.take(), [], "another vector");
    ioapic.eoi(0x41);
    assert_eq!(
        sent.take(),
        [(0xff00, 0xfee0_1000, 0xc041)],
        "still asserted"
    );
    ioapic.set_level(16, false);
    ioapic.eoi(0x41);
    assert_eq!(sent.take(), []);
    assert_eq!(read(&ioapic, 0x30), 0x8041);
}

#[test]
fn unmasking_an_asserted_level_pin_sends() {
    let (ioapic, sent) = ioapic();
    ioapic.set_level(17, true);
    program(&ioapic, 17, 0x0001_8050);
    assert_eq!(sent.take(), []);
    program(&ioapic, 17, 0x8050);
    assert_eq!(sent.take(), [(0xff00, 0xfee0_0000, 0xc050)]);
}

#[test]
fn switching_to_edge_and_back_clears_remote_irr() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 16, 0x8041);
    ioapic.set_level(16, true);
    sent.take();
    write(&ioapic, 0x30, 0x0001_0041);
    assert_eq!(read(&ioapic, 0x30), 0x0001_0041);
    write(&ioapic, 0x30, 0x8041);
    assert_eq!(sent.take(), [(0xff00, 0xfee0_0000, 0xc041)]);
}

#[test]
fn the_eoi_register_names_the_entry_vector_and_a_processor_the_remapped_one() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 16, 1 << 48 | 0x8010);
    ioapic.set_eoi_vector(16, Some(0x55));
    ioapic.set_level(16, true);
    assert_eq!(sent.take().len(), 1);
    ioapic.eoi(0x10);
    assert_eq!(sent.take(), [], "a processor never sees the entry's vector");
    ioapic.eoi(0x55);
    assert_eq!(sent.take().len(), 1);
    ioapic.mmio_write(BASE, 0x40, &0x10_u32.to_le_bytes());
    assert_eq!(sent.take().len(), 1);
    ioapic.mmio_write(BASE, 0x40, &0x55_u32.to_le_bytes());
    assert_eq!(sent.take(), []);
    // Writing the entry forgets the remapped vector.
    program(&ioapic, 16, 2 << 48 | 1 << 48 | 0x8010);
    ioapic.eoi(0x55);
    assert_eq!(sent.take(), []);
}

#[test]
fn lines_on_one_pin_are_ored() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 18, 0x8060);
    let (one, two) = (ioapic.line(18), ioapic.line(18));
    one.set_level(true);
    one.set_level(true);
    two.set_level(true);
    assert_eq!(sent.take().len(), 1);
    one.set_level(false);
    ioapic.eoi(0x60);
    assert_eq!(sent.take().len(), 1, "the other line still asserts the pin");
    two.set_level(false);
    ioapic.eoi(0x60);
    assert_eq!(sent.take(), []);
}

#[derive(Default)]
struct Routes(Mutex<Vec<(u8, Route)>>);

impl RouteListener for Routes {
    fn route_changed(&self, pin: u8, route: Route) {
        self.0.lock().expect("not poisoned").push((pin, route));
    }
}

#[test]
fn the_listener_learns_of_each_change_and_of_reset() {
    let (ioapic, _) = ioapic();
    let routes = Arc::new(Routes::default());
    ioapic.set_listener(Arc::<Routes>::clone(&routes) as Arc<dyn RouteListener>);
    program(&ioapic, 16, 0x0200_0000_0000_8041);
    // Same value again: nothing changed.
    program(&ioapic, 16, 0x0200_0000_0000_8041);
    let seen = std::mem::take(&mut *routes.0.lock().expect("not poisoned"));
    assert_eq!(seen.len(), 2);
    let (pin, route) = seen[1];
    assert_eq!(
        (pin, route.message.address, route.message.data),
        (16, 0xfee0_2000, 0xc041)
    );
    assert!(route.level && !route.masked);
    assert_eq!(ioapic.route(16), Some(route));
    ioapic.reset();
    assert_eq!(routes.0.lock().expect("not poisoned").len(), 24);
    assert!(ioapic.route(16).is_some_and(|route| route.masked));
    assert_eq!(ioapic.route(24), None);
}

#[test]
fn odd_accesses_are_harmless() {
    let (ioapic, _) = ioapic();
    for offset in [0, 1, 4, 0x10, 0x11, 0x20, 0x40, 0xfff] {
        for length in [0, 1, 2, 4, 8] {
            ioapic.mmio_write(BASE, offset, &vec![0xff; length]);
            ioapic.mmio_read(BASE, offset, &mut vec![0; length]);
        }
    }
    assert_eq!(read(&ioapic, 0x10), 0x0001_0000);
}

/// A device behind a line: it hears of ends, and lowers its line then if `lowers`.
#[derive(Default)]
struct Device {
    line: OnceLock<Arc<IntxLine>>,
    lowers: bool,
    ends: AtomicU32,
}

impl EndOfInterrupt for Device {
    fn interrupt_ended(&self) {
        self.ends.fetch_add(1, Ordering::Relaxed);
        if let Some(line) = self.line.get().filter(|_| self.lowers) {
            line.set_level(false);
        }
    }
}

fn device(ioapic: &Arc<IoApic>, pin: u8, lowers: bool) -> Arc<Device> {
    let device = Arc::new(Device {
        lowers,
        ..Device::default()
    });
    let owner: Weak<dyn EndOfInterrupt> = Arc::downgrade(&device) as _;
    let _ = device.line.set(ioapic.line_with_end(pin, owner));
    device
}

impl Device {
    fn raise(&self) {
        self.line.get().expect("a line").set_level(true);
    }

    fn ends(&self) -> u32 {
        self.ends.swap(0, Ordering::Relaxed)
    }
}

#[test]
fn the_owner_of_a_line_hears_of_both_kinds_of_end_and_may_lower_it() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 16, 0x8041);
    let device = device(&ioapic, 16, true);
    device.raise();
    assert_eq!(sent.take().len(), 1);
    ioapic.eoi(0x41);
    assert_eq!(device.ends(), 1);
    assert_eq!(sent.take(), [], "lowered before the pin was looked at");
    device.raise();
    ioapic.mmio_write(BASE, 0x40, &0x41_u32.to_le_bytes());
    assert_eq!((device.ends(), sent.take().len()), (1, 1));
    ioapic.eoi(0x41);
    assert_eq!(device.ends(), 0, "no interrupt was in service");
}

#[test]
fn all_owners_on_a_pin_hear_of_its_end_and_nobody_on_another_pin() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 16, 0x8041);
    program(&ioapic, 17, 0x8041);
    let (one, two) = (device(&ioapic, 16, true), device(&ioapic, 16, false));
    let other = device(&ioapic, 17, true);
    one.raise();
    two.raise();
    assert_eq!(sent.take().len(), 1);
    ioapic.eoi(0x41);
    assert_eq!((one.ends(), two.ends(), other.ends()), (1, 1, 0));
    assert_eq!(sent.take().len(), 1, "the second line is still up");
}

#[test]
fn a_pin_that_becomes_an_edge_ends_its_interrupt() {
    let (ioapic, _) = ioapic();
    program(&ioapic, 16, 0x8041);
    let device = device(&ioapic, 16, false);
    device.raise();
    write(&ioapic, 0x30, 0x0001_8041);
    assert_eq!(device.ends(), 0, "masking it ends nothing");
    write(&ioapic, 0x30, 0x0001_0041);
    assert_eq!(device.ends(), 1);
}

#[test]
fn a_line_that_goes_away_lets_go_of_the_pin_and_its_owner_hears_nothing_more() {
    let (ioapic, sent) = ioapic();
    program(&ioapic, 16, 0x8041);
    let (gone, other) = (device(&ioapic, 16, false), ioapic.line(16));
    gone.raise();
    assert_eq!(sent.take().len(), 1);
    drop(gone);
    ioapic.eoi(0x41);
    assert_eq!(sent.take(), [], "nobody asserts the pin");
    other.set_level(true);
    assert_eq!(sent.take().len(), 1);
}
