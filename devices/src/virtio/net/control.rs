//! The control queue (section 5.1.6.5), for what is on offer of it: how many queue pairs are in use
//! (5.1.6.5.6).

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use log::warn;
use state::RestoreError;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};

use super::steering::Steering;
use crate::limit::LogLimit;
use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;
use crate::virtio::feature::has;
use crate::virtio::session::{Progress, Session};

/// Class, command, number of pairs.
const COMMAND: usize = 4;
/// To change what a tap's queues are for, the host's kernel takes a lock that the configuration of all
/// of its network shares. A guest may have it do so that often.
const INTERVAL: Duration = Duration::from_millis(50);
/// A reset is looked for that often meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// Has `control`, if there is one, give packets to as many pairs as were in use.
pub(super) fn restore(control: Option<&mut Control>, pairs: u16) -> Result<(), RestoreError> {
    match control {
        Some(control) => control.restore(pairs),
        None if pairs == 1 => Ok(()),
        None => {
            let why = format_args!("{pairs} of one");
            Err(RestoreError::damaged("the queue pairs in use", why))
        }
    }
}

/// What a device does for its control queue.
pub(super) struct Control {
    steering: Box<dyn Steering>,
    /// Which queue it is for the driver, if that has one.
    queue: Option<usize>,
    /// How many pairs there are.
    pairs: usize,
    /// How many get packets.
    used: u16,
    /// When a driver has changed that last.
    changed: Option<Instant>,
    chain: Chain,
    limit: LogLimit,
}

impl Control {
    /// For a device of `pairs` pairs, of which `steering` uses the first alone.
    pub(super) fn new(steering: Box<dyn Steering>, pairs: usize) -> Self {
        Self {
            steering,
            queue: None,
            pairs,
            used: 1,
            changed: None,
            chain: Chain::default(),
            limit: LogLimit::default(),
        }
    }

    /// A driver begins, to which it is `queue`.
    pub(super) fn begin(&mut self, queue: Option<usize>) {
        self.queue = queue;
    }

    /// One turn on queue `index`, if that is the one.
    pub(super) fn turn(
        &mut self,
        index: usize,
        session: &mut Session,
    ) -> Result<Progress, QueueError> {
        if self.queue != Some(index) {
            return Ok(Progress::Idle);
        }
        session.turn(index, |session| self.serve(index, session))
    }

    /// Carries out the next command in queue `index`; `false` if there is none.
    fn serve(&mut self, index: usize, session: &mut Session) -> Result<bool, QueueError> {
        if !session.pop(index, &mut self.chain)? {
            return Ok(false);
        }
        // There is to be room for the answer.
        if self.chain.writable() == 0 {
            return Err(QueueError::Length);
        }
        let mut command = [0; COMMAND];
        let known = self.chain.readable() == COMMAND as u64;
        if known {
            session.read(&self.chain, 0, &mut command)?;
        }
        let done = known && self.carry_out(command, session)?;
        let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        // It is 8 bits wide.
        let [answer, ..] = answer.to_le_bytes();
        session.give(index, &self.chain, &[answer])?;
        Ok(true)
    }

    /// Tells whether it was possible.
    fn carry_out(
        &mut self,
        [class, command, low, high]: [u8; COMMAND],
        session: &Session,
    ) -> Result<bool, QueueError> {
        let pairs = u16::from_le_bytes([low, high]);
        let is_known = u32::from(class) == VIRTIO_NET_CTRL_MQ
            && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
            && has(session.features(), VIRTIO_NET_F_MQ);
        if !is_known || !(1..=self.pairs).contains(&pairs.into()) {
            return Ok(false);
        }
        if pairs == self.used {
            return Ok(true);
        }
        self.wait(session)?;
        let outcome = self.steer(pairs);
        self.changed = Some(Instant::now());
        Ok(outcome)
    }

    /// Waits until a driver may have the next change.
    fn wait(&self, session: &Session) -> Result<(), QueueError> {
        let until = self.changed.map(|changed| changed + INTERVAL);
        while until.is_some_and(|until| Instant::now() < until) {
            if session.stopping() {
                return Err(QueueError::Stopped);
            }
            sleep(LOOK);
        }
        Ok(())
    }

    /// The driver is gone: the next one begins with one pair.
    pub(super) fn reset(&mut self) {
        self.steer(1);
    }

    /// How many pairs get packets.
    pub(super) fn pairs_in_use(&self) -> u16 {
        self.used.max(1)
    }

    /// Has as many get packets as did, before a driver goes on.
    fn restore(&mut self, pairs: u16) -> Result<(), RestoreError> {
        if !(1..=self.pairs).contains(&pairs.into()) {
            let why = format_args!("{pairs} of {}", self.pairs);
            return Err(RestoreError::damaged("the queue pairs in use", why));
        }
        if !self.steer(pairs) {
            let why = "the tap does not let its queues be used; a warning says why";
            return Err(RestoreError::host("the queue pairs in use", why));
        }
        Ok(())
    }

    fn steer(&mut self, pairs: u16) -> bool {
        if pairs == self.used {
            return true;
        }
        // If only a part of it is possible, any number is a change.
        self.used = 0;
        match self.steering.steer(pairs) {
            Ok(()) => self.used = pairs,
            Err(error) => self.report(pairs, &error),
        }
        self.used == pairs
    }

    fn report(&mut self, pairs: u16, error: &io::Error) {
        if let Some(held_back) = self.limit.pass() {
            warn!(
                "virtio-net: cannot have {pairs} queues of the tap in use: {error} ({held_back} messages held back)"
            );
        }
    }
}
