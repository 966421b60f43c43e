//! Requests by io_uring: those of a queue are under way at the same time, and end in any order.
//!
//! A flush covers the writes that were returned before the driver sent it (section 5.2.6.2): these
//! have ended. For others it makes no order, and holds none of them up.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::call::Call;
use super::poll::Poll;
use super::request::{Request, Step};
use super::target::Target;
use super::uring::Uring;
use crate::limit::LogLimit;
use crate::virtio::error::QueueError;
use crate::virtio::session::{Progress, Session};

/// The requests of a queue.
pub(super) struct Asynchronous {
    target: Arc<Target>,
    uring: Uring,
    /// Room for requests.
    idle: Vec<Request>,
    /// What is to be handed over.
    begun: VecDeque<(Request, Call)>,
    /// What is to be returned to the driver: names, and bytes written.
    used: Vec<(u16, u32)>,
    /// The rings are broken. What came before that is served first.
    broken: Option<QueueError>,
    poll: Poll,
    limit: LogLimit,
}

impl Asynchronous {
    pub(super) fn new(target: &Arc<Target>, uring: Uring) -> Self {
        Self {
            target: Arc::clone(target),
            uring,
            idle: Vec::new(),
            begun: VecDeque::new(),
            used: Vec::new(),
            broken: None,
            poll: Poll::default(),
            limit: LogLimit::default(),
        }
    }

    /// What to wait for: then there is something to be [served](Self::serve).
    pub(super) fn descriptor(&self) -> RawFd {
        self.uring.descriptor()
    }

    /// Whether requests have been taken that have not ended.
    pub(super) fn in_flight(&self) -> bool {
        !self.uring.is_empty()
    }

    /// Goes on with the requests of queue `index` that a call was made for, and takes new ones, until
    /// there is nothing to be done at once. Takes none for a thread that is to stop for a while.
    pub(super) fn serve(
        &mut self,
        index: usize,
        session: &mut Session,
    ) -> Result<Progress, QueueError> {
        if session.parking() {
            self.step(index, session)?;
            return Ok(Progress::Idle);
        }
        session.turn(index, |session| self.step(index, session))
    }

    /// The same, for an event that does not come again by itself.
    pub(super) fn serve_event(
        &mut self,
        index: usize,
        session: &mut Session,
    ) -> Result<(), QueueError> {
        match self.serve(index, session)? {
            Progress::Idle => Ok(()),
            Progress::More => self.uring.signal().map_err(refused),
        }
    }

    /// Gives up what is under way. Nothing accesses guest memory for it afterwards.
    pub(super) fn clear(&mut self) {
        self.uring.clear();
        self.used.clear();
        self.begun.clear();
        self.broken = None;
    }

    /// Tells whether there was anything to be done.
    fn step(&mut self, index: usize, session: &mut Session) -> Result<bool, QueueError> {
        let mut was_something = false;
        while let Some((mut request, call, result)) = self.uring.finished() {
            was_something = true;
            let result = match result {
                Err(error) if was_not_made(&error) && !session.stopping() => {
                    call.make(&self.target, request.pages())
                }
                result => result,
            };
            let step = request.resume(session, result);
            self.go_on(request, step, session);
        }
        was_something |= self.take(index, session, was_something);
        let begun = self.begin(session);
        if !self.used.is_empty() {
            session.complete_all(index, self.used.drain(..))?;
        }
        begun?;
        if self.uring.is_empty()
            && let Some(error) = self.broken.take()
        {
            return Err(error);
        }
        Ok(was_something)
    }

    /// Takes what is in the queue, as far as there is room. Tells whether there was anything. Who
    /// `comes_back` looks at the queue again before it waits.
    fn take(&mut self, index: usize, session: &mut Session, mut comes_back: bool) -> bool {
        let mut was_something = false;
        for _ in self.begun.len()..self.uring.room() {
            if self.broken.is_some() || session.parking() {
                break;
            }
            let mut request = self.idle.pop().unwrap_or_default();
            let chain = &mut request.chain;
            let popped = if comes_back {
                session.pop_more(index, chain)
            } else if self.uring.is_empty() {
                self.poll.pop(index, chain, session)
            } else {
                session.pop(index, chain)
            };
            let begun = match popped {
                Ok(true) => request.begin(&self.target, session),
                Ok(false) => {
                    self.idle.push(request);
                    break;
                }
                Err(error) => Err(error),
            };
            match begun {
                Ok(step) => self.go_on(request, step, session),
                Err(error) => self.broken = Some(error),
            }
            was_something = true;
            comes_back = true;
        }
        was_something
    }

    /// Notes what is next for a request.
    fn go_on(&mut self, request: Request, step: Step, session: &mut Session) {
        let outcome = match step {
            Step::Call(call) => return self.begun.push_back((request, call)),
            Step::End(outcome) => outcome,
        };
        match outcome.report(&request.chain, session, &mut self.limit) {
            Ok(used) => self.used.push(used),
            Err(error) => self.broken = self.broken.take().or(Some(error)),
        }
        self.idle.push(request);
    }

    /// Has the calls made that are next.
    fn begin(&mut self, session: &mut Session) -> Result<(), QueueError> {
        // To hand a write over takes longer than to make it, as a rule; so that is not done with one
        // that is alone.
        let mut is_alone = self.uring.is_empty()
            && self.begun.len() == 1
            && matches!(self.begun.front(), Some((_, Call::Write { .. })));
        while let Some((mut request, call)) = self.begun.pop_front() {
            if !is_alone {
                match self.uring.hand_over(request, &call) {
                    None => continue,
                    // There is no room, as the kernel did not take what was there.
                    Some(returned) => request = returned,
                }
            }
            is_alone = false;
            let result = call.make(&self.target, request.pages());
            let step = request.resume(session, result);
            self.go_on(request, step, session);
        }
        self.uring.submit().map_err(refused)
    }
}

/// Whether io_uring had no means to make a call: a device that would wait, or no thread for it.
fn was_not_made(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ECANCELED))
}

fn refused(error: std::io::Error) -> QueueError {
    QueueError::Host {
        what: "io_uring",
        error,
    }
}
