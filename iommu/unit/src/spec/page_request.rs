//! Page requests and their responses (sections 7.4 to 7.10): what a device sends, what software reads in the page-request
//! queue, and what a device is answered.

use bitfield_struct::bitfield;

use super::ids::{Pasid, SourceId};

/// The bits of a PRG index.
const GROUP: u16 = 0x1FF;

/// A page-request message of a device: it would like to access a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// In which address space; `None` for a request without PASID.
    pub pasid: Option<Pasid>,
    /// Any address in the page.
    pub address: u64,
    /// R: it would read.
    pub read: bool,
    /// W: it would write.
    pub write: bool,
    /// EXR: it would execute. Only with a PASID.
    pub execute: bool,
    /// PMR: it would do so as supervisor. Only with a PASID.
    pub privileged: bool,
    /// PRGI: the group to which the request belongs, 9 bits. Higher bits are dropped.
    pub group: u16,
    /// LPIG: the last request of its group, and the one that is answered.
    pub last: bool,
}

impl PageRequest {
    /// Whether it marks the end of the requests with its PASID, and asks for nothing: LPIG without R and W.
    pub const fn is_stop_marker(&self) -> bool {
        self.last && !self.read && !self.write
    }
}

/// Page request descriptor (section 7.4), the first half of its 256 bits; the other half is 0.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PageRequestDescriptor {
    /// Type: always 1.
    #[bits(8, default = 1)]
    pub kind: u8,
    /// PP: there is a PASID.
    pub pasid_present: bool,
    #[bits(7)]
    __: u8,
    /// RID: source id.
    pub source: u16,
    /// PASID; not defined without PP.
    #[bits(20)]
    pub pasid: u32,
    /// EXR: execute requested.
    pub execute: bool,
    /// PMR: supervisor privilege requested.
    pub privileged: bool,
    #[bits(10)]
    __: u16,
    /// RDR: read requested.
    pub read: bool,
    /// WRR: write requested.
    pub write: bool,
    /// LPIG: last of its group.
    pub last: bool,
    /// PRGI: PRG index.
    #[bits(9)]
    pub group: u16,
    /// ADDR: page number.
    #[bits(52)]
    pub page: u64,
}

impl PageRequestDescriptor {
    /// Size in bytes of a slot in the queue.
    pub const SIZE: u32 = 32;

    /// What software is shown of `request`, which came from `source`.
    pub fn describe(SourceId(source): SourceId, request: &PageRequest) -> Self {
        let descriptor = Self::new()
            .with_source(source)
            .with_read(request.read)
            .with_write(request.write)
            .with_last(request.last)
            .with_group(request.group & GROUP)
            .with_page(request.address >> 12);
        match request.pasid {
            Some(pasid) => descriptor
                .with_pasid_present(true)
                .with_pasid(pasid.get())
                .with_execute(request.execute)
                .with_privileged(request.privileged),
            None => descriptor,
        }
    }

    /// The four words of a slot in the queue.
    pub fn words(&self) -> [u64; 4] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.into_bits().to_le_bytes();
        [
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, m, n, o, p]),
            0,
            0,
        ]
    }
}

/// What became of a group of page requests: the response code of PCIe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// 0000: software dealt with all of them. The device is to ask for the translations again.
    Success,
    /// 0001: some page does not exist, or not for what was asked.
    InvalidRequest,
    /// 1111: no page request of this device will succeed; it is to stop making any.
    ResponseFailure,
    /// Any other: reserved.
    Reserved(u8),
}

impl ResponseCode {
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 0xF {
            0 => Self::Success,
            1 => Self::InvalidRequest,
            0xF => Self::ResponseFailure,
            other => Self::Reserved(other),
        }
    }
}

/// A page-group response (descriptor of type 9): the answer to the last page request of a group.
///
/// Software may send any; one that answers nothing is for the device to ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResponse {
    /// The PASID of the requests; `None` if they had none.
    pub pasid: Option<Pasid>,
    /// PRGI: the group, 9 bits.
    pub group: u16,
    /// RC: what became of it.
    pub code: ResponseCode,
}

#[cfg(test)]
mod page_request_test;
