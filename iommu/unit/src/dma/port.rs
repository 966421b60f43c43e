//! The port of a device: how it reaches guest memory, behind a unit or behind none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::interrupt_request::InterruptRequestSink;
use super::shared::DmaState;
use crate::spec::ids::SourceId;

/// How a device reaches guest memory. Cheap to clone; shared by the threads of a device.
///
/// `M` is a handle on guest memory, such as `Arc<GuestMemoryMmap>`.
pub struct DmaPort<M> {
    pub(super) path: Path<M>,
    gate: Option<Arc<AtomicBool>>,
    pub(super) interrupts: Option<InterruptRequestSink>,
}

pub(super) enum Path<M> {
    Direct(M),
    Translated {
        state: Arc<DmaState<M>>,
        source: SourceId,
    },
}

impl<M> DmaPort<M> {
    /// A device behind no unit: its addresses are guest-physical.
    pub fn direct(memory: M) -> Self {
        Self {
            path: Path::Direct(memory),
            gate: None,
            interrupts: None,
        }
    }

    /// A device behind the unit that `state` is of, which presents itself as `source`; as
    /// [`Unit::port`](crate::Unit::port).
    pub fn behind(state: Arc<DmaState<M>>, source: SourceId) -> Self {
        Self {
            path: Path::Translated { state, source },
            gate: None,
            interrupts: None,
        }
    }

    /// The same port with a gate in front, such as the Bus Master Enable bit of a PCI function:
    /// while `enable` is false, every access fails, and no fault is reported as the request never
    /// leaves the device.
    ///
    /// A gate replaces an earlier one.
    #[must_use]
    pub fn gated(self, enable: Arc<AtomicBool>) -> Self {
        Self {
            gate: Some(enable),
            ..self
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.gate
            .as_ref()
            .is_none_or(|gate| gate.load(Ordering::Acquire))
    }

    pub(super) fn memory(&self) -> &M {
        match &self.path {
            Path::Direct(memory) => memory,
            Path::Translated { state, .. } => state.memory(),
        }
    }
}

impl<M: Clone> Clone for DmaPort<M> {
    fn clone(&self) -> Self {
        let path = match &self.path {
            Path::Direct(memory) => Path::Direct(memory.clone()),
            Path::Translated { state, source } => Path::Translated {
                state: Arc::clone(state),
                source: *source,
            },
        };
        Self {
            path,
            gate: self.gate.clone(),
            interrupts: self.interrupts.clone(),
        }
    }
}
