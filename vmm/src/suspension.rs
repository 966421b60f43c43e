//! Who wants a pause leaves a request here, and waits for what the main thread makes of it.

use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::event::Event;
use crate::machine::{HandOver, Machine, Work};

/// How long a request waits for the main thread, which may be stopping vCPUs, or loading a guest.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for.
pub(crate) enum Wish {
    Pause,
    Resume,
    /// Work while it is paused, for as long as that takes.
    Work(Work),
    /// The same work, after which the guest may be another process's.
    HandOver(HandOver),
}

/// How a wish came out, in words for a client.
pub(crate) type Answer = Result<String, String>;

/// A wish that nobody has begun to carry out.
struct Request {
    number: u64,
    wish: Wish,
    /// Gone when nobody wants to know any more.
    client: Weak<()>,
    answer: Sender<Answer>,
}

/// Requests to pause and to go on, and whether the guest is paused.
#[derive(Default)]
pub(crate) struct Suspension {
    /// A leaf lock.
    requests: Mutex<Requests>,
    paused: AtomicBool,
    /// How often it has gone on.
    resumed: AtomicU64,
}

#[derive(Default)]
struct Requests {
    waiting: VecDeque<Request>,
    /// How many there have been.
    count: u64,
    /// The machine ends.
    closed: bool,
}

fn ending() -> String {
    "the virtual machine ends".to_owned()
}

impl Suspension {
    /// Whether the guest is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        if self.paused.swap(paused, Ordering::AcqRel) && !paused {
            self.resumed.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How often the guest has gone on after a pause: as long as that stays as it is and the guest
    /// [is paused](Self::is_paused), it was all the time.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Acquire)
    }

    /// Asks for a `client`, and waits for what comes of it. Nothing does later if this fails, nor if
    /// the client goes away before it is begun.
    ///
    /// # Errors
    /// Why it is not done.
    pub(crate) fn ask(&self, wish: Wish, client: Weak<()>, events: &Sender<Event>) -> Answer {
        self.ask_within(PATIENCE, wish, client, events)
    }

    /// [Asks](Self::ask) that `what` be done with the machine while it is paused. Returns what comes of it.
    ///
    /// # Errors
    /// Why it is not done, or what it says.
    pub(crate) fn work<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Machine) -> Result<T, String> + Send + 'static,
        client: Weak<()>,
        events: &Sender<Event>,
    ) -> Result<T, String> {
        let (give, outcome) = channel();
        let work = move |machine: &mut Machine| {
            // Nobody waits for it any more only when the client has gone, or the process ends.
            let _ = give.send(what(machine)?);
            Ok(String::new())
        };
        self.ask(Wish::Work(Box::new(work)), client, events)?;
        outcome.recv().map_err(|_| ending())
    }

    pub(crate) fn ask_within(
        &self,
        patience: Duration,
        wish: Wish,
        client: Weak<()>,
        events: &Sender<Event>,
    ) -> Answer {
        let (give, answer) = channel();
        let number = self.push(wish, client, give)?;
        events.send(Event::Attend).map_err(|_| ending())?;
        let answer = match answer.recv_timeout(patience) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Timeout) if self.withdraw(number) => {
                return Err(
                    "the machine is busy: it starts, or waits for a vCPU; nothing was done; try again"
                        .to_owned(),
                );
            }
            // It is being carried out.
            Err(RecvTimeoutError::Timeout) => answer.recv().ok(),
            Err(RecvTimeoutError::Disconnected) => None,
        };
        answer.unwrap_or_else(|| Err(ending()))
    }

    fn push(&self, wish: Wish, client: Weak<()>, answer: Sender<Answer>) -> Result<u64, String> {
        let mut requests = self.requests.lock();
        if requests.closed {
            return Err(ending());
        }
        let number = requests.count;
        requests.count += 1;
        requests.waiting.push_back(Request {
            number,
            wish,
            client,
            answer,
        });
        Ok(number)
    }

    /// Takes a request back. Whether nobody had begun with it.
    fn withdraw(&self, number: u64) -> bool {
        let mut requests = self.requests.lock();
        let before = requests.waiting.len();
        requests.waiting.retain(|request| request.number != number);
        requests.waiting.len() != before
    }

    /// The next request whose client is there.
    pub(crate) fn next(&self) -> Option<(Wish, Sender<Answer>)> {
        let mut requests = self.requests.lock();
        while let Some(request) = requests.waiting.pop_front() {
            if request.client.strong_count() != 0 {
                return Some((request.wish, request.answer));
            }
        }
        None
    }

    /// Refuses all requests that are there.
    pub(crate) fn refuse(&self, why: &str) {
        while let Some((_, client)) = self.next() {
            // The client may have gone.
            let _ = client.send(Err(why.to_owned()));
        }
    }

    /// Refuses all requests from now on: the machine ends.
    pub(crate) fn close(&self) {
        self.requests.lock().closed = true;
        self.refuse(&ending());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_request_that_nobody_begins_with_is_taken_back_and_nothing_comes_of_it() {
        let (events, _receiver) = channel();
        let (suspension, client) = (Suspension::default(), Arc::new(()));
        let wish = |wish| {
            let client = Arc::downgrade(&client);
            suspension.ask_within(Duration::from_millis(1), wish, client, &events)
        };
        let why = wish(Wish::Pause).expect_err("nobody does it");
        assert!(why.contains("nothing was done"), "{why}");
        assert!(suspension.next().is_none());
    }

    #[test]
    fn a_request_whose_client_has_gone_is_skipped() {
        let suspension = Suspension::default();
        let client = Arc::new(());
        for (wish, client) in [
            (Wish::Pause, Weak::new()),
            (Wish::Resume, Arc::downgrade(&client)),
        ] {
            suspension.push(wish, client, channel().0).expect("open");
        }
        let next = || suspension.next().map(|(wish, _)| wish);
        assert!(matches!(next(), Some(Wish::Resume)));
        assert!(next().is_none());
    }

    #[test]
    fn who_waits_at_the_end_and_who_comes_after_it_hears_of_it() {
        let (events, receiver) = channel();
        let (suspension, client) = (Arc::<Suspension>::default(), Arc::new(()));
        let asking = {
            let (suspension, client) = (Arc::clone(&suspension), Arc::downgrade(&client));
            let events = events.clone();
            thread::spawn(move || suspension.ask(Wish::Pause, client, &events))
        };
        assert_eq!(receiver.recv(), Ok(Event::Attend));
        suspension.close();
        assert_eq!(asking.join().expect("no panic"), Err(ending()));
        let client = Arc::downgrade(&client);
        assert_eq!(suspension.ask(Wish::Resume, client, &events), Err(ending()));
    }
}
