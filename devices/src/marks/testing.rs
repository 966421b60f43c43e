//! For tests: guest memory that devices have with marks, and the guest without, so that what the guest
//! writes hides nothing that a device forgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, MmapRegion,
    VolatileMemory as _,
};
use vmm_sys_util::tempfile::TempFile;

use super::Marks;
use crate::Memory;

/// The same memory twice, from address 0 on.
pub(crate) struct Watched {
    /// The guest's.
    pub(crate) guest: Memory,
    /// That of devices, in which what they write is marked.
    pub(crate) device: Memory,
    bytes: usize,
}

impl Watched {
    pub(crate) fn new(bytes: usize) -> Self {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(bytes as u64).unwrap();
        let file = Arc::new(file);
        let mapped = || {
            let place = FileOffset::from_arc(Arc::clone(&file), 0);
            let range = (GuestAddress(0), bytes, Some(place));
            Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap())
        };
        Self {
            guest: mapped(),
            device: mapped(),
            bytes,
        }
    }

    /// Where the pages are that devices change in `work`: all of memory is compared. Each of them has to
    /// be marked. The guest writes nothing meanwhile, and when `work` returns, devices are at rest.
    pub(crate) fn changed_by(&self, work: impl FnOnce()) -> Vec<u64> {
        let marks: Vec<&Marks> = self
            .device
            .iter()
            .map(|region| MmapRegion::bitmap(region))
            .collect();
        marks.iter().for_each(|marks| marks.begin());
        let before = self.contents();
        work();
        let words: Vec<u64> = marks.iter().flat_map(|marks| marks.take()).collect();
        marks.iter().for_each(|marks| marks.end());
        let after = self.contents();
        let pages = before.chunks(Marks::PAGE).zip(after.chunks(Marks::PAGE));
        let changed = pages
            .enumerate()
            .filter(|(_, (before, after))| before != after);
        let changed: Vec<usize> = changed.map(|(page, _)| page).collect();
        for page in &changed {
            let is_marked = words[page / 64] >> (page % 64) & 1 != 0;
            assert!(is_marked, "page {page:#x} was written, and is not marked");
        }
        changed
            .into_iter()
            .map(|page| page as u64 * Marks::PAGE as u64)
            .collect()
    }

    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        self.guest.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }
}

#[test]
#[should_panic(expected = "page 0x3 was written, and is not marked")]
fn a_writer_that_does_not_mark_is_found() {
    let memory = Watched::new(0x8000);
    memory.changed_by(|| {
        memory.device.write_obj(1_u8, GuestAddress(0x2fff)).unwrap();
        let slice = memory.device.get_slice(GuestAddress(0x3000), 8).unwrap();
        let word = slice.get_atomic_ref::<AtomicU64>(0);
        word.unwrap().store(1, Ordering::SeqCst);
    });
}

#[test]
fn what_a_device_writes_is_told_and_what_the_guest_wrote_before_is_not() {
    let memory = Watched::new(0x8000);
    memory.guest.write_obj(1_u8, GuestAddress(0x1000)).unwrap();
    let changed = memory.changed_by(|| {
        memory.device.write_obj(1_u8, GuestAddress(0x2fff)).unwrap();
    });
    assert_eq!(changed, [0x2000]);
}
