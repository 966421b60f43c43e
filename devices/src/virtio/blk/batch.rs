//! The requests that a queue has at a time.
//!
//! Reads of what the host has in memory are served first, and the host fetches the rest of them
//! from its storage together, while the first one is waited for. So a disk works on as many reads
//! as the driver has put into the queue, by one thread.

use super::request::{Request, Served, Waiting};
use super::target::Target;
use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;
use crate::virtio::session::Session;

/// The most requests that are taken at a time.
const MOST: usize = 32;

/// Room for requests; reused, so that a batch allocates nothing once the largest has been seen.
#[derive(Default)]
pub(super) struct Batch {
    chains: Vec<Chain>,
    request: Request,
}

impl Batch {
    /// Takes what is in queue `index`, up to a bound, and serves it. Tells whether there was
    /// anything.
    pub(super) fn serve(
        &mut self,
        index: usize,
        target: &Target,
        session: &mut Session,
    ) -> Result<bool, QueueError> {
        let (taken, ending) = self.take(index, session);
        let Self { chains, request } = self;
        let chains = chains.get(..taken).unwrap_or_default();
        // With nothing to be done meanwhile, it is shorter to wait at once.
        let first = if taken > 1 {
            Waiting::Refused
        } else {
            Waiting::Permitted
        };
        let mut left = [false; MOST];
        for (chain, is_left) in chains.iter().zip(&mut left) {
            *is_left = request.serve(index, chain, target, session, first)? == Served::Later;
        }
        for (chain, _) in chains.iter().zip(left).filter(|(_, is_left)| *is_left) {
            request.serve(index, chain, target, session, Waiting::Permitted)?;
        }
        // What came before broken rings is served.
        ending?;
        Ok(taken != 0)
    }

    /// Takes requests, up to a bound. Returns how many, and why there are no more.
    fn take(&mut self, index: usize, session: &mut Session) -> (usize, Result<(), QueueError>) {
        for taken in 0..MOST {
            if self.chains.len() == taken {
                self.chains.push(Chain::default());
            }
            let Some(chain) = self.chains.get_mut(taken) else {
                return (taken, Ok(()));
            };
            match session.pop(index, chain) {
                Ok(true) => {}
                outcome => return (taken, outcome.map(|_| ())),
            }
        }
        (MOST, Ok(()))
    }
}
