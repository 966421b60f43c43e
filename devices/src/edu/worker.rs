//! The thread of the edu device, which computes factorials and copies memory.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::copier::Copier;
use super::extension::Outcome;
use super::registers::{self, BUFFER_SIZE, Copy};
use super::shared::Shared;
use crate::Dma;

pub(super) fn start(shared: Arc<Shared>, dma: Dma) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(format!("edu-{}", shared.bdf))
        .spawn(move || {
            let copier = Copier::new(dma.view(), shared.dma_mask, shared.link.clone());
            run(&shared, copier);
        })
}

enum Work {
    Factorial(u32),
    Copy(Copy),
}

fn run(shared: &Shared, mut copier: Copier) {
    let mut buffer = [0; BUFFER_SIZE];
    let mut epoch = 0;
    let mut inner = shared.inner.lock();
    loop {
        if inner.ending {
            return;
        }
        if inner.epoch != epoch {
            epoch = inner.epoch;
            buffer.fill(0);
        }
        let factorial = inner.factorial.take().map(Work::Factorial);
        let Some(work) = factorial.or_else(|| inner.dma.take().map(Work::Copy)) else {
            shared.changed.wait(&mut inner);
            continue;
        };
        inner.working = true;
        let aborts = shared.link.aborts();
        drop(inner);
        let mut outcome = Outcome::Done;
        let result = match &work {
            Work::Factorial(value) => registers::factorial(*value),
            Work::Copy(copy) => {
                let range: Range<usize> = copy.offset..copy.offset.saturating_add(copy.length);
                if let Some(own) = buffer.get_mut(range) {
                    outcome = copier.copy(copy, own, aborts);
                }
                0
            }
        };
        inner = shared.inner.lock();
        inner.working = false;
        shared.changed.notify_all();
        // Of a command from before a reset nothing is left.
        let counts = copier.take_counts();
        if inner.epoch != epoch {
            continue;
        }
        shared.count_pages(&mut inner, counts);
        let bits = match work {
            Work::Factorial(_) => inner.registers.finish_factorial(result),
            Work::Copy(_) => {
                inner.registers.extension.outcome = outcome;
                inner.registers.finish_copy()
            }
        };
        if bits != 0 {
            let message = shared.raise(&mut inner, bits);
            drop(inner);
            shared.send(message);
            inner = shared.inner.lock();
        }
    }
}
