//! A kernel whose first instructions tell that they run: the guest's, with its entry point replaced.
//! So a VMM loads what it loads for a boot, and what passes until the guest runs can be measured.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What the guest writes to its serial port, as a line.
pub(super) const LINE: &str = "@";

/// 32-bit code (PVH): the line's two bytes to port 0x3f8, and rest.
const CODE: [u8; 13] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'@', 0xee, // mov al, '@'; out dx, al
    0xb0, b'\n', 0xee, // mov al, '\n'; out dx, al
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
];

/// The ELF note that tells the entry point of PVH: sizes of its name and of its value, type, name.
const NOTE: [u8; 16] = *b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";
/// The same with a value of 64 bits.
const WIDE_NOTE: [u8; 16] = *b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";

/// Makes `copy` of the ELF `kernel`.
pub(super) fn make(kernel: &Path, copy: &Path) -> Result<()> {
    let mut image = fs::read(kernel).with_context(|| kernel.display().to_string())?;
    let at = entry(&image).context("no entry point for PVH in the kernel")?;
    let place = image.get_mut(at..at + CODE.len());
    place.context("a kernel cut off")?.copy_from_slice(&CODE);
    Ok(fs::write(copy, image)?)
}

/// Where in the file the entry point is.
fn entry(image: &[u8]) -> Option<usize> {
    let is_note = |window: &[u8]| window == NOTE || window == WIDE_NOTE;
    let note = image.windows(NOTE.len()).position(is_note)?;
    let address = u64::from(u32_at(image, note + NOTE.len())?);
    let headers = usize::try_from(u64_at(image, 32)?).ok()?;
    let size = usize::from(u16_at(image, 54)?);
    (0..usize::from(u16_at(image, 56)?)).find_map(|index| {
        // `Elf64_Phdr`: offset, physical address, size in the file.
        let header = headers + index * size;
        let [offset, start, length] = [8, 24, 32].map(|field| u64_at(image, header + field));
        let inside = address.checked_sub(start?)?;
        let is_there = u32_at(image, header)? == PT_LOAD && inside < length?;
        is_there.then(|| usize::try_from(offset? + inside).ok())?
    })
}

/// A segment that is loaded.
const PT_LOAD: u32 = 1;

fn bytes<const N: usize>(image: &[u8], at: usize) -> Option<[u8; N]> {
    image.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(image: &[u8], at: usize) -> Option<u16> {
    bytes(image, at).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], at: usize) -> Option<u32> {
    bytes(image, at).map(u32::from_le_bytes)
}

fn u64_at(image: &[u8], at: usize) -> Option<u64> {
    bytes(image, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_point_is_found_in_the_segment_that_has_it() {
        let mut image = vec![0; 0x400];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        // A note first, whose addresses would do, then what is loaded to 1 MiB.
        for (header, kind) in [(64, 4_u32), (120, PT_LOAD)] {
            put(header, &kind.to_le_bytes());
            put(header + 8, &0x200_u64.to_le_bytes());
            put(header + 24, &0x10_0000_u64.to_le_bytes());
            put(header + 32, &0x100_u64.to_le_bytes());
        }
        put(0x310, &NOTE);
        put(0x320, &0x10_0040_u32.to_le_bytes());
        assert_eq!(entry(&image), Some(0x240));
        image[0x320..0x324].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        assert_eq!(entry(&image), None);
    }
}
