//! The image of a device: what it is like, as bytes. The window's documentation has the map.

use crate::edu::registers::{BUFFER_SIZE, Copy, Registers, RegistersState};

/// Where the buffer is.
const BUFFER_AT: usize = 0x40;
/// Bytes of an image.
pub(in crate::edu) const IMAGE_SIZE: usize = BUFFER_AT + BUFFER_SIZE;

/// What a device is, and stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::edu) struct Fixed {
    pub(in crate::edu) dma_mask: u64,
    pub(in crate::edu) msi_vectors: u8,
}

/// What a device is to become.
#[derive(Debug)]
pub(in crate::edu) struct Image {
    pub(in crate::edu) registers: Registers,
    pub(in crate::edu) factorial: Option<u32>,
    pub(in crate::edu) copy: Option<Copy>,
    pub(in crate::edu) buffer: [u8; BUFFER_SIZE],
}

/// The image of a device.
pub(in crate::edu) fn encode(
    fixed: Fixed,
    registers: &Registers,
    buffer: &[u8; BUFFER_SIZE],
) -> [u8; IMAGE_SIZE] {
    let state = registers.save();
    let narrow = [
        u32::from(fixed.msi_vectors),
        0,
        state.liveness,
        state.factorial,
        state.status,
        state.interrupt_status,
    ];
    let wide = [state.source, state.destination, state.count, state.command];
    let bytes = fixed.dma_mask.to_le_bytes().into_iter();
    let bytes = bytes
        .chain(narrow.into_iter().flat_map(u32::to_le_bytes))
        .chain(wide.into_iter().flat_map(u64::to_le_bytes))
        .chain(buffer.iter().copied());
    let mut image = [0; IMAGE_SIZE];
    image
        .iter_mut()
        .zip(bytes)
        .for_each(|(place, byte)| *place = byte);
    image
}

/// What a device with these registers becomes by `image`; `None` if that is not of such a device, or
/// says what none is like.
pub(in crate::edu) fn decode(
    image: &[u8; IMAGE_SIZE],
    fixed: Fixed,
    registers: &Registers,
) -> Option<Image> {
    let (head, buffer) = image.split_first_chunk::<BUFFER_AT>()?;
    let (dma_mask, rest) = head.split_first_chunk()?;
    let (narrow, wide) = rest.split_first_chunk::<24>()?;
    let ([vectors, zero, liveness, factorial, status, interrupt_status], []) =
        narrow.as_chunks::<4>()
    else {
        return None;
    };
    let ([source, destination, count, command], []) = wide.as_chunks::<8>() else {
        return None;
    };
    let is_same = u64::from_le_bytes(*dma_mask) == fixed.dma_mask
        && u32::from_le_bytes(*vectors) == u32::from(fixed.msi_vectors)
        && *zero == [0; 4];
    let state = RegistersState {
        liveness: u32::from_le_bytes(*liveness),
        factorial: u32::from_le_bytes(*factorial),
        status: u32::from_le_bytes(*status),
        interrupt_status: u32::from_le_bytes(*interrupt_status),
        source: u64::from_le_bytes(*source),
        destination: u64::from_le_bytes(*destination),
        count: u64::from_le_bytes(*count),
        command: u64::from_le_bytes(*command),
        ..registers.save()
    };
    let mut registers = *registers;
    registers.restore(&state).ok()?;
    let (factorial, copy) = registers.under_way()?;
    is_same.then_some(Image {
        registers,
        factorial,
        copy,
        buffer: *buffer.first_chunk()?,
    })
}
