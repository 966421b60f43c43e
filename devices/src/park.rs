//! Threads that stop where they are, and go on as if no time had passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// What threads look at to know whether they are to stop. Each does so between two pieces of work,
/// with no lock held and no access to guest memory under way.
#[derive(Default)]
pub struct Park {
    wanted: AtomicBool,
    /// How often it was wanted.
    times: AtomicU64,
    /// A leaf lock.
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Default)]
struct Count {
    /// All that have to stop.
    threads: usize,
    /// Those that have.
    parked: usize,
    /// How often those that have were called.
    calls: u64,
}

/// A thread that has to stop when that is wanted, for as long as this lives.
pub struct Parkable(Arc<Park>);

impl Park {
    /// Counts a thread, from before it starts.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Parkable {
        self.count.lock().threads += 1;
        Parkable(Arc::clone(self))
    }

    /// Has all threads stop. Whatever wakes them comes after this.
    pub fn ask(&self) {
        // First: who sees that it is wanted finds it counted.
        self.times.fetch_add(1, Ordering::SeqCst);
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// How often threads were asked to stop, for those that have to make up for what they have left
    /// because of that, even if they were released before they stopped.
    #[must_use]
    pub fn times(&self) -> u64 {
        self.times.load(Ordering::SeqCst)
    }

    /// Whether threads are to stop.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Whether all threads have stopped.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let count = self.count.lock();
        count.parked == count.threads
    }

    /// Has all threads go on.
    pub fn release(&self) {
        // Under the lock, or a thread that is about to wait misses it.
        let count = self.count.lock();
        self.wanted.store(false, Ordering::SeqCst);
        drop(count);
        self.changed.notify_all();
    }

    /// Has threads that have stopped look at their `end` flags.
    pub fn look(&self) {
        drop(self.count.lock());
        self.changed.notify_all();
    }

    /// Has each thread that has stopped run the errand that it has, once.
    pub fn call(&self) {
        self.count.lock().calls += 1;
        self.changed.notify_all();
    }

    /// Stops the calling thread, which is counted, for as long as that is wanted, and `end` is false.
    pub fn stay(&self, end: &AtomicBool) {
        self.stay_on_call(end, || ());
    }

    /// The same for a thread that runs `errand` whenever it is [called](Self::call) meanwhile.
    pub fn stay_on_call(&self, end: &AtomicBool, mut errand: impl FnMut()) {
        let mut count = self.count.lock();
        count.parked += 1;
        let mut answered = count.calls;
        while self.is_wanted() && !end.load(Ordering::SeqCst) {
            if answered == count.calls {
                self.changed.wait(&mut count);
            } else {
                answered = count.calls;
                MutexGuard::unlocked(&mut count, &mut errand);
            }
        }
        count.parked -= 1;
    }
}

impl Drop for Parkable {
    fn drop(&mut self) {
        self.0.count.lock().threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// A bound for whatever has to happen.
    const SOON: Duration = Duration::from_secs(10);

    fn eventually(what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < SOON, "never happened: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn threads_stop_and_go_on_many_times_and_one_that_has_ended_counts_no_more() {
        let park = Arc::<Park>::default();
        let end = Arc::<AtomicBool>::default();
        let work = Arc::new(Mutex::new(0_u64));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (guard, end, work) = (park.enter(), Arc::clone(&end), Arc::clone(&work));
                let park = Arc::clone(&park);
                thread::spawn(move || {
                    while !end.load(Ordering::SeqCst) {
                        if park.is_wanted() {
                            park.stay(&end);
                        }
                        *work.lock() += 1;
                        thread::yield_now();
                    }
                    drop(guard);
                })
            })
            .collect();
        for _ in 0..200 {
            park.ask();
            eventually("all stop", || park.is_full());
            let before = *work.lock();
            thread::yield_now();
            assert_eq!(*work.lock(), before, "nobody works");
            park.release();
            eventually("work goes on", || *work.lock() > before);
        }
        park.ask();
        eventually("all stop", || park.is_full());
        end.store(true, Ordering::SeqCst);
        park.look();
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert!(park.is_full(), "there is none left to wait for");
    }

    #[test]
    fn threads_that_have_stopped_run_an_errand_once_for_each_call() {
        let park = Arc::<Park>::default();
        let (end, errands) = (AtomicBool::new(false), Mutex::new(0));
        park.ask();
        let guards = [park.enter(), park.enter()];
        thread::scope(|scope| {
            for _ in &guards {
                scope.spawn(|| park.stay_on_call(&end, || *errands.lock() += 1));
            }
            eventually("both stop", || park.is_full());
            for calls in 1..100 {
                park.call();
                eventually("both run it", || *errands.lock() == 2 * calls);
            }
            park.release();
        });
        assert_eq!(*errands.lock(), 198);
    }

    #[test]
    fn a_thread_that_does_not_look_keeps_it_from_being_full() {
        let park = Arc::<Park>::default();
        assert!(park.is_full());
        let busy = park.enter();
        park.ask();
        assert!(!park.is_full());
        drop(busy);
        assert!(park.is_full());
    }
}
