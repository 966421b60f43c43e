//! The name of a PCI function of the host.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A PCI function of the host: segment, bus, device and function, as `/sys/bus/pci/devices` names
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress {
    /// Segment, called domain by Linux; above 0xffff for functions behind a VMD.
    pub segment: u32,
    /// Bus.
    pub bus: u8,
    /// Device, at most 31.
    pub device: u8,
    /// Function, at most 7.
    pub function: u8,
}

/// A text that names no PCI function.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a PCI address; write it as SEGMENT:BUS:DEVICE.FUNCTION, for example 0000:01:00.0"
)]
pub struct InvalidHostAddress(String);

impl FromStr for HostAddress {
    type Err = InvalidHostAddress;

    /// Reads `0000:01:00.0`, or `01:00.0` for segment 0. All numbers are hexadecimal.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| InvalidHostAddress(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<HostAddress> {
    let (head, function) = text.rsplit_once('.')?;
    let (head, device) = head.rsplit_once(':')?;
    let (segment, bus) = head.rsplit_once(':').unwrap_or(("0", head));
    let address = HostAddress {
        segment: number(segment, 8)?,
        bus: u8::try_from(number(bus, 2)?).ok()?,
        device: u8::try_from(number(device, 2)?).ok()?,
        function: u8::try_from(number(function, 1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

/// Up to `digits` hexadecimal digits, without a sign.
fn number(text: &str, digits: usize) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (plain && text.len() <= digits).then(|| u32::from_str_radix(text, 16).ok())?
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        for text in ["0000:01:00.0", "0000:ff:1f.7", "10000:e1:00.0"] {
            let address: HostAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        let short: HostAddress = "3:1.2".parse().expect("short");
        assert_eq!(short.to_string(), "0000:03:01.2");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "01:00",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:101:00.0",
            "+1:00.0",
            "0000:01:00.0/..",
            "0000:01::00.0",
            "x:01:00.0",
            ":.",
            "0000:01:00.",
        ] {
            assert!(text.parse::<HostAddress>().is_err(), "{text:?}");
        }
    }
}
