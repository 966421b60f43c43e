//! The thread that computes and copies.

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::thread::{Builder, JoinHandle};

use iommu::DmaView;
use vm_memory::{Bytes, GuestAddress};

use super::Shared;
use super::registers::{self, BUFFER_SIZE, Copy, Direction};
use crate::{Dma, Memory};

pub(super) fn start(shared: Arc<Shared>, dma: Dma) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(format!("edu-{}", shared.bdf))
        .spawn(move || {
            let mask = shared.dma_mask;
            run(
                &shared,
                Copier {
                    view: dma.view(),
                    mask,
                    buffer: [0; BUFFER_SIZE],
                },
            );
        })
}

enum Work {
    Factorial(u32),
    Copy(Copy),
}

fn run(shared: &Shared, mut copier: Copier) {
    let mut epoch = 0;
    let mut inner = shared.lock();
    loop {
        if inner.ending {
            return;
        }
        if inner.epoch != epoch {
            epoch = inner.epoch;
            copier.buffer.fill(0);
        }
        let factorial = inner.factorial.take().map(Work::Factorial);
        let Some(work) = factorial.or_else(|| inner.dma.take().map(Work::Copy)) else {
            inner = shared
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        inner.working = true;
        drop(inner);
        let result = match &work {
            Work::Factorial(value) => registers::factorial(*value),
            Work::Copy(copy) => {
                copier.copy(copy);
                0
            }
        };
        inner = shared.lock();
        inner.working = false;
        shared.changed.notify_all();
        if inner.epoch != epoch {
            continue;
        }
        let bits = match work {
            Work::Factorial(_) => inner.registers.finish_factorial(result),
            Work::Copy(_) => inner.registers.finish_copy(),
        };
        if bits != 0 {
            let message = shared.raise(&mut inner, bits);
            drop(inner);
            shared.send(message);
            inner = shared.lock();
        }
    }
}

/// Copies between memory and the device's buffer.
struct Copier {
    view: DmaView<Memory>,
    mask: u64,
    buffer: [u8; BUFFER_SIZE],
}

impl Copier {
    /// Does what `copy` says; see the module documentation of the device for what remains of a blocked one.
    fn copy(&mut self, copy: &Copy) {
        let range: Range<usize> = copy.offset..copy.offset.saturating_add(copy.length);
        let Some(own) = self.buffer.get_mut(range) else {
            return;
        };
        let address = GuestAddress(copy.address & self.mask);
        let transaction = self.view.begin();
        match copy.direction {
            Direction::ToMemory => {
                // The IOMMU has reported a blocked request, and the device has no error bit.
                let _ = transaction.write_slice(own, address);
            }
            Direction::FromMemory => {
                let mut copied = [0; BUFFER_SIZE];
                let Some(copied) = copied.get_mut(..own.len()) else {
                    return;
                };
                if transaction.read_slice(copied, address).is_ok() {
                    own.copy_from_slice(copied);
                }
            }
        }
    }
}
