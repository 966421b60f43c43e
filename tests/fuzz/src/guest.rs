//! A small guest memory that counts lookups, with canary bytes at the host address width.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// Pages from address 0 on.
pub(crate) const LOW_PAGES: u64 = 32;
/// Pages right below the host address width.
const LAST_PAGES: u64 = 2;
/// Bytes right at the host address width, where no access may go.
const CANARY_BYTES: usize = 0x2000;
const PAGE: u64 = 0x1000;
const CANARY: u8 = 0xA5;
static ZEROS: [u8; 0x1000] = [0; 0x1000];

/// The widths that a guest has; the first is the least that a unit takes.
pub(crate) const WIDTHS: [u8; 4] = [32, 39, 46, 52];

/// Guest memory that counts lookups.
pub(crate) struct Guest {
    memory: GuestMemoryMmap<()>,
    width: u8,
    lookups: AtomicU64,
}

impl Guest {
    fn new(width: u8) -> Self {
        let end = 1_u64 << width;
        let bytes = |pages: u64| usize::try_from(pages * PAGE).unwrap();
        let ranges = [
            (GuestAddress(0), bytes(LOW_PAGES)),
            (GuestAddress(end - LAST_PAGES * PAGE), bytes(LAST_PAGES)),
            (GuestAddress(end), CANARY_BYTES),
        ];
        let guest = Self {
            memory: GuestMemoryMmap::from_ranges(&ranges).unwrap(),
            width,
            lookups: AtomicU64::new(0),
        };
        guest
            .memory
            .write_slice(&[CANARY; CANARY_BYTES], GuestAddress(end))
            .unwrap();
        guest
    }

    /// Zeroed memory of one of [`WIDTHS`]. Mapping is slow, so a thread keeps what it had.
    pub(crate) fn take(choice: u8) -> Arc<Self> {
        thread_local! {
            static KEPT: [Arc<Guest>; WIDTHS.len()] = WIDTHS.map(|width| Arc::new(Guest::new(width)));
        }
        let guest = KEPT.with(|kept| Arc::clone(&kept[usize::from(choice) % WIDTHS.len()]));
        for region in guest.memory.iter() {
            if region.start_addr().0 < guest.end() {
                let pages = (region.start_addr().0..).step_by(ZEROS.len());
                for page in pages.take(usize::try_from(region.len()).unwrap() / ZEROS.len()) {
                    guest
                        .memory
                        .write_slice(&ZEROS, GuestAddress(page))
                        .unwrap();
                }
            }
        }
        guest.lookups.store(0, Ordering::Relaxed);
        guest
    }

    pub(crate) fn width(&self) -> u8 {
        self.width
    }

    /// 2 to the host address width.
    pub(crate) fn end(&self) -> u64 {
        1 << self.width
    }

    /// How often memory was looked for since the guest was taken.
    pub(crate) fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// The guest writes a word of its own, anywhere in its memory.
    pub(crate) fn poke(&self, address: u64, word: u64) {
        let low = (address % (LOW_PAGES * PAGE)) & !7;
        let last = self.end() - LAST_PAGES * PAGE;
        let place = if address >= last && address < self.end() {
            address & !7
        } else {
            low
        };
        self.memory.write_obj(word, GuestAddress(place)).unwrap();
    }

    /// A word, if there is memory.
    pub(crate) fn peek(&self, address: u64) -> Option<u64> {
        self.memory.read_obj(GuestAddress(address)).ok()
    }

    /// All of it, in order.
    pub(crate) fn contents(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for region in self.memory.iter() {
            let mut bytes = vec![0; usize::try_from(region.len()).unwrap()];
            self.memory
                .read_slice(&mut bytes, region.start_addr())
                .unwrap();
            all.append(&mut bytes);
        }
        all
    }

    /// Asserts that nobody wrote where nobody may even look.
    #[track_caller]
    pub(crate) fn check(&self) {
        let mut bytes = [0; CANARY_BYTES];
        self.memory
            .read_slice(&mut bytes, GuestAddress(self.end()))
            .unwrap();
        assert!(
            bytes == [CANARY; CANARY_BYTES],
            "a write beyond guest memory"
        );
    }
}

impl GuestMemoryBackend for Guest {
    type R = GuestRegionMmap<()>;

    fn num_regions(&self) -> usize {
        self.memory.num_regions()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&Self::R> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        assert!(
            addr < GuestAddress(self.end()),
            "{addr:x?} is beyond the host address width"
        );
        self.memory.find_region(addr)
    }

    fn iter(&self) -> impl Iterator<Item = &Self::R> {
        self.memory.iter()
    }
}
