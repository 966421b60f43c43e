//! Reading `struct vfio_region_info` and its capabilities, whose chain comes from outside this process.

use std::ops::Range;

use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP;

/// More capabilities than this are a loop.
const MAX_CAPABILITIES: usize = 32;
/// More areas than this are no help to anybody.
const MAX_AREAS: usize = 64;
/// `VFIO_REGION_INFO_FLAG_CAPS`.
const FLAG_CAPS: u32 = 1 << 3;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct RegionInfo {
    pub(super) flags: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
    /// The areas of `VFIO_REGION_INFO_CAP_SPARSE_MMAP`, if it is there: nothing else can be mapped.
    pub(super) sparse: Option<Vec<Range<u64>>>,
}

/// `None` when the bytes are no region information.
pub(super) fn parse(bytes: &[u8]) -> Option<RegionInfo> {
    let flags = word(bytes, 4)?;
    let first = if flags & FLAG_CAPS == 0 {
        0
    } else {
        word(bytes, 12)?
    };
    Some(RegionInfo {
        flags,
        size: long(bytes, 16)?,
        offset: long(bytes, 24)?,
        sparse: sparse(bytes, first),
    })
}

fn sparse(bytes: &[u8], first: u32) -> Option<Vec<Range<u64>>> {
    let mut at = usize::try_from(first).ok()?;
    for _ in 0..MAX_CAPABILITIES {
        if at == 0 {
            return None;
        }
        // struct vfio_info_cap_header: id and version of 16 bits, offset of the next one.
        if word(bytes, at)? & 0xffff == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = usize::try_from(word(bytes, at.checked_add(8)?)?).ok()?;
            let areas = (0..count.min(MAX_AREAS)).map_while(|index| {
                let area = at.checked_add(16 + 16 * index)?;
                let (offset, size) = (long(bytes, area)?, long(bytes, area.checked_add(8)?)?);
                Some(offset..offset.checked_add(size)?)
            });
            return Some(areas.collect());
        }
        at = usize::try_from(word(bytes, at.checked_add(4)?)?).ok()?;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A region of 0x4000 bytes at 1 << 40 with the given flags, first capability and words that follow the structure.
    fn info(flags: u32, first: u32, rest: &[u32]) -> Vec<u8> {
        let mut words = vec![0, flags, 0, first, 0x4000, 0, 0, 0x100];
        words.extend(rest);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_region_without_capabilities_has_no_sparse_areas() {
        let parsed = parse(&info(7, 32, &[1, 0, 9, 0])).expect("parsed");
        assert_eq!((parsed.flags, parsed.size), (7, 0x4000));
        assert_eq!(parsed.offset, 1 << 40);
        assert_eq!(parsed.sparse, None);
    }

    #[test]
    fn sparse_areas_are_found_behind_another_capability() {
        let rest = [
            0x1_0003, 40, // MSI-X mappable, next at 40
            0x1_0001, 0, 2, 0, 0, 0, 0x1000, 0, 0x3000, 0, 0x1000, 0,
        ];
        let parsed = parse(&info(0xf, 32, &rest)).expect("parsed");
        assert_eq!(parsed.sparse, Some(vec![0..0x1000, 0x3000..0x4000]));
    }

    #[test]
    fn chains_that_loop_or_leave_the_buffer_end() {
        assert_eq!(parse(&info(0xf, 32, &[3, 32])).expect("loop").sparse, None);
        assert_eq!(parse(&info(0xf, 4000, &[])).expect("far").sparse, None);
        let cut = [1, 0, u32::MAX, 0, 0, 0, 0x1000, 0];
        assert_eq!(
            parse(&info(0xf, 32, &cut)).expect("cut").sparse,
            Some(std::iter::once(0..0x1000).collect())
        );
        assert_eq!(parse(&[0; 20]), None);
    }
}
