//! Holding vCPUs of a guest that writes memory faster than it can be sent, for a part of the time.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::event::Event;
use crate::vcpu::Brake;

/// How long vCPUs run between two holds.
const RUN: Duration = Duration::from_millis(10);
/// The most of the time that they are held, in percent.
const MOST: u32 = 99;

/// vCPUs are held until this is dropped.
pub(super) struct Holding {
    brake: Arc<Brake>,
    /// Gone when the thread is to end.
    _end: Sender<()>,
}

impl Holding {
    /// Holds all vCPUs for `percent` of the time. The main thread kicks them, which `events` tells.
    ///
    /// # Errors
    /// The host has no thread for it.
    pub(super) fn start(
        percent: u32,
        brake: &Arc<Brake>,
        events: &Sender<Event>,
    ) -> std::io::Result<Self> {
        let hold = hold(percent);
        let (end, ended) = channel();
        let events = events.clone();
        // First: it ends what it has begun, also if the rest fails.
        let holding = Self {
            brake: Arc::clone(brake),
            _end: end,
        };
        brake.set(hold);
        thread::Builder::new()
            .name("migration-hold".to_owned())
            .spawn(move || {
                while ended.recv_timeout(RUN + hold) == Err(RecvTimeoutError::Timeout) {
                    if events.send(Event::Kick).is_err() {
                        return;
                    }
                }
            })?;
        Ok(holding)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.brake.set(Duration::ZERO);
    }
}

/// How long each hold is.
fn hold(percent: u32) -> Duration {
    let percent = percent.min(MOST);
    RUN * percent / (100 - percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_that_part_of_the_time() {
        for (percent, millis) in [(0, 0), (20, 2), (50, 10), (90, 90), (99, 990), (100, 990)] {
            let expected = Duration::from_millis(millis);
            assert!(hold(percent).abs_diff(expected) < Duration::from_millis(1));
        }
    }

    #[test]
    fn vcpus_are_kicked_until_it_ends() {
        let (events, kicks) = channel();
        let brake = Arc::<Brake>::default();
        let holding = Holding::start(50, &brake, &events).expect("a thread");
        for _ in 0..3 {
            assert_eq!(kicks.recv(), Ok(Event::Kick));
        }
        drop(holding);
        drop(events);
        // The thread lets go of its end.
        assert!(kicks.iter().count() < 3);
    }
}
