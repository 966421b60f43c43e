//! The state of a serial port: registers, the receiver's FIFO, and the input that waits for room in it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError, SaveError, Section};
use vm_superio::Serial;
use vm_superio::serial::{NoEvents, SerialState as Uart};

use super::{LSR_DATA_READY, Pin, QUEUE_LIMIT, SerialPort};

const KIND: &str = "serial";
const VERSION: u32 = 1;

/// Line Status, but for whether there is data: the transmitter is empty.
const LINE_STATUS: u8 = 0x60;
/// Interrupts that can be enabled.
const INTERRUPTS: u8 = 0x0f;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SerialState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    fifo: Bytes,
    waiting: Bytes,
}

impl SerialPort {
    /// What it is like at the moment, input that waits included.
    ///
    /// # Errors
    /// None that is known.
    pub fn save(&self) -> Result<Section, SaveError> {
        let state = self.state.lock();
        let uart = state.uart.state();
        let saved = SerialState {
            baud_divisor_low: uart.baud_divisor_low,
            baud_divisor_high: uart.baud_divisor_high,
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            fifo: uart.in_buffer.into(),
            waiting: state.waiting.iter().copied().collect::<Vec<_>>().into(),
        };
        drop(state);
        Section::new(KIND, VERSION, &saved)
    }

    /// Makes one that was just created like the one that was [saved](Self::save). It interrupts
    /// nobody for that. Input that it has got already comes behind what waited.
    ///
    /// # Errors
    /// `section` is not of a serial port, and nothing has changed.
    pub fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let saved: SerialState = section.read(KIND, VERSION)?;
        let waiting = saved.waiting.as_slice();
        if waiting.len() > QUEUE_LIMIT {
            let why = format_args!("{} bytes, and {QUEUE_LIMIT} are the most", waiting.len());
            return Err(RestoreError::damaged("input that waits", why));
        }
        if saved.interrupt_enable & !INTERRUPTS != 0 {
            let why = format_args!("{:#04x} has reserved bits", saved.interrupt_enable);
            return Err(RestoreError::damaged("the interrupt enable register", why));
        }
        let mut state = self.state.lock();
        let old = state.uart.interrupt_evt();
        let pin = Pin::new(Arc::clone(&old.ioapic), old.pin);
        pin.silent.store(true, Ordering::Relaxed);
        let received = state.uart.state().in_buffer;
        let mut uart = Serial::from_state(&saved.uart(), pin, NoEvents, Box::new(io::sink()) as _)
            .map_err(|_| RestoreError::damaged("the receiver's FIFO", "it is longer than any"))?;
        std::mem::swap(uart.writer_mut(), state.uart.writer_mut());
        uart.interrupt_evt().silent.store(false, Ordering::Relaxed);
        state.uart = uart;
        let later = std::mem::replace(&mut state.waiting, waiting.to_vec().into());
        let room = QUEUE_LIMIT.saturating_sub(waiting.len());
        let came = received.into_iter().chain(later);
        state.waiting.extend(came.take(room));
        Ok(())
    }
}

impl SerialState {
    fn uart(&self) -> Uart {
        let fifo = self.fifo.as_slice();
        let ready = if fifo.is_empty() { 0 } else { LSR_DATA_READY };
        Uart {
            baud_divisor_low: self.baud_divisor_low,
            baud_divisor_high: self.baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: LINE_STATUS | ready,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: fifo.to_vec(),
        }
    }
}

#[cfg(test)]
mod saved_test;
