//! From an interrupt request to its remapping entry, and on to the message that the platform delivers (section 5.1).

use crate::memory::TableMemory;
use crate::spec::fault_reason::FaultReason;
use crate::spec::irte::{IRTE_SIZE, Irte, RequestAddress};
use crate::spec::registers::InterruptTableAddress;
use crate::unit::events::InterruptMessage;

/// What the interrupt remapping commands have latched. Its lock is a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::unit) struct Remapping {
    /// IRES.
    pub(in crate::unit) enabled: bool,
    /// CFIS.
    pub(in crate::unit) compatibility: bool,
    /// IRTA, as SIRTP latched it.
    pub(in crate::unit) table: InterruptTableAddress,
}

/// A request that is to be blocked, with what the fault log wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::unit) struct Refusal {
    pub(in crate::unit) reason: FaultReason,
    /// The index that the fault record reports.
    pub(in crate::unit) index: u16,
    /// Whether the fault is to be recorded.
    pub(in crate::unit) record: bool,
}

impl Refusal {
    const fn new(reason: FaultReason, index: u16) -> Self {
        Self {
            reason,
            index,
            record: true,
        }
    }
}

/// How an interrupt gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::unit) enum Resolved {
    /// As it came.
    Unchanged(InterruptMessage),
    /// As its entry says.
    Remapped(InterruptMessage),
}

impl Resolved {
    pub(in crate::unit) const fn message(self) -> InterruptMessage {
        match self {
            Self::Unchanged(message) | Self::Remapped(message) => message,
        }
    }
}

impl Remapping {
    /// Resolves a request of `source`; `host_address_width` bounds where entries can be.
    pub(in crate::unit) fn resolve<T: TableMemory + ?Sized>(
        &self,
        memory: &T,
        host_address_width: u8,
        source: u16,
        request: InterruptMessage,
    ) -> Result<Resolved, Refusal> {
        if !self.enabled {
            return Ok(Resolved::Unchanged(request));
        }
        let address = match u32::try_from(request.address) {
            Ok(address) if address >> 20 == 0xFEE => RequestAddress::from_bits(address),
            // Not the interrupt address range, so no interrupt, and nothing that section 5.1 would record.
            _ => {
                return Err(Refusal {
                    record: false,
                    ..Refusal::new(FaultReason::NotAnInterrupt, 0)
                });
            }
        };
        if !address.remappable() {
            return if self.table.extended() || !self.compatibility {
                Err(Refusal::new(FaultReason::CompatibilityFormatBlocked, 0))
            } else {
                Ok(Resolved::Unchanged(request))
            };
        }
        let index = index(address, request.data)?;
        let entry = self.fetch(memory, host_address_width, index)?;
        // The index fits: no table has more than 65536 entries.
        let index = low_half(index);
        let refuse = |reason| Refusal {
            record: !entry.fault_disable(),
            ..Refusal::new(reason, index)
        };
        if !entry.present() {
            return Err(refuse(FaultReason::InterruptEntryNotPresent));
        }
        // An undefined SVT is a matter of the format; otherwise the source comes first.
        if entry.verification() != 0b11 && !entry.accepts(source) {
            return Err(refuse(FaultReason::InterruptSourceMismatch));
        }
        if !entry.is_valid(self.table.extended()) {
            return Err(refuse(FaultReason::InterruptEntryReserved));
        }
        Ok(Resolved::Remapped(message(entry, self.table.extended())))
    }

    fn fetch<T: TableMemory + ?Sized>(
        &self,
        memory: &T,
        host_address_width: u8,
        index: u32,
    ) -> Result<Irte, Refusal> {
        let beyond = Refusal::new(FaultReason::InterruptIndexBeyondTable, low_half(index));
        if index >= self.table.entries() {
            return Err(beyond);
        }
        let address = self
            .table
            .table()
            .checked_add(u64::from(index) * IRTE_SIZE)
            .filter(|address| address >> host_address_width == 0)
            .ok_or(beyond)?;
        let [low, high] = memory
            .read_words::<2>(address)
            .map_err(|_| Refusal::new(FaultReason::InterruptEntryFetch, low_half(index)))?;
        Ok(Irte::from_bits(u128::from(high) << 64 | u128::from(low)))
    }
}

impl InterruptMessage {
    /// The index of the remapping entry that this request names (section 5.1.3), for whoever keeps what
    /// [`Unit::resolve_interrupt`](super::Unit::resolve_interrupt) answered and has to know when that is void. It may be
    /// beyond every table. `None` in compatibility format, or if this is no interrupt request.
    pub fn entry_index(self) -> Option<u32> {
        let address = u32::try_from(self.address).ok()?;
        let address = RequestAddress::from_bits(address);
        if self.address >> 20 != 0xFEE || !address.remappable() {
            return None;
        }
        index(address, self.data).ok()
    }
}

/// The index that a remappable request names (section 5.1.3). It may exceed every table.
fn index(address: RequestAddress, data: u32) -> Result<u32, Refusal> {
    let handle = u32::from(address.handle());
    if !address.subhandle_valid() {
        return Ok(handle);
    }
    if data >> 16 != 0 {
        return Err(Refusal::new(FaultReason::InterruptRequestReserved, 0));
    }
    Ok(handle + data)
}

/// The message that an entry describes.
fn message(entry: Irte, extended: bool) -> InterruptMessage {
    let destination = entry.apic_id(extended);
    let low = 0xFEE0_0000
        | (destination & 0xFF) << 12
        | u32::from(entry.redirection_hint()) << 3
        | u32::from(entry.logical()) << 2;
    // Level-triggered messages are always asserting ones.
    let level = if entry.level() { 0xC000 } else { 0 };
    InterruptMessage {
        address: u64::from(destination & 0xFFFF_FF00) << 32 | u64::from(low),
        data: u32::from(entry.vector()) | u32::from(entry.delivery_mode()) << 8 | level,
    }
}

fn low_half(index: u32) -> u16 {
    let [a, b, ..] = index.to_le_bytes();
    u16::from_le_bytes([a, b])
}
