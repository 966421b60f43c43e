//! The kinds of value that keys take, and their parsers.

/// What the value of a key looks like.
pub(crate) enum Kind {
    /// `on` or `off`.
    OnOff,
    /// `on`, `off` or `auto`.
    OnOffAuto,
    /// One of a few numbers.
    OneOf(&'static [u64]),
    /// A number, decimal or hexadecimal after `0x`.
    Number,
    /// The same within bounds, which are checked where the value is used: there the message can say
    /// why they are.
    Bounded {
        /// Least value.
        least: u64,
        /// Greatest value.
        most: u64,
    },
    /// A number of bytes, with an optional suffix K, M, G or T.
    Size {
        /// Least value, checked where it is used.
        least: u64,
    },
    /// A device number on PCI bus 0, hexadecimal.
    Slot,
    /// Six bytes in hexadecimal, separated by colons.
    Mac,
    /// Anything but the empty text; the string describes it.
    Text(&'static str),
    /// The same of at most so many bytes, checked where it is used.
    ShortText(&'static str, usize),
}

/// A parsed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// `on` or `off`.
    OnOff(bool),
    /// `auto`.
    Auto,
    /// A number or size.
    Number(u64),
    /// A device number on the PCI bus.
    Slot(u8),
    /// A hardware address.
    Mac([u8; 6]),
    /// Text.
    Text(String),
}

impl Kind {
    /// What help shows to the right of `=`.
    pub(crate) fn syntax(&self) -> String {
        match self {
            Kind::OnOff => "on|off".to_owned(),
            Kind::OnOffAuto => "on|off|auto".to_owned(),
            Kind::OneOf(choices) => choices
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join("|"),
            Kind::Number | Kind::Bounded { .. } => "NUMBER".to_owned(),
            Kind::Size { .. } => "SIZE".to_owned(),
            Kind::Slot => "DEV".to_owned(),
            Kind::Mac => "XX:XX:XX:XX:XX:XX".to_owned(),
            Kind::Text(placeholder) | Kind::ShortText(placeholder, _) => (*placeholder).to_owned(),
        }
    }

    /// Which of these values are taken, if not all of them.
    pub(crate) fn range(&self) -> Option<String> {
        match self {
            Kind::OnOff | Kind::OnOffAuto | Kind::OneOf(_) => None,
            Kind::Number | Kind::Mac | Kind::Text(_) => None,
            Kind::Bounded { least, most } => Some(format!("{least} to {most}")),
            Kind::Size { least: 0 } => None,
            Kind::Size { least } => Some(format!("{}M or more", least >> 20)),
            Kind::Slot => Some("1 to 1f".to_owned()),
            Kind::ShortText(_, most) => Some(format!("at most {most} bytes")),
        }
    }

    fn expected(&self) -> String {
        match self {
            Kind::OnOff => "`on` or `off`".to_owned(),
            Kind::OnOffAuto => "`on`, `off` or `auto`".to_owned(),
            Kind::OneOf(_) => format!("one of {}", self.syntax()),
            Kind::Number | Kind::Bounded { .. } => "a number, such as 255 or 0xff".to_owned(),
            Kind::Size { .. } => "a size, such as 512M or 2G".to_owned(),
            Kind::Slot => "a PCI device number from 1 to 1f, hexadecimal".to_owned(),
            Kind::Mac => "an individual hardware address, such as 52:54:00:12:34:56".to_owned(),
            Kind::Text(placeholder) | Kind::ShortText(placeholder, _) => {
                format!("a {placeholder} that is not empty")
            }
        }
    }
}

/// Parses `text`; the error says what was expected.
pub(crate) fn parse(kind: &Kind, text: &str) -> Result<Value, String> {
    let value = match (kind, text) {
        (Kind::OnOff | Kind::OnOffAuto, "on") => Some(Value::OnOff(true)),
        (Kind::OnOff | Kind::OnOffAuto, "off") => Some(Value::OnOff(false)),
        (Kind::OnOffAuto, "auto") => Some(Value::Auto),
        (Kind::OnOff | Kind::OnOffAuto, _) => None,
        (Kind::OneOf(choices), _) => number(text)
            .filter(|number| choices.contains(number))
            .map(Value::Number),
        (Kind::Number | Kind::Bounded { .. }, _) => number(text).map(Value::Number),
        (Kind::Size { .. }, _) => size(text).map(Value::Number),
        (Kind::Slot, _) => slot(text).map(Value::Slot),
        (Kind::Mac, _) => mac(text).map(Value::Mac),
        (Kind::Text(_) | Kind::ShortText(..), "") => None,
        (Kind::Text(_) | Kind::ShortText(..), _) => Some(Value::Text(text.to_owned())),
    };
    value.ok_or_else(|| kind.expected())
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => unsigned(digits, 16),
        None => unsigned(text, 10),
    }
}

/// A number without a sign, which `from_str_radix` would accept.
fn unsigned(digits: &str, radix: u32) -> Option<u64> {
    digits
        .chars()
        .all(|digit| digit.is_digit(radix))
        .then(|| u64::from_str_radix(digits, radix).ok())?
}

/// A number of bytes; a suffix K, M, G or T multiplies by a power of 1024.
pub(crate) fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (end, 'K' | 'k') => (&text[..end], 10),
        (end, 'M' | 'm') => (&text[..end], 20),
        (end, 'G' | 'g') => (&text[..end], 30),
        (end, 'T' | 't') => (&text[..end], 40),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

/// Device 0 is the host bridge; every function here is function 0, which may be written out.
fn slot(text: &str) -> Option<u8> {
    let device = text.strip_suffix(".0").unwrap_or(text);
    let device = device.strip_prefix("0x").unwrap_or(device);
    u8::try_from(unsigned(device, 16)?)
        .ok()
        .filter(|device| (1..32).contains(device))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut address {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::try_from(unsigned(part, 16)?).ok()?;
    }
    // Bit 0 of the first byte marks a group address, which no interface can have as its own.
    (parts.next().is_none() && address[0] & 1 == 0 && address != [0; 6]).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes_in_either_case() {
        assert_eq!(size("4096"), Some(4096));
        assert_eq!(size("512M"), Some(0x2000_0000));
        assert_eq!(size("1g"), Some(0x4000_0000));
        assert_eq!(size("16777216T"), None);
        for bad in ["", "M", "1.5G", "-1", "+1", "1GB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn slots_are_hexadecimal_and_leave_the_host_bridge_alone() {
        assert_eq!(slot("1f"), Some(31));
        assert_eq!(slot("0x10.0"), Some(16));
        for bad in ["0", "20", "1.1", "", "1.", "g"] {
            assert_eq!(slot(bad), None, "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_are_individual_ones() {
        assert_eq!(
            mac("52:54:00:12:34:56"),
            Some([0x52, 0x54, 0, 0x12, 0x34, 0x56])
        );
        for bad in [
            "53:54:00:12:34:56",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
