//! The beginning at the source: a moment in which it is found what machine there is, and, once somebody takes
//! it, another one in which nothing is written to memory, from which on what is written is followed.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::leave::Here;
use super::wire::Hello;
use crate::described::describe;
use crate::machine::HotPlugHold;
use crate::machine::claims::Claims;
use crate::memory::Memory;
use crate::memory::dirty::DirtyLog;
use crate::memory::pages::Pages;
use crate::memory::saved::Touched;
use crate::vcpu::Brake;

/// What machine there is.
pub(super) struct Found {
    pub(super) hello: Hello,
    /// How long saying the machine's state has taken.
    pub(super) saving: Duration,
    /// Nothing is plugged or removed while this is there.
    _hold: HotPlugHold,
}

/// What a migration needs of the machine.
pub(super) struct Begun {
    pub(super) memory: Memory,
    /// The file of a snapshot that memory came from.
    source: Option<Arc<File>>,
    pub(super) log: Arc<DirtyLog>,
    pub(super) claims: Arc<Claims>,
    pub(super) brake: Arc<Brake>,
}

/// Finds out what is to be sent.
///
/// # Errors
/// Why the guest cannot leave.
pub(super) fn find(here: &Here) -> Result<Found, String> {
    here.work(|machine| {
        machine.claims().are_known()?;
        let began = Instant::now();
        // What cannot be saved at the end is told at the beginning.
        let state = describe(machine, "")?;
        machine
            .writers()
            .check_host_devices()
            .map_err(|error| error.to_string())?;
        Ok(Found {
            hello: Hello {
                writer: state.writer,
                options: state.options,
                memory: state.memory.bytes,
                others: None,
            },
            saving: began.elapsed(),
            _hold: machine.hotplug().hold(),
        })
    })
}

/// Begins to follow what is written to memory. Connections of sockets rest from here on.
///
/// # Errors
/// The host cannot.
pub(super) fn begin(here: &Here) -> Result<Begun, String> {
    here.work(|machine| {
        let memory = Arc::clone(machine.memory());
        let log = machine
            .writers()
            .follow_all()
            .map_err(|error| format!("the host does not tell what the guest writes: {error}"))?;
        Ok(Begun {
            memory,
            source: machine.source().cloned(),
            log: Arc::new(log),
            claims: Arc::clone(machine.claims()),
            brake: Arc::clone(&machine.shared.brake),
        })
    })
}

impl Begun {
    /// What is to be sent first. The guest runs: what it touches meanwhile is logged.
    ///
    /// # Errors
    /// The host does not say.
    pub(super) fn touched(&self) -> Result<Pages, String> {
        let touched = Touched::new(&self.memory, self.source.as_deref()).pages();
        touched.map_err(|error| format!("the host does not tell what memory is in use: {error}"))
    }
}
