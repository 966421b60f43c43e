//! The decoder of invalidation descriptors, a function for each type (section 6.5.2).
//!
//! It is pure in the words, the unit's capabilities and the mode, and tells apart the reasons for
//! which a unit stops its queue. Fields that the chosen granularity does not use are ignored, as the
//! section says.

use super::descriptors::{
    ContextScope, Descriptor, InterruptScope, IotlbScope, PageBlock, PasidCacheScope,
    PasidIotlbScope, Wait,
};
use super::device_tlb::{DeviceTlbInvalidation, DeviceTlbTarget};
use super::ids::{Pasid, SourceId};
use super::page_request::{PageResponse, ResponseCode};
use super::registers::{Caps, QueueError, TableMode};

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
    let [first, ..] = words;
    let kind = (first & 0xF) | (first >> 5 & 0x70);
    let scalable = mode != TableMode::Legacy;
    match kind {
        0x1 => context(words),
        0x2 => iotlb(words, caps),
        0x3 if caps.ecap.dt() => device_tlb(words, caps),
        0x4 if caps.ecap.ir() => interrupt(words, caps),
        0x5 => wait(words, caps),
        0x6 if scalable => pasid_iotlb(words),
        0x7 if scalable => pasid_cache(words),
        0x8 if scalable && caps.ecap.dt() => pasid_device_tlb(words, caps),
        0x9 if scalable && caps.ecap.prs() => page_response(words),
        // A comes with ECAP.HPTS, which is not offered.
        _ => Err(QueueError::Type),
    }
}

/// Type 1 (section 6.5.2.1).
fn context(words: [u64; 4]) -> Result<Descriptor, QueueError> {
    let [first, _] = check(words, reserved::CONTEXT)?;
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

/// Type 2.
fn iotlb(words: [u64; 4], caps: &Caps) -> Result<Descriptor, QueueError> {
    let [first, second] = check(words, reserved::IOTLB)?;
    Ok(Descriptor::Iotlb(match granularity(first) {
        1 => IotlbScope::Global,
        2 => IotlbScope::Domain(domain(first)),
        3 if caps.cap.psi() => {
            let block = PageBlock::of_second_stage(second, caps);
            // The text is silent about a mask beyond MAMV; the register form calls it an error.
            if block.mask > caps.cap.mamv() {
                return Err(QueueError::Reserved);
            }
            IotlbScope::Pages(domain(first), block)
        }
        _ => return Err(QueueError::Reserved),
    }))
}

/// Type 3.
fn device_tlb(words: [u64; 4], caps: &Caps) -> Result<Descriptor, QueueError> {
    let [first, second] = check(words, with_throttle(reserved::DEVICE_TLB, caps))?;
    let (_, upper) = halves(first);
    let sized = second & 1 != 0;
    Ok(Descriptor::DeviceTlb {
        source: SourceId(low_half(upper)),
        invalidation: DeviceTlbInvalidation::new(
            DeviceTlbTarget::WithoutPasid,
            second & PAGE,
            sized,
        ),
    })
}

/// Type 4.
fn interrupt(words: [u64; 4], caps: &Caps) -> Result<Descriptor, QueueError> {
    let [first, _] = check(words, reserved::INTERRUPT)?;
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

/// Type 5.
fn wait(words: [u64; 4], caps: &Caps) -> Result<Descriptor, QueueError> {
    let drain = if caps.ecap.pds() {
        0
    } else {
        reserved::WAIT_PAGE_DRAIN
    };
    let [first, second] = check(words, [reserved::WAIT[0] | drain, reserved::WAIT[1]])?;
    let (_, data) = halves(first);
    Ok(Descriptor::Wait(Wait {
        interrupt: first & 1 << 4 != 0,
        status: (first & 1 << 5 != 0).then_some((second, data)),
        fence: first & 1 << 6 != 0,
        page_drain: first & 1 << 7 != 0,
    }))
}

/// Type 6.
fn pasid_iotlb(words: [u64; 4]) -> Result<Descriptor, QueueError> {
    let [first, second] = check(words, reserved::PASID_IOTLB)?;
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

/// Type 7.
fn pasid_cache(words: [u64; 4]) -> Result<Descriptor, QueueError> {
    let [first, _] = check(words, reserved::PASID_CACHE)?;
    Ok(Descriptor::PasidCache(match granularity(first) {
        0 => PasidCacheScope::Domain(domain(first)),
        1 => PasidCacheScope::Pasid(domain(first), pasid(first)),
        3 => PasidCacheScope::Global,
        _ => return Err(QueueError::Reserved),
    }))
}

/// Type 8.
fn pasid_device_tlb(words: [u64; 4], caps: &Caps) -> Result<Descriptor, QueueError> {
    let [first, second] = check(words, with_throttle(reserved::PASID_DEVICE_TLB, caps))?;
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

/// Type 9.
fn page_response(words: [u64; 4]) -> Result<Descriptor, QueueError> {
    let [first, second] = check(words, reserved::PAGE_RESPONSE)?;
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

/// PFSID is reserved unless ECAP.DIT.
fn with_throttle([first, second]: [u64; 2], caps: &Caps) -> [u64; 2] {
    let throttle = if caps.ecap.dit() {
        0
    } else {
        reserved::THROTTLE
    };
    [first | throttle, second]
}

/// The first two words, if no reserved bit of a descriptor is set.
fn check(words: [u64; 4], reserved: [u64; 2]) -> Result<[u64; 2], QueueError> {
    let [first, second, third, fourth] = words;
    if (first & reserved[0]) | (second & reserved[1]) | third | fourth == 0 {
        Ok([first, second])
    } else {
        Err(QueueError::Reserved)
    }
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
mod decoder_test;
