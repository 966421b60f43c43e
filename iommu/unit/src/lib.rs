//! A software model of Intel VT-d, revision 5.10 of the architecture specification, for rust-vmm VMMs.
//!
//! * [`spec`] has the types of registers, table entries and descriptors;
//! * [`mod@unit`] is the device: register file, invalidation queue, faults, interrupt remapping, device-TLBs, page requests;
//! * [`translate`] walks the tables: legacy and scalable mode; first-stage, second-stage, nested and pass-through;
//! * [`dma`] is what an emulated device uses to reach guest memory through a unit;
//! * [`inspect`] shows what a unit is and does to people who look for a mistake.
//!
//! Which faults a unit gives, and how each is tested, is told by [`spec::fault_reason`]. `README.md` shows how a VMM uses all this,
//! and `examples/vmm` is one.
//!
//! The crate knows neither KVM nor a PCI bus.

#![forbid(unsafe_code)]

pub mod config;
pub mod dma;
pub mod inspect;
pub mod memory;
mod retention;
pub mod spec;
pub mod translate;
pub mod unit;

pub use config::{
    AddressWidth, ConfigError, Interrupts, Scalable, Stages, UnitConfig, WalkFeatures,
};
pub use dma::{AtsRefusal, AtsTranslation, DmaPort, DmaTransaction, DmaView};
pub use spec::device_tlb::{DeviceTlbInvalidation, DeviceTlbTarget};
pub use spec::ids::{Pasid, SourceId};
pub use spec::invalidation::Invalidation;
pub use spec::page_request::{PageRequest, PageResponse, ResponseCode};
pub use spec::registers::{Caps, REGISTER_WINDOW_SIZE};
pub use unit::{
    DeviceTlb, EventSink, InterruptBlocked, InterruptEntryObserver, InterruptMessage,
    PageRequestRefusal, StateError, Statistics, TranslationObserver, Unit, UnitState,
};

/// So that the examples of the README are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
