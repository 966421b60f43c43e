//! The thread of the edu device, which computes factorials and copies memory.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use parking_lot::MutexGuard;

use super::copier::{Copier, Progress};
use super::extension::Outcome;
use super::registers::{self, BUFFER_SIZE, Copy};
use super::shared::{Inner, Shared};
use crate::Dma;

pub(super) fn start(shared: Arc<Shared>, dma: Dma) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(format!("edu-{}", shared.bdf))
        .spawn(move || {
            let copier = Copier::new(dma.view(), shared.fixed.dma_mask, shared.link.clone());
            run(&shared, copier);
        })
}

/// A command that the worker took.
enum Work {
    Factorial(u32),
    /// And how far it is, if it was begun before the device was restored.
    Copy(Copy, Option<Progress>),
}

/// What came of it.
enum Done {
    Factorial(u32),
    Copy(Outcome),
}

impl Work {
    fn take(inner: &mut Inner) -> Option<Self> {
        let factorial = inner.factorial.take().map(Self::Factorial);
        factorial.or_else(|| {
            let copy = inner.dma.take()?;
            inner.running = Some(copy);
            let carried = inner.carried.take();
            Some(Self::Copy(copy, carried.map(|carried| carried.progress)))
        })
    }

    /// Carries the command out on the device's `buffer`. It was taken after `aborts` aborts.
    fn carry_out(&self, copier: &mut Copier, buffer: &mut [u8; BUFFER_SIZE], aborts: u64) -> Done {
        match self {
            Self::Factorial(value) => Done::Factorial(registers::factorial(*value)),
            Self::Copy(copy, carried) => {
                let range: Range<usize> = copy.offset..copy.offset.saturating_add(copy.length);
                let outcome = buffer.get_mut(range).map_or(Outcome::Done, |own| {
                    copier.copy(copy, own, aborts, carried.as_ref())
                });
                Done::Copy(outcome)
            }
        }
    }
}

/// Carries out commands, without the lock, until the device goes away.
fn run(shared: &Shared, mut copier: Copier) {
    let mut inner = shared.inner.lock();
    while !inner.ending {
        let work = match inner.is_held() {
            true => None,
            false => Work::take(&mut inner),
        };
        let Some(work) = work else {
            shared.changed.wait(&mut inner);
            continue;
        };
        inner.working = true;
        let (epoch, mut buffer) = (inner.epoch, *inner.buffer);
        let aborts = shared.link.aborts();
        let done = MutexGuard::unlocked(&mut inner, || {
            work.carry_out(&mut copier, &mut buffer, aborts)
        });
        inner.working = false;
        inner.running = None;
        shared.changed.notify_all();
        // Of a command from before a reset nothing is left.
        let counts = copier.take_counts();
        if inner.epoch != epoch {
            continue;
        }
        *inner.buffer = buffer;
        shared.count_pages(&mut inner, counts);
        let bits = match done {
            Done::Factorial(result) => inner.registers.finish_factorial(result),
            Done::Copy(outcome) => {
                inner.registers.extension.outcome = outcome;
                inner.registers.finish_copy()
            }
        };
        if bits != 0 {
            let message = shared.raise(&mut inner, bits);
            inner.working = true;
            MutexGuard::unlocked(&mut inner, || shared.send(message));
            inner.working = false;
            shared.changed.notify_all();
        }
    }
}
