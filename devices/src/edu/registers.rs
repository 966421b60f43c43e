//! The register file of the edu device in BAR 0. A write answers with what the device is to do.

use serde::{Deserialize, Serialize};
use state::RestoreError;

use super::extension::{EduFeatures, Extension, ExtensionState, Manner};

/// "Identification": major version 1, minor version 0, 0xed.
const IDENTIFICATION: u32 = 0x0100_00ed;

const ID: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
const INTERRUPT_RAISE: u64 = 0x60;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
/// From here on 8-byte accesses are allowed as well.
const FIRST_WIDE: u64 = 0x80;

const STATUS_COMPUTING: u32 = 0x01;
const STATUS_INTERRUPT: u32 = 0x80;

const COMMAND_START: u64 = 0x01;
const COMMAND_TO_MEMORY: u64 = 0x02;
const COMMAND_INTERRUPT: u64 = 0x04;

/// Interrupt status bits of a finished factorial and a finished copy.
pub(super) const FACTORIAL_DONE: u32 = 0x001;
pub(super) const COPY_DONE: u32 = 0x100;

/// The device's view of its own buffer.
const BUFFER_ADDRESS: u64 = 0x4_0000;
/// Bytes of the buffer.
pub(super) const BUFFER_SIZE: usize = 4096;

/// Which way a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    FromMemory,
    ToMemory,
}

/// A DMA command inside the buffer: `offset + length` is at most [`BUFFER_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) direction: Direction,
    /// Address on the bus, not masked yet.
    pub(super) address: u64,
    /// Position in the buffer.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) length: usize,
    /// How its requests travel.
    pub(super) manner: Manner,
}

/// What a register write asks the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Factorial(u32),
    Copy(Copy),
    Raise(u32),
    Acknowledge,
    OutOfBounds,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    liveness: u32,
    factorial: u32,
    status: u32,
    interrupt_status: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    pub(super) extension: Extension,
}

impl Registers {
    pub(super) fn new(features: EduFeatures) -> Self {
        Self {
            extension: Extension::new(features),
            ..Self::default()
        }
    }

    /// The value at `offset`, which is not the extension's; ones for what is not there or has
    /// another size.
    pub(super) fn read(&self, offset: u64, size: usize) -> u64 {
        if !is_allowed(offset, size) {
            return u64::MAX;
        }
        match offset {
            ID => IDENTIFICATION.into(),
            LIVENESS => self.liveness.into(),
            FACTORIAL => self.factorial.into(),
            STATUS => self.status.into(),
            INTERRUPT_STATUS => self.interrupt_status.into(),
            DMA_SOURCE => self.source,
            DMA_DESTINATION => self.destination,
            DMA_COUNT => self.count,
            DMA_COMMAND => self.command,
            _ => u64::MAX,
        }
    }

    /// Writes the register at `offset`, as wide as `data` is.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if self.extension.has(offset) {
            self.extension.write(offset, data);
            return Action::None;
        }
        if !is_allowed(offset, data.len()) {
            return Action::None;
        }
        let value = data
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        if offset < FIRST_WIDE {
            return u32::try_from(value)
                .map_or(Action::None, |value| self.write_narrow(offset, value));
        }
        if self.command & COMMAND_START != 0 {
            // A copy is running: its registers stand still.
            return Action::None;
        }
        match offset {
            DMA_SOURCE => self.source = value,
            DMA_DESTINATION => self.destination = value,
            DMA_COUNT => self.count = value,
            DMA_COMMAND if value & COMMAND_START != 0 => return self.start(value),
            _ => {}
        }
        Action::None
    }

    fn write_narrow(&mut self, offset: u64, value: u32) -> Action {
        match offset {
            LIVENESS => self.liveness = !value,
            FACTORIAL if self.status & STATUS_COMPUTING == 0 => {
                self.factorial = value;
                self.status |= STATUS_COMPUTING;
                return Action::Factorial(value);
            }
            STATUS => self.status = self.status & !STATUS_INTERRUPT | value & STATUS_INTERRUPT,
            INTERRUPT_RAISE => return Action::Raise(value),
            INTERRUPT_ACKNOWLEDGE => {
                self.interrupt_status &= !value;
                return Action::Acknowledge;
            }
            _ => {}
        }
        Action::None
    }

    fn start(&mut self, command: u64) -> Action {
        let Some(copy) = self.copy(command) else {
            return Action::OutOfBounds;
        };
        self.command = command;
        Action::Copy(copy)
    }

    /// What `command` asks for; nothing if that leaves the buffer.
    fn copy(&self, command: u64) -> Option<Copy> {
        let (direction, own, address) = if command & COMMAND_TO_MEMORY == 0 {
            (Direction::FromMemory, self.destination, self.source)
        } else {
            (Direction::ToMemory, self.source, self.destination)
        };
        let offset = usize::try_from(own.checked_sub(BUFFER_ADDRESS)?).ok()?;
        let length = usize::try_from(self.count).ok()?;
        (offset.checked_add(length)? <= BUFFER_SIZE).then_some(Copy {
            direction,
            address,
            offset,
            length,
            manner: self.extension.manner(),
        })
    }

    /// What they say is to be computed, and to be copied. `None` if they say what they never do: a copy
    /// that leaves the buffer.
    pub(super) fn under_way(&self) -> Option<(Option<u32>, Option<Copy>)> {
        let copy = match self.is_copying() {
            true => Some(self.copy(self.command)?),
            false => None,
        };
        Some((self.is_computing().then_some(self.factorial), copy))
    }

    /// A factorial is finished. Returns the interrupt to raise.
    pub(super) fn finish_factorial(&mut self, value: u32) -> u32 {
        self.factorial = value;
        self.status &= !STATUS_COMPUTING;
        if self.status & STATUS_INTERRUPT != 0 {
            FACTORIAL_DONE
        } else {
            0
        }
    }

    /// A copy is finished. Returns the interrupt to raise.
    pub(super) fn finish_copy(&mut self) -> u32 {
        self.command &= !COMMAND_START;
        if self.command & COMMAND_INTERRUPT != 0 {
            COPY_DONE
        } else {
            0
        }
    }

    pub(super) fn raise(&mut self, bits: u32) {
        self.interrupt_status |= bits;
    }

    pub(super) fn interrupt_pending(&self) -> bool {
        self.interrupt_status != 0
    }
}

/// The registers, as they are saved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegistersState {
    pub(super) liveness: u32,
    pub(super) factorial: u32,
    pub(super) status: u32,
    pub(super) interrupt_status: u32,
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) count: u64,
    pub(super) command: u64,
    pub(super) extension: ExtensionState,
}

impl Registers {
    pub(super) fn save(&self) -> RegistersState {
        RegistersState {
            liveness: self.liveness,
            factorial: self.factorial,
            status: self.status,
            interrupt_status: self.interrupt_status,
            source: self.source,
            destination: self.destination,
            count: self.count,
            command: self.command,
            extension: self.extension.save(),
        }
    }

    pub(super) fn restore(&mut self, state: &RegistersState) -> Result<(), RestoreError> {
        let odd = state.status & !(STATUS_COMPUTING | STATUS_INTERRUPT);
        if odd != 0 {
            let why = format_args!("there are no bits {odd:#x}");
            return Err(RestoreError::damaged("the status register", why));
        }
        self.extension.restore(&state.extension)?;
        self.liveness = state.liveness;
        self.factorial = state.factorial;
        self.status = state.status;
        self.interrupt_status = state.interrupt_status;
        self.source = state.source;
        self.destination = state.destination;
        self.count = state.count;
        self.command = state.command;
        Ok(())
    }

    pub(super) fn is_computing(&self) -> bool {
        self.status & STATUS_COMPUTING != 0
    }

    pub(super) fn is_copying(&self) -> bool {
        self.command & COMMAND_START != 0
    }
}

fn is_allowed(offset: u64, size: usize) -> bool {
    size == 4 || size == 8 && offset >= FIRST_WIDE
}

/// `value!` in 32 bits. The product of 34 and more factors is a multiple of 2 to the 32nd.
pub(super) fn factorial(value: u32) -> u32 {
    (1..=value.min(34)).fold(1, u32::wrapping_mul)
}
