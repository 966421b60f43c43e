//! DMA of emulated devices: ports, views with an IOTLB each, transactions, ATS.
//!
//! A device is given a [`DmaPort`], which stands for its place behind a unit (or behind none). Each
//! worker thread of the device takes a [`DmaView`] of it, which has a translation cache of its own.
//! All access happens within a [`DmaTransaction`], which is a [`vm_memory::GuestMemory`]: so
//! whatever is generic over guest memory runs on it.
//!
//! A device that keeps translations of its own asks for them with [`DmaTransaction::translate`],
//! and uses them in transactions of [`DmaView::begin_translated`]; see
//! [`DeviceTlb`](crate::DeviceTlb).
//!
//! A transaction holds back the completion of the guest's invalidations. It is to be short: it is
//! never nested in another one of the same unit, and never spans a blocking call. What is read from
//! a file or a socket goes through a buffer, or straight into pages that the transaction has
//! [pinned](DmaTransaction::pin): these are held until the I/O is over. The one exception is what is
//! given to whoever [holds](DmaTransaction::grant) translations: that has to be in place before an
//! invalidation completes.

mod ats;
mod block;
mod drain;
mod drain_scope;
mod guest_memory;
mod held;
mod interrupt_request;
mod iotlb;
mod lookup;
mod pin;
mod pin_slot;
mod port;
mod shared;
mod slot;
mod transaction;
mod used;
mod view;

pub use ats::{AtsRefusal, AtsTranslation};
pub use drain_scope::DrainScope;
pub use guest_memory::DmaSlices;
pub use held::{HeldTranslation, HeldTranslations};
pub use interrupt_request::InterruptRequestSink;
pub use pin::{DmaPin, Pinned};
pub use port::DmaPort;
pub use shared::{DmaState, FaultSink};
pub use slot::DmaCounts;
pub use transaction::DmaTransaction;
pub use view::DmaView;

#[cfg(test)]
pub(crate) mod dma_test;
#[cfg(test)]
mod drain_test;
#[cfg(test)]
mod pin_test;
#[cfg(test)]
mod selective_drain_test;
#[cfg(test)]
mod speed_test;
