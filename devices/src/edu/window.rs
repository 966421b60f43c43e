//! BAR 2 of the edu device: commands for a driver of the host that has the device migrate, with
//! [`EduOptions::migration`](super::EduOptions::migration). The lab's kernel has such a driver,
//! `resources/kernel/edu-vfio-pci.c`.
//!
//! Everything is read and written as 32 or 64 bits at a multiple of that; what is not there reads as
//! ones.
//!
//! | offset | register | access |
//! |---|---|---|
//! | 0x00 | signature, `eduS` (0x53756465) | read-only |
//! | 0x04 | version of all that follows, 1 | read-only |
//! | 0x08 | bytes of the image | read-only |
//! | 0x0c | mode: 0 runs, 1 begins nothing, 2 stands still | read and write |
//! | 0x10 | status: bit 0, a command is at hand | read-only |
//! | 0x14 | write: become what was written to the image; read: 0 done, 1 not now, 2 it is of no such device | |
//! | 0x2000 | the image | read: what the device is like; write: what it is to become |
//!
//! A device that begins nothing takes commands, and carries them out when it runs. What is at hand it
//! finishes, which the status tells. One that stands still does not answer to registers either: writes
//! to BAR 0 are dropped, and nothing of it changes but by the window. Function-level reset has it run.
//!
//! | image | bytes | |
//! |---|---|---|
//! | 0x00 | 8 | the address bits that it drives, which have to be those of the device |
//! | 0x08 | 4 | the MSI vectors that it offers, as well |
//! | 0x0c | 4 | 0 |
//! | 0x10 | 4 each | liveness, factorial, status, interrupt status |
//! | 0x20 | 8 each | DMA source, destination, count, command |
//! | 0x40 | 4096 | the buffer |
//!
//! A factorial or a copy that status and command say is under way is begun when the device runs.

mod image;

use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError};

pub(super) use image::{Fixed, IMAGE_SIZE, decode, encode};

/// Bytes of BAR 2.
pub(super) const WINDOW_SIZE: u64 = 0x4000;

const SIGNATURE: u32 = u32::from_le_bytes(*b"eduS");
const VERSION: u32 = 1;
const STATUS_BUSY: u32 = 1;
const MODE_AT: u64 = 0x0c;
const LOAD_AT: u64 = 0x14;
const IMAGE_AT: u64 = 0x2000;

/// What the device does by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Everything.
    #[default]
    Runs,
    /// It begins nothing.
    BeginsNothing,
    /// Nothing, and it does not answer to registers.
    StandsStill,
}

impl Mode {
    const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            0 => Some(Self::Runs),
            1 => Some(Self::BeginsNothing),
            2 => Some(Self::StandsStill),
            _ => None,
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Self::Runs => 0,
            Self::BeginsNothing => 1,
            Self::StandsStill => 2,
        }
    }
}

/// What came of the last image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Load {
    /// The device is like it.
    #[default]
    Done,
    /// The device does not stand still.
    NotNow,
    /// It is of no such device.
    Refused,
}

impl Load {
    const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            0 => Some(Self::Done),
            1 => Some(Self::NotNow),
            2 => Some(Self::Refused),
            _ => None,
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::NotNow => 1,
            Self::Refused => 2,
        }
    }
}

/// What a write to the window asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing more.
    Nothing,
    /// Others are to follow the mode.
    Mode,
    /// The device is to become like the image, if it can.
    Load,
}

/// The registers of the window.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) mode: Mode,
    /// What came of the last image.
    pub(super) load: Load,
    /// What was written to the image.
    pub(super) staged: Box<[u8; IMAGE_SIZE]>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            load: Load::default(),
            staged: Box::new([0; IMAGE_SIZE]),
        }
    }
}

impl Window {
    /// The value at `offset` of a device that is `busy` or not and has `image`.
    pub(super) fn read(
        &self,
        offset: u64,
        size: usize,
        busy: bool,
        image: impl FnOnce() -> [u8; IMAGE_SIZE],
    ) -> u64 {
        if !is_allowed(offset, size) {
            return u64::MAX;
        }
        if let Some(at) = place(offset, size) {
            let image = image();
            let bytes = image.get(at..at + size).unwrap_or_default();
            return number(bytes);
        }
        let value = match offset {
            _ if size != 4 => return u64::MAX,
            0x00 => SIGNATURE,
            0x04 => VERSION,
            0x08 => u32::try_from(IMAGE_SIZE).unwrap_or(0),
            MODE_AT => self.mode.bits(),
            0x10 if busy => STATUS_BUSY,
            0x10 => 0,
            LOAD_AT => self.load.bits(),
            _ => return u64::MAX,
        };
        value.into()
    }

    /// Writes at `offset`, as wide as `data` is.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Asked {
        let size = data.len();
        if !is_allowed(offset, size) {
            return Asked::Nothing;
        }
        if let Some(at) = place(offset, size) {
            if let Some(bytes) = self.staged.get_mut(at..at + size) {
                bytes.copy_from_slice(data);
            }
            return Asked::Nothing;
        }
        let value = u32::try_from(number(data)).ok();
        match (offset, value.filter(|_| size == 4)) {
            (MODE_AT, Some(bits)) => {
                let Some(mode) = Mode::from_bits(bits) else {
                    return Asked::Nothing;
                };
                self.mode = mode;
                Asked::Mode
            }
            (LOAD_AT, Some(_)) => Asked::Load,
            _ => Asked::Nothing,
        }
    }
}

fn is_allowed(offset: u64, size: usize) -> bool {
    matches!(size, 4 | 8) && offset.is_multiple_of(size as u64)
}

/// Where of the image an access is, if all of it is there.
fn place(offset: u64, size: usize) -> Option<usize> {
    let at = usize::try_from(offset.checked_sub(IMAGE_AT)?).ok()?;
    (at.checked_add(size)? <= IMAGE_SIZE).then_some(at)
}

fn number(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().rev();
    bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The window, as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WindowState {
    mode: u32,
    load: u32,
    staged: Bytes,
}

impl Window {
    pub(super) fn save(&self) -> WindowState {
        WindowState {
            mode: self.mode.bits(),
            load: self.load.bits(),
            staged: Bytes::new(&self.staged[..]),
        }
    }

    pub(super) fn restore(state: &WindowState) -> Result<Self, RestoreError> {
        let odd = |bits: u32| {
            let why = format_args!("there is no code {bits}");
            RestoreError::damaged("the window", why)
        };
        Ok(Self {
            mode: Mode::from_bits(state.mode).ok_or_else(|| odd(state.mode))?,
            load: Load::from_bits(state.load).ok_or_else(|| odd(state.load))?,
            staged: Box::new(state.staged.array("the window's image")?),
        })
    }
}
