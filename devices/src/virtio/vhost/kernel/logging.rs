//! The log of what a device of the kernel's writes: what has to be told to it again when that begins and
//! ends.

use std::io;
use std::sync::Arc;

use vhost::VhostBackend as _;
use vhost::vhost_kern::vhost_binding::VHOST_F_LOG_ALL;

use super::{Engine, Kernel};
use crate::virtio::feature::mask;
use crate::virtio::vhost::backend::Rings;
use crate::virtio::vhost::error::io_error;
use crate::virtio::vhost::log::Bits;
use crate::virtio::vhost::sys;

/// What the kernel was told.
#[derive(Default)]
pub(super) struct Logging {
    /// Where it logs.
    pub(super) log: Option<Arc<Bits>>,
    /// Without that of the log, once there were some.
    pub(super) features: Option<u64>,
    /// The queues that were set up since.
    pub(super) queues: Vec<(u32, Rings)>,
}

impl<E: Engine> Kernel<E> {
    /// Tells the features.
    pub(super) fn choose(&self, logging: &Logging) -> io::Result<()> {
        let Some(features) = logging.features else {
            return Ok(());
        };
        let log = match logging.log {
            Some(_) => mask(&[VHOST_F_LOG_ALL]),
            None => 0,
        };
        self.set_features(features | log).map_err(io_error)
    }

    /// See [`Backend::set_log`](super::Backend::set_log).
    pub(super) fn log_to(&self, log: Option<&Arc<Bits>>) -> io::Result<()> {
        let mut logging = self.logging.lock();
        if let Some(log) = log {
            let there = self.get_features().map_err(io_error)?;
            if there & mask(&[VHOST_F_LOG_ALL]) == 0 {
                let why = format!("{} cannot log what it writes (VHOST_F_LOG_ALL)", E::NODE);
                return Err(io::Error::other(why));
            }
            let set = self.set_log_base(log.address(), None);
            set.map_err(io_error)?;
        }
        let before = std::mem::replace(&mut logging.log, log.cloned());
        let told = self.tell(&logging);
        if told.is_err() && log.is_none() {
            // It may still write there.
            logging.log = before;
        }
        told
    }

    /// The rings first: with the features the kernel checks that they are in the log.
    fn tell(&self, logging: &Logging) -> io::Result<()> {
        for (number, rings) in &logging.queues {
            sys::set_ring_addresses(self, *number, rings, logging.log.is_some())?;
        }
        self.choose(logging)
    }
}
