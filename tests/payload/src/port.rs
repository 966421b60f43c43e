//! I/O ports: the serial line that reports, and power-off.

use core::arch::asm;
use core::fmt::{self, Write};

use crate::smp::Lock;

/// COM1's transmit register.
const COM1: u16 = 0x3f8;
/// ACPI's sleep control register of this machine: SLP_TYP 5 in bits 4:2, SLP_EN bit 5.
const SLEEP_CONTROL: u16 = 0x600;

static LINE: Lock = Lock::new();

fn out(port: u16, value: u8) {
    // SAFETY: port I/O has no effect on memory that Rust knows of.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Sends a byte, whatever else is sent.
pub fn byte(value: u8) {
    out(COM1, value);
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            out(COM1, byte);
        }
        Ok(())
    }
}

/// Prints one whole line, whichever vCPUs print at the same time.
pub fn line(text: fmt::Arguments<'_>) {
    let _guard = LINE.lock();
    let _ = Serial.write_fmt(text);
    let _ = Serial.write_str("\r\n");
}

/// A line on the serial console.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::port::line(format_args!($($arg)*)) };
}

/// Powers the machine off by ACPI.
pub fn power_off() -> ! {
    out(SLEEP_CONTROL, 5 << 2 | 1 << 5);
    rest()
}

/// Does nothing any more.
pub fn rest() -> ! {
    loop {
        // SAFETY: the vCPU waits for what never comes.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
