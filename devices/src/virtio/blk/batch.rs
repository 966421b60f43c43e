//! Requests by system calls that block: those that a queue has at a time, on its own thread.
//!
//! Reads of what the host has in memory are served first, and the host fetches the rest of them
//! from its storage together, while the first one is waited for. So a disk works on as many reads
//! as the driver has put into the queue, by one thread.

use std::io;

use super::call::Call;
use super::outcome::Outcome;
use super::pages::Pages;
use super::poll::Poll;
use super::request::{Request, Step};
use super::target::{Target, unsupported};
use crate::limit::LogLimit;
use crate::virtio::error::QueueError;
use crate::virtio::session::Session;

/// The most requests that are taken at a time.
const MOST: usize = 32;

/// Room for requests; reused, so that a batch allocates nothing once the largest has been seen.
#[derive(Default)]
pub(super) struct Batch {
    requests: Vec<Request>,
    pages: Pages,
    /// The file cannot tell whether a read would wait.
    always_waits: bool,
    poll: Poll,
    limit: LogLimit,
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
        let mut requests = std::mem::take(&mut self.requests);
        let served = self.serve_all(
            index,
            requests.get_mut(..taken).unwrap_or_default(),
            target,
            session,
            ending.is_ok(),
        );
        self.requests = requests;
        let left = taken - served?;
        // What came before broken rings is served.
        ending?;
        session.undo(index, u16::try_from(left).unwrap_or(0));
        Ok(taken != 0)
    }

    /// Serves requests, or the first of them, if the thread is to stop for a while and `may_leave`
    /// the rest. Returns how many.
    fn serve_all(
        &mut self,
        index: usize,
        requests: &mut [Request],
        target: &Target,
        session: &mut Session,
        may_leave: bool,
    ) -> Result<usize, QueueError> {
        // With nothing to be done meanwhile, it is shorter to wait at once.
        let may_wait = requests.len() <= 1;
        let mut waits = [false; MOST];
        let mut served = 0;
        for (request, waits) in requests.iter_mut().zip(&mut waits) {
            if may_leave && session.parking() {
                break;
            }
            *waits = !self.serve_one(index, request, target, session, may_wait)?;
            served += 1;
        }
        for (request, _) in requests.iter_mut().zip(waits).filter(|(_, waits)| *waits) {
            self.serve_one(index, request, target, session, true)?;
        }
        Ok(served)
    }

    /// Serves a request and returns it to the driver, unless it is a read that would wait and may
    /// not: then the host has begun to fetch what is to be read. Tells which.
    fn serve_one(
        &mut self,
        index: usize,
        request: &mut Request,
        target: &Target,
        session: &mut Session,
        may_wait: bool,
    ) -> Result<bool, QueueError> {
        request.swap_pages(&mut self.pages);
        let outcome = self.carry_out(request, target, session, may_wait);
        request.swap_pages(&mut self.pages);
        let Some(outcome) = outcome? else {
            return Ok(false);
        };
        let used = outcome.report(&request.chain, session, &mut self.limit)?;
        session.complete_all(index, [used])?;
        Ok(true)
    }

    /// Carries a request out, unless it is such a read.
    fn carry_out(
        &mut self,
        request: &mut Request,
        target: &Target,
        session: &mut Session,
        may_wait: bool,
    ) -> Result<Option<Outcome>, QueueError> {
        let mut step = request.begin(target, session)?;
        loop {
            match step {
                Step::Call(Call::Read { offset }) if !may_wait && !self.always_waits => {
                    match request.pages().read(&target.file, offset, libc::RWF_NOWAIT) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            // Not the rest of a long one: it has its turn, and the host its memory.
                            target.fetch(offset, request.pages().length());
                            request.release();
                            return Ok(None);
                        }
                        // To be made again.
                        Err(error) if unsupported(&error) => self.always_waits = true,
                        result => step = request.resume(session, result),
                    }
                }
                Step::Call(call) => {
                    let result = call.make(target, request.pages());
                    step = request.resume(session, result);
                }
                Step::End(outcome) => return Ok(Some(outcome)),
            }
        }
    }

    /// Takes requests, up to a bound. Returns how many, and why there are no more.
    fn take(&mut self, index: usize, session: &mut Session) -> (usize, Result<(), QueueError>) {
        for taken in 0..MOST {
            if session.parking() {
                return (taken, Ok(()));
            }
            if self.requests.len() == taken {
                self.requests.push(Request::default());
            }
            let Some(request) = self.requests.get_mut(taken) else {
                return (taken, Ok(()));
            };
            // Whoever has taken something comes back before it waits.
            let outcome = match taken {
                0 => self.poll.pop(index, &mut request.chain, session),
                _ => session.pop_more(index, &mut request.chain),
            };
            match outcome {
                Ok(true) => {}
                outcome => return (taken, outcome.map(|_| ())),
            }
        }
        (MOST, Ok(()))
    }
}

#[cfg(test)]
mod batch_test;
