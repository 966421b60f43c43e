//! Power off and reset: the sleep and reset registers of hardware-reduced ACPI (ACPI 6.5, sections
//! 4.8.3.6 and 4.8.3.7), and the keyboard controller's reset line that operating systems try as
//! well.

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// Sleep control register; its status register follows.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Sleep status register: nothing ever wakes up here, so it reads as zero.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Reset register.
pub const RESET_PORT: u16 = 0x604;
/// The value that resets, when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// Keyboard controller's command port.
pub const KEYBOARD_PORT: u16 = 0x64;

/// The sleep type that means "off": what the `_S5` package holds.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Keyboard controller command: pulse the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;
/// Sleep control: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;

/// What the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Power off (S5).
    Off,
    /// Reset of the whole machine.
    Reset,
}

/// The ports above. `notify` is called on the vCPU's thread, so it only records and wakes somebody.
pub struct Power<F> {
    notify: F,
}

impl<F: Fn(PowerEvent) + Send + Sync> Power<F> {
    /// A device that reports to `notify`.
    pub fn new(notify: F) -> Self {
        Self { notify }
    }

    fn write(&self, port: u16, value: u8) {
        let event = match port {
            SLEEP_CONTROL_PORT if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_OFF => {
                PowerEvent::Off
            }
            RESET_PORT if value == RESET_VALUE => PowerEvent::Reset,
            KEYBOARD_PORT if value == KEYBOARD_RESET => PowerEvent::Reset,
            _ => return,
        };
        (self.notify)(event);
    }
}

impl<F: Fn(PowerEvent) + Send + Sync> DevicePio for Power<F> {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        // No sleep status, and a keyboard controller whose input buffer is empty.
        data.fill(0);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (Some(port), Some(value)) = (base.0.checked_add(offset), data.first()) {
            self.write(port, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn events(writes: &[(u16, u8)]) -> Vec<PowerEvent> {
        let events = Mutex::new(Vec::new());
        let power = Power::new(|event| events.lock().push(event));
        for (port, value) in writes {
            power.pio_write(PioAddress(*port), 0, &[*value]);
        }
        events.into_inner()
    }

    #[test]
    fn sleep_type_five_with_enable_powers_off() {
        assert_eq!(events(&[(0x600, 0x34)]), [PowerEvent::Off]);
        assert_eq!(
            events(&[(0x600, 0x14), (0x600, 0x30), (0x600, 0x20), (0x601, 0x34)]),
            []
        );
    }

    #[test]
    fn the_reset_register_and_the_keyboard_controller_reset() {
        assert_eq!(
            events(&[(0x604, 1), (0x64, 0xfe)]),
            [PowerEvent::Reset, PowerEvent::Reset]
        );
        assert_eq!(events(&[(0x604, 0), (0x64, 0xff), (0x60, 0xfe)]), []);
    }

    #[test]
    fn every_port_reads_as_zero() {
        let power = Power::new(|_| {});
        let mut data = [0xff; 4];
        power.pio_read(PioAddress(0x600), 1, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
