//! What the driver says of the guest's memory (section 5.5.6.3).

use std::time::Instant;

/// Entries that are kept: there are 16 tags so far.
const MOST: usize = 32;
/// Bytes of an entry: a tag of 16 bits and a value of 64.
const ENTRY: usize = 10;
/// Bytes that are looked at.
pub(super) const MOST_BYTES: usize = MOST * ENTRY;

/// By tag (section 5.5.6.4, and <linux/virtio_balloon.h> for what came later). The first two and those of
/// memory are bytes.
const NAMES: [&str; 16] = [
    "swapped_in",
    "swapped_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "disk_caches",
    "huge_pages_allocated",
    "huge_pages_failed",
    "oom_kills",
    "allocation_stalls",
    "scanned_in_background",
    "scanned_directly",
    "reclaimed_in_background",
    "reclaimed_directly",
];

/// Statistics, as the driver has given them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    entries: Vec<(u16, u64)>,
    /// When it did.
    pub heard: Instant,
}

impl Statistics {
    /// What is in a buffer of the driver, of which whole entries count.
    pub(super) fn decode(bytes: &[u8], heard: Instant) -> Self {
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        let entries = entries.iter().map(|entry| {
            let [t0, t1, value @ ..] = *entry;
            (u16::from_le_bytes([t0, t1]), u64::from_le_bytes(value))
        });
        Self {
            entries: entries.take(MOST).collect(),
            heard,
        }
    }

    /// Name and value of those that are known.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.entries.iter().filter_map(|(tag, value)| {
            let name = NAMES.get(usize::from(*tag))?;
            Some((*name, *value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_tags_have_names_and_others_are_left_out() {
        let mut bytes = vec![4, 0, 0, 0x10, 0, 0, 0, 0, 0, 0];
        bytes.extend([0x34, 0x12, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([3, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        // Half of an entry.
        bytes.extend([5, 0, 1]);
        let statistics = Statistics::decode(&bytes, Instant::now());
        let entries: Vec<_> = statistics.entries().collect();
        assert_eq!(entries, [("free", 0x1000), ("minor_faults", 7)]);
    }
}
