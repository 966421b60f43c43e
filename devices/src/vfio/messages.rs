//! The message-signalled interrupts of an assigned device: an event for each vector, which the
//! host's device signals and which the hypervisor turns into the guest's message by itself.
//!
//! A masked vector has a route without a message: what the device signals stays in its event, which
//! is the vector's pending bit, and is sent as soon as there is a message again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use pci::{Bdf, MsiMessage};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{Armed, HostDevice, IrqKind};
use super::platform::{InterruptRoute, InterruptRoutes};

/// Why a vector, or all of them, cannot interrupt.
#[derive(Debug, Error)]
pub(super) enum MessageError {
    #[error("no eventfd for it: {0}")]
    Event(io::Error),
    #[error("the hypervisor has no route for it: {0}")]
    Route(io::Error),
    #[error("VFIO does not arm it: {0}")]
    Arm(io::Error),
    #[error("the host has only {0} vectors for the device")]
    Limit(u32),
}

struct Vector {
    event: EventFd,
    route: Arc<dyn InterruptRoute>,
    /// What the route sends now.
    message: Option<MsiMessage>,
}

/// The vectors of a function while MSI or MSI-X is enabled. At most as many as the capability has.
pub(super) struct Messages {
    source: Bdf,
    kind: IrqKind,
    host: Arc<dyn HostDevice>,
    routes: Arc<dyn InterruptRoutes>,
    /// How many the host has.
    available: u32,
    vectors: BTreeMap<u16, Vector>,
}

impl Messages {
    /// Enables MSI-X with `count` vectors, none of which is armed yet.
    pub(super) fn msix(
        source: Bdf,
        host: &Arc<dyn HostDevice>,
        routes: &Arc<dyn InterruptRoutes>,
        count: u16,
    ) -> Result<Self, MessageError> {
        let kind = IrqKind::Msix;
        let dynamic = host.irqs(kind).is_ok_and(|irqs| irqs.dynamic);
        let mut available = u32::from(count);
        // A host that cannot add vectors later is asked for all of them now.
        let wanted = if dynamic { 1 } else { usize::from(count) };
        let nothing = vec![None; wanted];
        if let Armed::Only(fewer) = host.arm(kind, 0, &nothing).map_err(MessageError::Arm)? {
            let fewer = fewer.min(available);
            if fewer == 0 {
                return Err(MessageError::Limit(0));
            }
            let fewer_entries = usize::try_from(fewer).unwrap_or(0);
            let nothing = nothing.get(..fewer_entries).unwrap_or_default();
            match host.arm(kind, 0, nothing).map_err(MessageError::Arm)? {
                Armed::All => available = fewer,
                Armed::Only(fewer) => return Err(MessageError::Limit(fewer)),
            }
        }
        Ok(Self {
            source,
            kind,
            host: Arc::clone(host),
            routes: Arc::clone(routes),
            available,
            vectors: BTreeMap::new(),
        })
    }

    /// Enables MSI with a vector for each of `messages` (a power of two of them). Vectors for which
    /// there are no means stay silent, and are reported to `complain`.
    pub(super) fn msi(
        source: Bdf,
        host: &Arc<dyn HostDevice>,
        routes: &Arc<dyn InterruptRoutes>,
        messages: &[Option<MsiMessage>],
        complain: &mut dyn FnMut(u16, &MessageError),
    ) -> Result<Self, MessageError> {
        let mut vectors = Self {
            source,
            kind: IrqKind::Msi,
            host: Arc::clone(host),
            routes: Arc::clone(routes),
            available: 0,
            vectors: BTreeMap::new(),
        };
        for (index, message) in (0..).zip(messages) {
            match vectors.vector(*message) {
                Ok(vector) => drop(vectors.vectors.insert(index, vector)),
                Err(error) => complain(index, &error),
            }
        }
        vectors.available = u32::try_from(messages.len()).unwrap_or(0);
        loop {
            let events: Vec<_> = (0..vectors.available)
                .map(|index| {
                    let vector = vectors.vectors.get(&u16::try_from(index).ok()?);
                    vector.map(|vector| &vector.event)
                })
                .collect();
            match host
                .arm(IrqKind::Msi, 0, &events)
                .map_err(MessageError::Arm)?
            {
                Armed::All => return Ok(vectors),
                // The number of vectors is a power of two, and gets smaller each time.
                Armed::Only(fewer) if fewer > 0 && fewer < vectors.available => {
                    let fewer = 1 << fewer.ilog2();
                    vectors.available = fewer;
                    let first = u16::try_from(fewer).unwrap_or(u16::MAX);
                    drop(vectors.vectors.split_off(&first));
                    complain(first, &MessageError::Limit(fewer));
                }
                Armed::Only(fewer) => return Err(MessageError::Limit(fewer)),
            }
        }
    }

    /// What `vector` sends from now on; `None` holds its events back. A vector that was never to
    /// send anything uses no means.
    pub(super) fn set(
        &mut self,
        vector: u16,
        message: Option<MsiMessage>,
    ) -> Result<(), MessageError> {
        if let Some(known) = self.vectors.get_mut(&vector) {
            if known.message != message {
                // Should it fail, nothing is sent.
                known.message = None;
                known
                    .route
                    .set_message(message)
                    .map_err(MessageError::Route)?;
                known.message = message;
            }
            return Ok(());
        }
        // MSI's were all made when it was enabled.
        if message.is_none() || self.kind == IrqKind::Msi {
            return Ok(());
        }
        if u32::from(vector) >= self.available {
            return Err(MessageError::Limit(self.available));
        }
        let new = self.vector(message)?;
        let start = u32::from(vector);
        match self.host.arm(self.kind, start, &[Some(&new.event)]) {
            Ok(Armed::All) => {
                self.vectors.insert(vector, new);
                Ok(())
            }
            Ok(Armed::Only(available)) => Err(MessageError::Limit(available)),
            Err(error) => Err(MessageError::Arm(error)),
        }
    }

    /// Whether the device has signalled `vector` while it was masked.
    pub(super) fn is_pending(&self, vector: u16) -> bool {
        self.vectors
            .get(&vector)
            .is_some_and(|vector| vector.message.is_none() && is_signalled(&vector.event))
    }

    fn vector(&self, message: Option<MsiMessage>) -> Result<Vector, MessageError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(MessageError::Event)?;
        let clone = event.try_clone().map_err(MessageError::Event)?;
        let route = self
            .routes
            .add(self.source, clone)
            .map_err(MessageError::Route)?;
        if message.is_some() {
            route.set_message(message).map_err(MessageError::Route)?;
        }
        Ok(Vector {
            event,
            route,
            message,
        })
    }
}

impl Drop for Messages {
    /// The device first, so that nothing is signalled any more when the routes go away.
    fn drop(&mut self) {
        if let Err(error) = self.host.disarm(self.kind) {
            log::debug!(
                "{}: {:?} is not turned off: {error}",
                self.host.name(),
                self.kind
            );
        }
    }
}

/// Whether `event` was signalled and nobody has taken that yet. Nobody else reads the events of a
/// vector without a message; there is no safe way to look at one, so what was in it is put back.
fn is_signalled(event: &EventFd) -> bool {
    event.read().is_ok_and(|count| event.write(count).is_ok())
}

#[cfg(test)]
mod messages_test;
