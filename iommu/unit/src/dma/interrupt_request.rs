//! Interrupt requests that a device makes by DMA: writes of a dword to the interrupt address range
//! (sec. 3.14 and 5.1).

use std::ops::Deref;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::port::DmaPort;
use super::transaction::DmaTransaction;
use crate::translate::{RequestKind, is_interrupt_range};

/// Takes the interrupt requests of one requester: address and data of the write.
///
/// It is called within a DMA transaction: it takes leaf locks only, and what
/// [`Unit::remap_with`](crate::Unit::remap_with) takes, which is for it to call.
pub type InterruptRequestSink = Arc<dyn Fn(u64, u32) + Send + Sync>;

impl<M> DmaPort<M> {
    /// The same port, whose [interrupt requests](DmaTransaction::write_request) go to `sink`. Without one, they are
    /// writes as any other: to no memory, or a fault (29h).
    #[must_use]
    pub fn with_interrupt_requests(mut self, sink: InterruptRequestSink) -> Self {
        self.interrupts = Some(sink);
        self
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> DmaTransaction<'_, M> {
    /// Writes `bytes` as one request of the bus, which they fit into: 4 aligned bytes for 0xFEEx_xxxx,
    /// untranslated and without PASID, are an interrupt request (section 3.14), whether translation is on
    /// or off and whether there is a unit or not. All others are
    /// [`Bytes::write_slice`], which by itself never makes an interrupt request.
    ///
    /// An interrupt request that is blocked is dropped without an error, as it is on the bus.
    ///
    /// # Errors
    /// As [`Bytes::write_slice`].
    pub fn write_request(
        &self,
        bytes: &[u8],
        address: GuestAddress,
    ) -> Result<(), GuestMemoryError> {
        match (self.interrupts_at(address.0), bytes.try_into()) {
            (Some(sink), Ok(data)) => {
                sink(address.0, u32::from_le_bytes(data));
                Ok(())
            }
            _ => self.write_slice(bytes, address),
        }
    }

    /// Who takes an interrupt request for `address`, if a dword for it is one.
    fn interrupts_at(&self, address: u64) -> Option<&InterruptRequestSink> {
        let requests = self.is_open()
            && self.pasid().is_none()
            && self.kind() == RequestKind::Untranslated
            && is_interrupt_range(address)
            && address.is_multiple_of(4);
        self.port().interrupts.as_ref().filter(|_| requests)
    }
}

#[cfg(test)]
mod interrupt_request_test;
