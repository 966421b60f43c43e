//! How long a disk's thread looks at an empty queue before it waits for a notification.
//!
//! A driver that sends its next request soon after an answer is spared the exit of a notification, and
//! the thread its sleep, if the thread goes on looking for a little. Whether that pays is learnt from
//! how long waits last, as KVM learns it for vCPUs that halt (`halt_poll_ns`).

use std::thread::yield_now;
use std::time::{Duration, Instant};

use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;
use crate::virtio::session::Session;

/// Longest look: what is burnt for nothing if no request comes. Waits that are longer end looking.
const MOST: Duration = Duration::from_micros(64);
/// First look, after a wait that was short.
const LEAST: Duration = Duration::from_micros(8);

/// See the module.
#[derive(Default)]
pub(super) struct Poll {
    /// How long to look; not at all if it is zero.
    window: Duration,
    /// Since when the thread waits.
    waiting: Option<Instant>,
}

impl Poll {
    /// Takes the next chain of queue `index`, for a thread that waits for nothing else; `false` if it
    /// is to wait: then the driver notifies. Or if it is to stop for a while.
    pub(super) fn pop(
        &mut self,
        index: usize,
        chain: &mut Chain,
        session: &mut Session,
    ) -> Result<bool, QueueError> {
        let before = self.waiting;
        let begin = match before {
            None if self.window.is_zero() => None,
            None => {
                let begin = Instant::now();
                let mut parking = false;
                let found = self.look(|| {
                    parking = session.parking();
                    Ok::<_, QueueError>(parking || session.pop_more(index, chain)?)
                })?;
                if found {
                    return Ok(!parking);
                }
                Some(begin)
            }
            Some(_) => before,
        };
        let found = session.pop(index, chain)?;
        match (found, before) {
            (true, Some(since)) => self.learn(since.elapsed()),
            (true, None) => {}
            (false, _) => self.waiting = Some(begin.unwrap_or_else(Instant::now)),
        }
        Ok(found)
    }

    /// Asks `found` until it says so, or the time is over. Others that want this processor have it
    /// meanwhile: it may be the driver's.
    fn look<E>(&self, mut found: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        let begin = Instant::now();
        loop {
            if found()? {
                return Ok(true);
            }
            if begin.elapsed() >= self.window {
                return Ok(false);
            }
            yield_now();
        }
    }

    /// A wait has lasted for `time`.
    fn learn(&mut self, time: Duration) {
        self.waiting = None;
        self.window = if time > MOST {
            Duration::ZERO
        } else {
            (2 * self.window).clamp(LEAST, MOST)
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_queue::QueueState;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::Dma;
    use crate::park::Park;
    use crate::virtio::queue::VirtQueue;
    use crate::virtio::session::Transport;

    struct Deaf;

    impl Transport for Deaf {
        fn queue_interrupt(&self, _index: usize) {}
        fn needs_reset(&self) {}
    }

    #[test]
    fn a_pause_ends_a_look() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let state = QueueState {
            max_size: 8,
            size: 8,
            ready: true,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
            ..QueueState::default()
        };
        let queues = vec![Some(VirtQueue::new(state, 0).unwrap())];
        let view = Dma::direct(Arc::new(memory)).view();
        let mut session = Session::new(queues, view, Arc::new(Deaf), 0, Arc::default());
        let park = Arc::<Park>::default();
        session.obey(&park);
        park.ask();
        let mut poll = Poll {
            window: Duration::from_secs(3600),
            waiting: None,
        };
        assert!(!poll.pop(0, &mut Chain::default(), &mut session).unwrap());
    }

    #[test]
    fn short_waits_are_looked_away_and_a_long_one_ends_that() {
        let mut poll = Poll::default();
        let mut windows = Vec::new();
        for wait in [20, 30, 64, 10, 5, 65, 3] {
            poll.learn(Duration::from_micros(wait));
            windows.push(poll.window.as_micros());
        }
        assert_eq!(windows, [8, 16, 32, 64, 64, 0, 8]);
    }

    #[test]
    fn a_look_ends_with_what_is_found_or_with_its_time() {
        let mut poll = Poll::default();
        let mut looks = 0;
        let mut look = |poll: &Poll, finds: bool| {
            poll.look(|| {
                looks += 1;
                Ok::<_, ()>(finds)
            })
        };
        assert_eq!(look(&poll, false), Ok(false));
        poll.window = MOST;
        assert_eq!(look(&poll, true), Ok(true));
        assert_eq!(look(&poll, false), Ok(false));
        poll.window = Duration::from_secs(3600);
        let mut left = 100;
        let found = poll.look(|| {
            left -= 1;
            Ok::<_, ()>(left == 0)
        });
        assert_eq!(found, Ok(true));
        assert_eq!(poll.look(|| Err(())), Err(()));
    }
}
