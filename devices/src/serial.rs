//! COM1: a 16550 UART on an I/O APIC pin, with a bounded queue in front of its receiver.

mod saved;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::ioapic::IoApic;

/// First port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// How many ports it has.
pub const COM1_PORTS: u16 = 8;
/// Its I/O APIC pin.
pub const COM1_PIN: u8 = 4;

/// Input that waits for room in the receiver's FIFO, in bytes.
const QUEUE_LIMIT: usize = 4096;

const DATA: u8 = 0;
const IIR: u8 = 2;
const LSR: u8 = 5;
const LSR_DATA_READY: u8 = 1;
/// Writes that bring the registers back: interrupts off, then the divisor behind DLAB, 8 data bits,
/// OUT2, scratch.
const POWER_ON: [(u8, u8); 8] = [
    (3, 0x00),
    (1, 0x00),
    (3, 0x80),
    (0, 0x0c),
    (1, 0x00),
    (3, 0x03),
    (4, 0x08),
    (7, 0x00),
];

/// An edge on a pin.
struct Pin {
    ioapic: Arc<IoApic>,
    pin: u8,
    /// What asks for an edge has been told before.
    silent: AtomicBool,
}

impl Pin {
    fn new(ioapic: Arc<IoApic>, pin: u8) -> Self {
        Self {
            ioapic,
            pin,
            silent: AtomicBool::new(false),
        }
    }
}

impl Trigger for Pin {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if !self.silent.load(Ordering::Relaxed) {
            self.ioapic.pulse(self.pin);
        }
        Ok(())
    }
}

struct State {
    uart: Serial<Pin, NoEvents, Box<dyn Write + Send>>,
    waiting: VecDeque<u8>,
    /// Nothing comes in.
    held: bool,
}

/// A serial port. Output that cannot be written is lost, as on a line that nobody listens to.
pub struct SerialPort {
    /// Held while the I/O APIC is told; taken before the I/O APIC's lock.
    state: Mutex<State>,
}

impl SerialPort {
    /// A port that raises `pin` and sends to `output`, which is flushed after each byte.
    #[must_use]
    pub fn new(ioapic: Arc<IoApic>, pin: u8, output: Box<dyn Write + Send>) -> Self {
        let uart = Serial::new(Pin::new(ioapic, pin), output);
        Self {
            state: Mutex::new(State {
                uart,
                waiting: VecDeque::new(),
                held: false,
            }),
        }
    }

    /// Has the port take no input, so that it interrupts nobody by itself; or has it take input again.
    pub fn hold(&self, held: bool) {
        self.state.lock().held = held;
    }

    /// Queues `bytes` for the guest. Returns how many were taken: fewer when the queue is full, none
    /// while the port is [held](Self::hold).
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        if state.held {
            return 0;
        }
        let taken = bytes
            .len()
            .min(QUEUE_LIMIT.saturating_sub(state.waiting.len()));
        state.waiting.extend(bytes.iter().take(taken));
        state.feed();
        taken
    }

    /// Registers as after power-on, without what the receiver held. Input that still waits for room
    /// stays.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        for (register, value) in POWER_ON {
            let _ = state.uart.write(register, value);
        }
        while state.uart.read(LSR) & LSR_DATA_READY != 0 {
            state.uart.read(DATA);
        }
        // That the transmitter is empty is no longer news.
        state.uart.read(IIR);
    }
}

impl State {
    /// Moves input into the FIFO as far as there is room.
    fn feed(&mut self) {
        let room = self.uart.fifo_capacity().min(self.waiting.len());
        if room == 0 {
            return;
        }
        let bytes: Vec<u8> = self.waiting.iter().take(room).copied().collect();
        // In loopback mode the UART takes nothing, and the input keeps waiting.
        let taken = self.uart.enqueue_raw_bytes(&bytes).unwrap_or(0);
        self.waiting.drain(..taken.min(room));
    }
}

impl DevicePio for SerialPort {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        if let (Ok(register), [value]) = (u8::try_from(offset), data) {
            let mut state = self.state.lock();
            *value = state.uart.read(register);
            state.feed();
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (Ok(register), [value]) = (u8::try_from(offset), data) {
            let mut state = self.state.lock();
            // An error says that the output is gone; see the type's documentation.
            let _ = state.uart.write(register, *value);
            state.feed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use pci::{Bdf, MsiSink};
    use vm_device::DeviceMmio;
    use vm_device::bus::MmioAddress;

    use super::*;

    struct Messages(Mutex<Sender<u32>>);

    impl MsiSink for Messages {
        fn signal(&self, _requester: Bdf, _address: u64, data: u32) {
            let _ = self.0.lock().send(data);
        }
    }

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const BASE: PioAddress = PioAddress(0x3f8);

    fn port() -> (SerialPort, Output, Receiver<u32>) {
        let (sender, receiver) = channel();
        let ioapic = IoApic::new(
            Arc::new(Messages(Mutex::new(sender))),
            Bdf::from_requester_id(0xff00),
        );
        // Pin 4 unmasked, vector 0x31.
        ioapic.mmio_write(MmioAddress(0), 0, &0x18_u32.to_le_bytes());
        ioapic.mmio_write(MmioAddress(0), 0x10, &0x31_u32.to_le_bytes());
        let output = Output::default();
        (
            SerialPort::new(ioapic, 4, Box::new(output.clone())),
            output,
            receiver,
        )
    }

    fn read(port: &SerialPort, register: u16) -> u8 {
        let mut data = [0];
        port.pio_read(BASE, register, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_transmits_reaches_the_output() {
        let (port, output, _messages) = port();
        for byte in b"ok\n" {
            port.pio_write(BASE, 0, &[*byte]);
        }
        assert_eq!(*output.0.lock(), b"ok\n");
        assert_eq!(read(&port, 5), 0x60, "transmitter empty");
    }

    #[test]
    fn more_input_than_the_fifo_holds_arrives_in_order() {
        let (port, _output, messages) = port();
        port.pio_write(BASE, 1, &[0x01]);
        let input: Vec<u8> = (0..200).collect();
        assert_eq!(port.push_input(&input), 200);
        assert_eq!(messages.try_recv(), Ok(0x31));
        let received: Vec<u8> =
            std::iter::from_fn(|| (read(&port, 5) & 1 != 0).then(|| read(&port, 0))).collect();
        assert_eq!(received, input);
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let (port, _output, _messages) = port();
        assert_eq!(port.push_input(&[0; 10_000]), 4096);
        // 64 bytes went on into the FIFO.
        assert_eq!(port.push_input(&[0; 100]), 64);
        assert_eq!(port.push_input(&[0; 100]), 0);
    }

    #[test]
    fn a_port_that_is_held_interrupts_nobody_and_takes_input_afterwards() {
        let (port, _output, messages) = port();
        port.pio_write(BASE, 1, &[0x01]);
        port.hold(true);
        assert_eq!(port.push_input(b"x"), 0);
        assert!(messages.try_recv().is_err());
        port.hold(false);
        assert_eq!(port.push_input(b"x"), 1);
        assert_eq!(messages.try_recv(), Ok(0x31));
        assert_eq!(read(&port, 0), b'x');
    }

    #[test]
    fn a_reset_leaves_a_port_as_a_fresh_one_is() {
        let (port, output, messages) = port();
        for (register, value) in [
            (1, 0x0f),
            (3, 0x83),
            (0, 0x01),
            (3, 0x1b),
            (4, 0x1b),
            (7, 0x55),
        ] {
            port.pio_write(BASE, register, &[value]);
        }
        while messages.try_recv().is_ok() {}
        port.reset();
        port.push_input(b"x");
        let (fresh, ..) = self::port();
        fresh.push_input(b"x");
        let registers = [5, 1, 2, 3, 4, 6, 7, 0];
        let all = |port| registers.map(|register| read(port, register));
        assert_eq!(all(&port), all(&fresh));
        assert!(messages.try_recv().is_err(), "interrupts are off");
        assert!(output.0.lock().is_empty());
    }

    #[test]
    fn wide_accesses_do_nothing() {
        let (port, output, _messages) = port();
        port.pio_write(BASE, 0, b"ab");
        assert!(output.0.lock().is_empty());
        let mut data = [0; 4];
        port.pio_read(BASE, 0, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
