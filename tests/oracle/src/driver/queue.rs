//! The invalidation queue in one page, and the descriptors of section 6.5.2.

use crate::ram::Ram;

/// Software's side of the queue.
#[derive(Debug)]
pub struct Queue {
    /// The page with the descriptors.
    pub page: u64,
    /// Where waits write their status.
    pub status: u64,
    wide: bool,
    tail: u64,
    token: u32,
}

impl Queue {
    /// A queue that is not in use yet.
    pub fn new(page: u64, status: u64) -> Self {
        Self {
            page,
            status,
            wide: false,
            tail: 0,
            token: 0,
        }
    }

    /// Forgets what was submitted; descriptors have 256 bits from now on, or 128.
    pub fn restart(&mut self, wide: bool) {
        self.wide = wide;
        self.tail = 0;
    }

    /// What IQT is to be.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Where the next descriptor goes.
    pub fn next_slot(&self) -> u64 {
        self.page + self.tail
    }

    /// Puts a descriptor into the next slot.
    pub fn push(&mut self, ram: &mut Ram, descriptor: &[u64; 4]) {
        let words = if self.wide { 4 } else { 2 };
        ram.store(self.next_slot(), &descriptor[..words]);
        self.tail = (self.tail + words as u64 * 8) % 4096;
    }

    /// Puts a wait with a new status value, which it returns, into the next slot.
    pub fn push_wait(&mut self, ram: &mut Ram) -> u32 {
        self.token = self.token.wrapping_add(1);
        let token = self.token;
        let status = self.status;
        self.push(ram, &wait(status, token));
        token
    }
}

/// Type 1, all of the context cache.
pub fn context_global() -> [u64; 4] {
    [0x1 | 1 << 4, 0, 0, 0]
}

/// Type 1, one source; `mask` is FM.
pub fn context_device(did: u64, source: u64, mask: u64) -> [u64; 4] {
    [
        0x1 | 3 << 4 | did << 16 | source << 32 | mask << 48,
        0,
        0,
        0,
    ]
}

/// Type 2, everything.
pub fn iotlb_global() -> [u64; 4] {
    [0x2 | 1 << 4, 0, 0, 0]
}

/// Type 2, one domain.
pub fn iotlb_domain(did: u64) -> [u64; 4] {
    [0x2 | 2 << 4 | did << 16, 0, 0, 0]
}

/// Type 2, 2^`order` pages of one domain; `hint` is IH: only leaves changed.
pub fn iotlb_pages(did: u64, address: u64, order: u64, hint: bool) -> [u64; 4] {
    [
        0x2 | 3 << 4 | did << 16,
        address & !0xfff | u64::from(hint) << 6 | order,
        0,
        0,
    ]
}

/// Type 4, everything.
pub fn interrupt_global() -> [u64; 4] {
    [0x4, 0, 0, 0]
}

/// Type 4, 2^`order` entries.
pub fn interrupt_entries(index: u64, order: u64) -> [u64; 4] {
    [0x4 | 1 << 4 | order << 27 | index << 32, 0, 0, 0]
}

/// Type 5 that writes `data` to `status`.
pub fn wait(status: u64, data: u32) -> [u64; 4] {
    [0x5 | 1 << 5 | u64::from(data) << 32, status, 0, 0]
}

/// Type 6, all pages of one PASID.
pub fn pasid_iotlb(did: u64, pasid: u64) -> [u64; 4] {
    [0x6 | 2 << 4 | did << 16 | pasid << 32, 0, 0, 0]
}

/// Type 6, 2^`order` pages of one PASID.
pub fn pasid_iotlb_pages(did: u64, pasid: u64, address: u64, order: u64, hint: bool) -> [u64; 4] {
    [
        0x6 | 3 << 4 | did << 16 | pasid << 32,
        address & !0xfff | u64::from(hint) << 6 | order,
        0,
        0,
    ]
}

/// Type 7, one domain.
pub fn pasid_cache_domain(did: u64) -> [u64; 4] {
    [0x7 | did << 16, 0, 0, 0]
}

/// Type 7, one PASID of one domain.
pub fn pasid_cache_pasid(did: u64, pasid: u64) -> [u64; 4] {
    [0x7 | 1 << 4 | did << 16 | pasid << 32, 0, 0, 0]
}

/// Type 7, everything.
pub fn pasid_cache_global() -> [u64; 4] {
    [0x7 | 3 << 4, 0, 0, 0]
}

/// ADDR and S of types 3 and 8, for 2^`shift` bytes around `address`; 64 is everything.
pub fn device_range(address: u64, shift: u32) -> u64 {
    match shift {
        12 => address & !0xfff,
        64 => !0xfff & !(1 << 63),
        // All ones from bit 12 on up to the lowest 0, which is bit shift - 1.
        _ => address >> shift << shift | ((1 << (shift - 1)) - 1) & !0xfff,
    }
}

/// Type 3: translations of requests without PASID.
pub fn device_tlb(source: u64, address: u64, shift: u32) -> [u64; 4] {
    let size = u64::from(shift > 12);
    [
        0x3 | 4 << 16 | source << 32,
        device_range(address, shift) | size,
        0,
        0,
    ]
}

/// Type 8: translations of requests with `pasid`, or with any (GI).
pub fn pasid_device_tlb(source: u64, pasid: Option<u64>, address: u64, shift: u32) -> [u64; 4] {
    let size = u64::from(shift > 12) << 11;
    [
        0x8 | 4 << 4 | source << 16 | pasid.unwrap_or(0x12345) << 32,
        device_range(address, shift) | size | u64::from(pasid.is_none()),
        0,
        0,
    ]
}

/// Type 9: the response `code` to group `group` of `source`.
pub fn page_response(source: u64, pasid: Option<u64>, group: u64, code: u64) -> [u64; 4] {
    [
        0x9 | u64::from(pasid.is_some()) << 4
            | code << 12
            | source << 16
            | pasid.unwrap_or(0) << 32,
        group << 3,
        0,
        0,
    ]
}
