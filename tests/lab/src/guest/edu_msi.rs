//! Several MSIs of one edu device (see nido's `edu`, msi-vectors): each has an eventfd, an entry of
//! the remapping table, and a processor of its own.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::edu::{self, INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE};
use super::interrupts::Interrupt;
use super::vfio::{Bar, Function};
use crate::sys::memory;

const VECTORS: usize = 4;
/// Interrupts of each vector at each of its places.
const ROUNDS: u64 = 8;
/// Longest time until one has come, in milliseconds.
const PATIENCE: i32 = 10_000;

/// Each vector signals its eventfd and no other, and is taken by the processor that it is led to,
/// and after a move by the next one.
pub(super) fn check(_guest: &Guest, _argument: &str) -> Result<String> {
    let function = Function::open(&edu::find()?)?;
    let registers = function.bar(0)?;
    let events: [OwnedFd; VECTORS] = function.msis()?;
    let processors = find(&function, 0)?.counts.len();
    for turn in 0..2 {
        for (vector, event) in events.iter().enumerate() {
            find(&function, vector)?.route_to((vector + turn) % processors)?;
            // A move may take effect at the end of the next interrupt only.
            raise(&registers, vector, event)?;
        }
        let before = find_all(&function)?;
        for round in 0..ROUNDS {
            for (vector, event) in events.iter().enumerate() {
                raise(&registers, vector, event).with_context(|| format!("round {round}"))?;
            }
        }
        for (vector, (before, after)) in before.iter().zip(&find_all(&function)?).enumerate() {
            ensure_moved(before, after, (vector + turn) % processors)
                .with_context(|| format!("vector {vector}"))?;
        }
    }
    Ok(format!(
        "{}: {VECTORS} vectors, each on 2 of {processors} processors in turn",
        function.address
    ))
}

fn find(function: &Function, vector: usize) -> Result<Interrupt> {
    Interrupt::find(&format!("vfio-msi[{vector}]({})", function.address))
}

fn find_all(function: &Function) -> Result<Vec<Interrupt>> {
    (0..VECTORS).map(|vector| find(function, vector)).collect()
}

/// Has the device send the message of `vector`, and takes it.
fn raise(registers: &Bar, vector: usize, event: &OwnedFd) -> Result<()> {
    let bit = 1_u32 << vector;
    registers.write_u32(INTERRUPT_RAISE, bit)?;
    ensure!(
        memory::wait_readable(event.as_fd(), PATIENCE)?,
        "no interrupt of vector {vector}"
    );
    let mut count = [0; 8];
    File::from(event.try_clone()?).read_exact(&mut count)?;
    let count = u64::from_le_bytes(count);
    ensure!(count == 1, "{count} interrupts of vector {vector}");
    registers.write_u32(INTERRUPT_ACKNOWLEDGE, bit)
}

/// Only `processor` has taken interrupts meanwhile, and all of them.
fn ensure_moved(before: &Interrupt, after: &Interrupt, processor: usize) -> Result<()> {
    ensure!(
        after.kind.starts_with("IR-PCI-MSI-"),
        "the interrupt is '{}'",
        after.kind
    );
    for (taker, (after, before)) in after.counts.iter().zip(&before.counts).enumerate() {
        let expected = if taker == processor { ROUNDS } else { 0 };
        ensure!(
            after - before == expected,
            "led to processor {processor}, {taker} took {} of {ROUNDS}",
            after - before
        );
    }
    Ok(())
}
