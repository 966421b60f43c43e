//! Invalidation descriptors (section 6.5.2), decoded and checked.
//!
//! [`decode`] is a pure function of the words, of the unit's capabilities and of the mode: it tells apart the reasons for
//! which a unit stops its queue. Fields that the chosen granularity does not use are ignored, as the section says.

use super::device_tlb::{DeviceTlbInvalidation, DeviceTlbTarget};
use super::ids::{Pasid, SourceId};
use super::page_request::{PageResponse, ResponseCode};
use super::registers::{Caps, QueueError, TableMode};

/// Scope of a context cache invalidation, type 1 (section 6.5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextScope {
    /// All entries.
    Global,
    /// Entries of a domain (legacy mode; scalable mode takes it for global).
    Domain(u16),
    /// Entries of a source id, of which `function_mask` (FM) tells the bits to ignore.
    Device {
        /// SID.
        source: u16,
        /// FM: 1 ignores bit 2, 2 ignores bits 2:1, 3 ignores bits 2:0.
        function_mask: u8,
    },
}

impl ContextScope {
    /// Whether it names the context entry of `source`. In scalable mode entries have no domain.
    pub const fn concerns(self, source: SourceId) -> bool {
        match self {
            Self::Global | Self::Domain(_) => true,
            Self::Device {
                source: named,
                function_mask,
            } => (source.0 ^ named) & !ignored_bits(function_mask) == 0,
        }
    }
}

/// The bits of a source id that FM, of a context cache invalidation, has ignored.
pub const fn ignored_bits(function_mask: u8) -> u16 {
    match function_mask {
        0 => 0,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    }
}

/// Pages that an invalidation names: `2^mask` of them, naturally aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBlock {
    /// Address of the first page.
    pub address: u64,
    /// AM: log2 of the number of pages.
    pub mask: u8,
    /// IH: no table was changed, only leaves.
    pub leaf_only: bool,
}

impl PageBlock {
    /// From the second word of a descriptor of type 2 or 6, or from IVA. Low bits of the address that the mask covers are dropped.
    pub(crate) fn from_word(word: u64) -> Self {
        let mask = low_byte(word) & 0x3F;
        let kept = u64::MAX.checked_shl(12 + u32::from(mask)).unwrap_or(0);
        Self {
            address: word & kept,
            mask,
            leaf_only: word & 1 << 6 != 0,
        }
    }
}

/// Scope of an IOTLB invalidation, type 2 (section 6.5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbScope {
    /// All entries.
    Global,
    /// Entries of a domain.
    Domain(u16),
    /// Second-stage entries of a domain in a block, and all its first-stage and nested ones.
    Pages(u16, PageBlock),
}

/// Scope of an interrupt entry cache invalidation, type 4 (section 6.5.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptScope {
    /// All entries.
    Global,
    /// An aligned power of two of entries.
    Entries {
        /// Index of the first one.
        first: u16,
        /// How many.
        count: u32,
    },
}

/// Scope of a PASID-based IOTLB invalidation, type 6 (section 6.5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidIotlbScope {
    /// All entries of the domain and PASID.
    Pasid,
    /// First-stage and nested entries in a block.
    Pages(PageBlock),
}

/// Scope of a PASID cache invalidation, type 7 (section 6.5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidCacheScope {
    /// Entries of a domain.
    Domain(u16),
    /// Entries of a domain and PASID.
    Pasid(u16, u32),
    /// All entries.
    Global,
}

/// Invalidation wait, type 5 (section 6.5.2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// IF: set ICS.IWC, which may send the completion event.
    pub interrupt: bool,
    /// SW: the dword to write and where; bits of the address beyond the host address width are for the unit to ignore.
    pub status: Option<(u64, u32)>,
    /// FN: later descriptors do not start before this one has completed.
    pub fence: bool,
    /// PD: page requests that a device made before its device-TLB was invalidated come first.
    pub page_drain: bool,
}

/// An invalidation descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Type 1.
    Context(ContextScope),
    /// Type 2.
    Iotlb(IotlbScope),
    /// Type 3 and, with PASID, type 8.
    DeviceTlb {
        /// SID: whose device-TLB.
        source: SourceId,
        /// What the device is to forget.
        invalidation: DeviceTlbInvalidation,
    },
    /// Type 4.
    Interrupt(InterruptScope),
    /// Type 5.
    Wait(Wait),
    /// Type 6.
    PasidIotlb {
        /// DID.
        domain: u16,
        /// PASID.
        pasid: u32,
        /// G and, for pages, the block.
        scope: PasidIotlbScope,
    },
    /// Type 7.
    PasidCache(PasidCacheScope),
    /// Type 9.
    PageResponse {
        /// RID: who is answered.
        source: SourceId,
        /// The answer.
        response: PageResponse,
    },
}

/// ADDR in the second word of a descriptor.
const PAGE: u64 = !0xFFF;

/// Reserved bits of the first two words of each type; the other two words are reserved in all of these.
mod reserved {
    pub(super) const CONTEXT: [u64; 2] = [0xFFFC_0000_0000_F1C0, u64::MAX];
    pub(super) const IOTLB: [u64; 2] = [0xFFFF_FFFF_0000_F100, 0xF80];
    pub(super) const DEVICE_TLB: [u64; 2] = [0x000F_0000_FFE0_01F0, 0xFFE];
    pub(super) const INTERRUPT: [u64; 2] = [0xFFFF_0000_07FF_F1E0, u64::MAX];
    pub(super) const WAIT: [u64; 2] = [0xFFFF_F100, 0x3];
    pub(super) const WAIT_PAGE_DRAIN: u64 = 0x80;
    pub(super) const PASID_IOTLB: [u64; 2] = [0xFFF0_0000_0000_F1C0, 0xF80];
    pub(super) const PASID_CACHE: [u64; 2] = [0xFFF0_0000_0000_F1C0, u64::MAX];
    pub(super) const PASID_DEVICE_TLB: [u64; 2] = [0, 0x7FE];
    /// PFSID, in both kinds of device-TLB invalidation.
    pub(super) const THROTTLE: u64 = 0xFFF0_0000_0000_F000;
    /// Bit 66 is ignored.
    pub(super) const PAGE_RESPONSE: [u64; 2] = [0xFFF0_0000_0000_01E0, 0xFFFF_FFFF_FFFF_F003];
}

/// Whether a queue of this width works in this mode at all (section 6.5.2, "valid descriptors").
pub fn check_mode(caps: &Caps, mode: TableMode, wide: bool) -> Result<(), QueueError> {
    match mode {
        TableMode::Legacy => {}
        TableMode::Scalable if caps.ecap.smts() => {}
        TableMode::AbortDma if caps.ecap.adms() => {}
        _ => return Err(QueueError::Mode),
    }
    let scalable = mode != TableMode::Legacy;
    let wide_exists = caps.ecap.smts() || caps.ecap.adms();
    if (scalable && !wide) || (wide && !wide_exists) {
        return Err(QueueError::Width);
    }
    Ok(())
}

/// Decodes one descriptor; a narrow one comes with its upper two words zero.
///
/// # Errors
/// What IQERCD.IQEI reports: a type that does not exist in this mode or unit, or a reserved field that is not zero.
pub fn decode(words: [u64; 4], caps: &Caps, mode: TableMode) -> Result<Descriptor, QueueError> {
    let [first, second, ..] = words;
    let kind = (first & 0xF) | (first >> 5 & 0x70);
    let scalable = mode != TableMode::Legacy;
    match kind {
        0x1 => {
            check(words, reserved::CONTEXT)?;
            context(first)
        }
        0x2 => {
            check(words, reserved::IOTLB)?;
            iotlb(first, second, caps)
        }
        0x3 if caps.ecap.dt() => {
            check(words, with_throttle(reserved::DEVICE_TLB, caps))?;
            let (_, upper) = halves(first);
            Ok(Descriptor::DeviceTlb {
                source: SourceId(low_half(upper)),
                invalidation: DeviceTlbInvalidation::new(
                    DeviceTlbTarget::WithoutPasid,
                    second & PAGE,
                    second & 1 != 0,
                ),
            })
        }
        0x4 if caps.ecap.ir() => {
            check(words, reserved::INTERRUPT)?;
            interrupt(first, caps)
        }
        0x5 => {
            let drain = if caps.ecap.pds() {
                0
            } else {
                reserved::WAIT_PAGE_DRAIN
            };
            check(words, [reserved::WAIT[0] | drain, reserved::WAIT[1]])?;
            let (_, data) = halves(first);
            Ok(Descriptor::Wait(Wait {
                interrupt: first & 1 << 4 != 0,
                status: (first & 1 << 5 != 0).then_some((second, data)),
                fence: first & 1 << 6 != 0,
                page_drain: first & 1 << 7 != 0,
            }))
        }
        0x6 if scalable => {
            check(words, reserved::PASID_IOTLB)?;
            let scope = match granularity(first) {
                2 => PasidIotlbScope::Pasid,
                3 => PasidIotlbScope::Pages(PageBlock::from_word(second)),
                _ => return Err(QueueError::Reserved),
            };
            Ok(Descriptor::PasidIotlb {
                domain: domain(first),
                pasid: pasid(first),
                scope,
            })
        }
        0x7 if scalable => {
            check(words, reserved::PASID_CACHE)?;
            Ok(Descriptor::PasidCache(match granularity(first) {
                0 => PasidCacheScope::Domain(domain(first)),
                1 => PasidCacheScope::Pasid(domain(first), pasid(first)),
                3 => PasidCacheScope::Global,
                _ => return Err(QueueError::Reserved),
            }))
        }
        0x8 if scalable && caps.ecap.dt() => {
            check(words, with_throttle(reserved::PASID_DEVICE_TLB, caps))?;
            let target = if second & 1 != 0 {
                DeviceTlbTarget::AllPasids
            } else {
                DeviceTlbTarget::Pasid(Pasid::from_field(first >> 32))
            };
            let sized = second & 1 << 11 != 0;
            Ok(Descriptor::DeviceTlb {
                source: SourceId(domain(first)),
                invalidation: DeviceTlbInvalidation::new(target, second & PAGE, sized),
            })
        }
        0x9 if scalable && caps.ecap.prs() => {
            check(words, reserved::PAGE_RESPONSE)?;
            let (lower, _) = halves(second);
            let with_pasid = first & 1 << 4 != 0;
            Ok(Descriptor::PageResponse {
                source: SourceId(domain(first)),
                response: PageResponse {
                    pasid: with_pasid.then(|| Pasid::from_field(first >> 32)),
                    group: low_half(lower >> 3) & 0x1FF,
                    code: ResponseCode::from_bits(low_byte(first >> 12)),
                },
            })
        }
        // A comes with ECAP.HPTS, which is not offered.
        _ => Err(QueueError::Type),
    }
}

/// PFSID is reserved unless ECAP.DIT.
fn with_throttle([first, second]: [u64; 2], caps: &Caps) -> [u64; 2] {
    let throttle = if caps.ecap.dit() {
        0
    } else {
        reserved::THROTTLE
    };
    [first | throttle, second]
}

fn check(words: [u64; 4], reserved: [u64; 2]) -> Result<(), QueueError> {
    let [first, second, third, fourth] = words;
    if (first & reserved[0]) | (second & reserved[1]) | third | fourth == 0 {
        Ok(())
    } else {
        Err(QueueError::Reserved)
    }
}

fn context(first: u64) -> Result<Descriptor, QueueError> {
    let (_, upper) = halves(first);
    Ok(Descriptor::Context(match granularity(first) {
        1 => ContextScope::Global,
        2 => ContextScope::Domain(domain(first)),
        3 => ContextScope::Device {
            source: low_half(upper),
            function_mask: low_byte(first >> 48) & 3,
        },
        _ => return Err(QueueError::Reserved),
    }))
}

fn iotlb(first: u64, second: u64, caps: &Caps) -> Result<Descriptor, QueueError> {
    Ok(Descriptor::Iotlb(match granularity(first) {
        1 => IotlbScope::Global,
        2 => IotlbScope::Domain(domain(first)),
        3 if caps.cap.psi() => {
            let block = PageBlock::from_word(second);
            // The text is silent about a mask beyond MAMV; the register form calls it an error.
            if block.mask > caps.cap.mamv() {
                return Err(QueueError::Reserved);
            }
            IotlbScope::Pages(domain(first), block)
        }
        _ => return Err(QueueError::Reserved),
    }))
}

fn interrupt(first: u64, caps: &Caps) -> Result<Descriptor, QueueError> {
    if first & 1 << 4 == 0 {
        return Ok(Descriptor::Interrupt(InterruptScope::Global));
    }
    let (lower, upper) = halves(first);
    let mask = lower >> 27;
    if mask > u32::from(caps.ecap.mhmv()) {
        return Err(QueueError::Reserved);
    }
    let count = 1u32 << mask;
    let first = u32::from(low_half(upper)) & !(count - 1);
    Ok(Descriptor::Interrupt(InterruptScope::Entries {
        first: low_half(first),
        count,
    }))
}

fn granularity(first: u64) -> u8 {
    low_byte(first >> 4) & 3
}

fn domain(first: u64) -> u16 {
    let (lower, _) = halves(first);
    low_half(lower >> 16)
}

fn pasid(first: u64) -> u32 {
    let (_, upper) = halves(first);
    upper & 0xF_FFFF
}

fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

fn low_half(word: u32) -> u16 {
    let [a, b, ..] = word.to_le_bytes();
    u16::from_le_bytes([a, b])
}

fn low_byte(word: u64) -> u8 {
    let [byte, ..] = word.to_le_bytes();
    byte
}

#[cfg(test)]
mod descriptors_test;
