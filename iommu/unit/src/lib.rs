//! A software model of Intel VT-d, revision 5.10 of the architecture specification, for rust-vmm VMMs.
//!
//! All public names are here in one list, but for two modules:
//! * [`spec`] has the types of registers, table entries and descriptors;
//! * [`inspect`] shows what a unit is and does to people who look for a mistake.
//!
//! | purpose | names |
//! |---|---|
//! | making a unit | [`UnitConfig`], [`Scalable`], [`Stages`], [`WalkFeatures`], [`Interrupts`], [`AddressWidth`], [`ConfigError`] |
//! | the unit in the machine | [`Unit`], [`InlineBudget`], [`REGISTER_WINDOW_SIZE`], [`EventSink`], [`Statistics`], [`Durations`] |
//! | saving and restoring | [`UnitState`], [`RegisterWord`], [`StateError`] |
//! | requesters | [`SourceId`], [`Pasid`] |
//! | DMA of devices | [`DmaPort`], [`DmaView`], [`DmaTransaction`], [`DmaSlices`], [`PhysicalRange`], [`DmaBlocked`] |
//! | interrupts of devices | [`InterruptMessage`], [`InterruptBlocked`], [`InterruptEntryObserver`] |
//! | device-TLBs (PCIe ATS) | [`DeviceTlb`], [`DeviceTlbInvalidation`], [`DeviceTlbTarget`], [`AtsTranslation`], [`AtsRefusal`] |
//! | page requests (PCIe PRI) | [`PageRequest`], [`PageRequestRefusal`], [`PageResponse`], [`ResponseCode`] |
//! | keeping translations outside of the unit | [`TranslationObserver`], [`Invalidation`] |
//! | reading the guest's tables | [`GuestTables`], [`TableMemory`], [`MemoryError`], [`Latched`], [`RootPointer`], [`Resolved`], [`Binding`], [`FirstStage`], [`SecondStage`], [`PasidDirectory`] |
//! | translating one request | [`Request`], [`RequestKind`], [`Access`], [`Translation`], [`TranslationType`], [`Fault`] |
//!
//! Which faults a unit gives, and how each is tested, is told by [`spec::fault_reason`]. `README.md` shows how a VMM uses
//! all this, and `examples/vmm` is one.
//!
//! The crate knows neither KVM nor a PCI bus.

#![forbid(unsafe_code)]

mod config;
mod dma;
pub mod inspect;
mod memory;
mod retention;
pub mod spec;
mod translate;
mod unit;

pub use config::{
    AddressWidth, ConfigError, Interrupts, Scalable, Stages, UnitConfig, WalkFeatures,
};
pub use dma::{
    AtsRefusal, AtsTranslation, DmaPin, DmaPort, DmaSlices, DmaTransaction, DmaView,
    HeldTranslation, HeldTranslations, InterruptRequestSink, Pinned,
};
pub use memory::{MemoryError, TableMemory};
pub use spec::device_tlb::{DeviceTlbInvalidation, DeviceTlbTarget};
pub use spec::ids::{Pasid, SourceId};
pub use spec::invalidation::Invalidation;
pub use spec::page_request::{PageRequest, PageResponse, ResponseCode};
pub use translate::{
    Access, Binding, Fault, FirstStage, GuestTables, Latched, PasidDirectory, Request, RequestKind,
    Resolved, RootPointer, SecondStage, Translation, TranslationType,
};
#[cfg(feature = "vm-memory-iommu")]
pub use unit::UnitIommu;
pub use unit::{
    DeviceTlb, DmaBlocked, Durations, EventSink, InlineBudget, InterruptBlocked,
    InterruptEntryObserver, InterruptMessage, Interruption, PageRequestRefusal, Patience,
    PhysicalRange, REGISTER_WINDOW_SIZE, RegisterWord, StateError, Statistics, TranslationObserver,
    Unfinished, Unit, UnitState,
};

// For `intel-vtd-host`, and what signatures name but no one else has to.
#[doc(hidden)]
pub use {
    dma::{DmaCounts, DmaState, DrainScope, FaultSink},
    memory::Nearby,
    translate::{NoCaches, Stage, StructureCaches, UpperEntry},
    unit::Limiter,
};

/// Fixtures of this crate's tests, for those of `intel-vtd-host`. They change without notice.
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing {
    pub use crate::translate::testing as tables;
    pub use crate::unit::testing as bench;
}

/// So that the examples of the README are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
