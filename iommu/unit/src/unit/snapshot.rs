//! The state of a unit as a value, to keep in a snapshot or to send to another host (all of section 11.4, and what commands
//! have latched beside the registers).
//!
//! What is not in it: translation caches and device-TLBs, which start empty; counters, which are the host's; and the tables
//! and the queues, which are in guest memory.

use std::ops::Deref;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::budget::{Clock, Later};
use super::execution::Execution;
use super::interrupt_remapping::Remapping;
use super::register_file::RegisterFile;
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::{
    FAULT_RECORD_COUNT, GlobalCommand, InterruptTableAddress, RootTableAddress, offset,
};
use crate::translate::{Latched, RootPointer};

/// The first register that can change: VER, CAP and ECAP lie before it.
const FIRST: u16 = offset::GCMD;

/// A 32-bit word of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterWord {
    /// Offset in the register window; a multiple of 4.
    pub offset: u16,
    /// Value, with the bits that software cannot read.
    pub value: u32,
}

/// The state of a unit. See [`Unit::save`].
///
/// # Versions
/// [`UnitState::VERSION`] goes up whenever what a state holds, or what it means, changes. A unit takes states
/// of its own version and refuses all others, already when they are deserialized: `version` comes first, so
/// that a reader stops there. The changelog says which release began which version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UnitState {
    /// [`UnitState::VERSION`] of the release that saved it.
    #[serde(deserialize_with = "known_version")]
    pub version: u32,
    /// CAP: what the unit was, as another one does not continue its work.
    pub capability: u64,
    /// ECAP.
    pub extended_capability: u64,
    /// HAW: width in bits of guest-physical addresses.
    pub host_address_width: u8,
    /// All registers.
    pub registers: Vec<RegisterWord>,
    /// RTADDR as Set Root Table Pointer latched it; the register may have been written since.
    pub root_table: u64,
    /// IRTA as Set Interrupt Remap Table Pointer latched it.
    pub interrupt_table: u64,
    /// The fault record that the next fault goes to.
    pub next_fault_record: u8,
}

impl UnitState {
    /// The version that this release writes, and the only one that it reads.
    pub const VERSION: u32 = 1;
}

fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(deserializer)?;
    check_version(version).map_err(D::Error::custom)?;
    Ok(version)
}

const fn check_version(version: u32) -> Result<(), StateError> {
    match version {
        UnitState::VERSION => Ok(()),
        other => Err(StateError::Version(other)),
    }
}

/// Why a unit gives no state, or does not take one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// Another release saved it.
    #[error(
        "the state has version {0}, and this release reads version {version} only: restore it with the release that saved it",
        version = UnitState::VERSION
    )]
    Version(u32),
    /// It is of a unit with other capabilities.
    #[error(
        "the state is of a unit with {field} {saved:#x}, and this one has {own:#x}: make it with the same configuration"
    )]
    OtherUnit {
        /// CAP, ECAP or the address width.
        field: &'static str,
        /// In the state.
        saved: u64,
        /// Here.
        own: u64,
    },
    /// It has a word of no register, or has one twice.
    #[error(
        "the state has a register at {0:#x}, where this unit has none left to set: it is damaged"
    )]
    Register(u16),
    /// A register is missing.
    #[error("the state has no register at {0:#x}: it is damaged")]
    Missing(u16),
    /// A device uses pages that the guest has taken away from it.
    #[error("a device still uses pages that the guest has invalidated: stop it, and save then")]
    Pinned,
    /// There is no such fault record.
    #[error("the state's next fault record is {0}, of {FAULT_RECORD_COUNT}: it is damaged")]
    FaultRecord(u8),
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// The state of the unit, to be given to [`restore`](Self::restore) of one with the same configuration.
    ///
    /// vCPUs and devices are to be stopped, and so is [`run_backlog`](Self::run_backlog): what they do meanwhile may be
    /// in the state or not, and guest memory has to be of the same moment. Commands that registers have been written for are complete in the
    /// state. Of the invalidation queue, what was begun is; the rest stays in it, and the unit that restores the state goes on there.
    ///
    /// # Errors
    /// [`StateError::Pinned`]: a device that is not stopped has pages [pinned](crate::DmaTransaction::pin) that an invalidation
    /// takes away. It was waited for half a second. The unit goes on.
    pub fn save(&self) -> Result<UnitState, StateError> {
        let state = self.as_executor(|execution| -> Result<_, Later> {
            self.finish_commands(execution)?;
            Ok(self.state(execution))
        });
        state.map_err(|Later| {
            // It is for the background to finish what was begun.
            self.wake_background();
            StateError::Pinned
        })
    }

    fn state(&self, execution: &Execution) -> UnitState {
        let mut registers: Vec<RegisterWord> = self.registers().file.words().collect();
        let next_fault_record = self.faults.save(&mut registers);
        registers.extend(self.page_queue().file().words());
        registers.sort_unstable_by_key(|word| word.offset);
        let root = RootTableAddress::new()
            .with_mode(execution.root.mode)
            .with_page(execution.root.address >> 12);
        UnitState {
            version: UnitState::VERSION,
            capability: self.caps.cap.into_bits(),
            extended_capability: self.caps.ecap.into_bits(),
            host_address_width: self.dma.gates().host_address_width,
            registers,
            root_table: root.into_bits(),
            interrupt_table: self.interrupt_table().into_bits(),
            next_fault_record,
        }
    }

    /// Continues the work of the unit whose state this is. Guest memory must have been restored before.
    ///
    /// Nothing that was translated before is in use any more when this returns, but for what device-TLBs keep: that is for
    /// their devices to forget. Observers are told that all has changed. No event is sent: those
    /// that were pending still are.
    ///
    /// # Errors
    /// The state does not fit; the unit is unchanged.
    pub fn restore(&self, state: &UnitState) -> Result<(), StateError> {
        self.check(state)?;
        self.as_executor(|execution| self.take_over(execution, state));
        if self.background.get().is_none() {
            self.work(Clock::default());
        }
        Ok(())
    }

    fn take_over(&self, execution: &mut Execution, state: &UnitState) {
        execution.reset();
        let status = {
            let mut registers = self.registers();
            registers.reset();
            registers.file.restore(&state.registers);
            // It goes on if it was at work.
            registers.ask_queue();
            GlobalCommand::from_bits(registers.file.get(offset::GSTS))
        };
        self.faults
            .restore(&state.registers, state.next_fault_record);
        self.page_queue().file_mut().restore(&state.registers);
        self.dma.forget(&Invalidation::All);
        let latched = Latched {
            enabled: status.te(),
            root: RootPointer::of(RootTableAddress::from_bits(state.root_table)),
        };
        let table = InterruptTableAddress::from_bits(state.interrupt_table);
        let remapping = Remapping {
            enabled: status.ire(),
            compatibility: status.cfi(),
            table,
        };
        self.latch_all(execution, latched, remapping);
        self.publish_status(status.into_bits());
    }

    fn interrupt_table(&self) -> InterruptTableAddress {
        self.remapping.read().table
    }

    fn check(&self, state: &UnitState) -> Result<(), StateError> {
        check_version(state.version)?;
        let width = self.dma.gates().host_address_width;
        let fields = [
            ("CAP", state.capability, self.caps.cap.into_bits()),
            (
                "ECAP",
                state.extended_capability,
                self.caps.ecap.into_bits(),
            ),
            (
                "a host address width of",
                u64::from(state.host_address_width),
                u64::from(width),
            ),
        ];
        if let Some(&(field, saved, own)) = fields.iter().find(|(_, saved, own)| saved != own) {
            return Err(StateError::OtherUnit { field, saved, own });
        }
        if state.next_fault_record >= FAULT_RECORD_COUNT {
            return Err(StateError::FaultRecord(state.next_fault_record));
        }
        let mut left = state.registers.iter().map(|word| word.offset);
        for own in self
            .as_executor(|execution| self.state(execution))
            .registers
        {
            match left.next() {
                Some(offset) if offset == own.offset => {}
                Some(offset) if offset < own.offset => return Err(StateError::Register(offset)),
                _ => return Err(StateError::Missing(own.offset)),
            }
        }
        left.next()
            .map_or(Ok(()), |offset| Err(StateError::Register(offset)))
    }
}

impl RegisterFile {
    /// All words of the file's registers that can change, with hidden bits.
    fn words(&self) -> impl Iterator<Item = RegisterWord> + '_ {
        let changing = self.offsets().filter(|offset| *offset >= FIRST);
        changing.map(|offset| RegisterWord {
            offset,
            value: self.get(offset),
        })
    }

    /// Sets the words of this file among `words`.
    fn restore(&mut self, words: &[RegisterWord]) {
        let own: Vec<u16> = self.words().map(|word| word.offset).collect();
        for word in words {
            if own.binary_search(&word.offset).is_ok() {
                self.set(word.offset, word.value);
            }
        }
    }
}

impl super::fault_reporter::FaultReporter {
    /// Adds the fault log's registers, and returns the record that is next.
    fn save(&self, registers: &mut Vec<RegisterWord>) -> u8 {
        self.with_log(|file, next| {
            registers.extend(file.words());
            *next
        })
    }

    fn restore(&self, registers: &[RegisterWord], next_record: u8) {
        self.with_log(|file, next| {
            file.restore(registers);
            *next = next_record;
        });
    }
}

#[cfg(test)]
mod snapshot_test;
