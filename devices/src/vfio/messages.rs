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
use crate::{InterruptRoute, InterruptRoutes};

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
    route: Box<dyn InterruptRoute>,
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
        let mut changes = Vec::new();
        for (index, message) in (0..).zip(messages) {
            match vectors.add(index) {
                Ok(()) => changes.push((index, *message)),
                Err(error) => complain(index, &error),
            }
        }
        vectors.send(&changes, complain);
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

    /// What vectors send from now on; `None` holds the events of one back. A vector that was never
    /// to send anything uses no means; one for which there are none stays silent, and is reported
    /// to `complain`.
    pub(super) fn set(
        &mut self,
        messages: impl IntoIterator<Item = (u16, Option<MsiMessage>)>,
        complain: &mut dyn FnMut(u16, &MessageError),
    ) {
        let (mut changes, mut new) = (Vec::new(), Vec::new());
        for (vector, message) in messages {
            if let Some(known) = self.vectors.get(&vector) {
                if known.message != message {
                    changes.push((vector, message));
                }
                continue;
            }
            // MSI's were all made when it was enabled.
            if message.is_none() || self.kind == IrqKind::Msi {
                continue;
            }
            match self.add(vector) {
                Ok(()) => {
                    changes.push((vector, message));
                    new.push(vector);
                }
                Err(error) => complain(vector, &error),
            }
        }
        self.send(&changes, complain);
        // Neighbours together: the host takes a range.
        for range in new.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
            if range.len() > 1 && self.arm(range).is_ok() {
                continue;
            }
            for vector in range {
                if let Err(error) = self.arm(&[*vector]) {
                    self.vectors.remove(vector);
                    complain(*vector, &error);
                }
            }
        }
    }

    /// Whether the device has signalled `vector` while it was masked.
    pub(super) fn is_pending(&self, vector: u16) -> bool {
        self.vectors
            .get(&vector)
            .is_some_and(|vector| vector.message.is_none() && is_signalled(&vector.event))
    }

    /// Vectors that the device has signalled while they were masked.
    pub(super) fn pending(&self) -> Vec<u16> {
        let vectors = self.vectors.keys().copied();
        vectors.filter(|vector| self.is_pending(*vector)).collect()
    }

    /// Has `vector` be pending, as if the device had signalled it.
    pub(super) fn restore_pending(&mut self, vector: u16) -> Result<(), MessageError> {
        if !self.vectors.contains_key(&vector) {
            // MSI's were all made when it was enabled.
            if self.kind == IrqKind::Msi {
                return Err(MessageError::Limit(self.available));
            }
            self.add(vector)?;
            self.arm(&[vector])
                .inspect_err(|_| drop(self.vectors.remove(&vector)))?;
        }
        match self.vectors.get(&vector) {
            Some(known) => known.event.write(1).map_err(MessageError::Event),
            None => Ok(()),
        }
    }

    /// Makes the means of a vector, which sends nothing yet.
    fn add(&mut self, vector: u16) -> Result<(), MessageError> {
        if self.kind == IrqKind::Msix && u32::from(vector) >= self.available {
            return Err(MessageError::Limit(self.available));
        }
        let event = EventFd::new(EFD_NONBLOCK).map_err(MessageError::Event)?;
        let clone = event.try_clone().map_err(MessageError::Event)?;
        let route = self
            .routes
            .add(self.source, clone)
            .map_err(MessageError::Route)?;
        let new = Vector {
            event,
            route,
            message: None,
        };
        self.vectors.insert(vector, new);
        Ok(())
    }

    /// Has vectors that are there send other messages. Should it fail, they send nothing.
    fn send(
        &mut self,
        changes: &[(u16, Option<MsiMessage>)],
        complain: &mut dyn FnMut(u16, &MessageError),
    ) {
        let routes: Vec<_> = changes
            .iter()
            .filter_map(|(vector, message)| {
                Some((self.vectors.get(vector)?.route.number(), *message))
            })
            .collect();
        if routes.is_empty() {
            return;
        }
        let result = self.routes.set_messages(&routes);
        let result = result.map_err(MessageError::Route);
        for (vector, message) in changes {
            if let Some(known) = self.vectors.get_mut(vector) {
                known.message = message.filter(|_| result.is_ok());
            }
            if let Err(error) = &result {
                complain(*vector, error);
            }
        }
    }

    /// Has the device signal the events of `vectors`, which are neighbours.
    fn arm(&self, vectors: &[u16]) -> Result<(), MessageError> {
        let start = vectors.first().copied().unwrap_or(0);
        let events: Vec<_> = vectors
            .iter()
            .map(|vector| self.vectors.get(vector).map(|vector| &vector.event))
            .collect();
        match self.host.arm(self.kind, start.into(), &events) {
            Ok(Armed::All) => Ok(()),
            Ok(Armed::Only(available)) => Err(MessageError::Limit(available)),
            Err(error) => Err(MessageError::Arm(error)),
        }
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
