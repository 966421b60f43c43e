//! What KVM counts for a machine (debugfs, Documentation/virt/kvm): of all its vCPUs, since its
//! start.

use std::fs;

use anyhow::{Context, Result};

use crate::agent::tally;

/// Exits in all; then kinds of them, of which one exit may be several; then what is no exit. Files of
/// these names are there for each machine.
pub const COUNTERS: [(&str, &str); 14] = [
    ("exits", "exits of the guest"),
    ("io_exits", "ports, to the VMM"),
    ("mmio_exits", "memory, to the VMM"),
    ("halt_exits", "halts"),
    ("irq_exits", "interrupts of the host"),
    ("irq_window_exits", "windows for an interrupt"),
    ("signal_exits", "signals to the VMM"),
    ("request_irq_exits", "windows that the VMM asked for"),
    ("hypercalls", "hypercalls"),
    ("pf_taken", "page faults"),
    ("pf_fixed", "of them, pages mapped"),
    (
        "pf_mmio_spte_created",
        "of them, first accesses to no memory",
    ),
    ("insn_emulation", "instructions that KVM emulated"),
    ("irq_injections", "interrupts that the guest got"),
];

/// The counters of the machine of a process that are there, by name.
pub(super) fn read(process: u32) -> Result<Vec<(&'static str, u64)>> {
    let directory = tally::machine(process)?;
    let mut counts = Vec::new();
    for (name, _) in COUNTERS {
        let path = directory.join(name);
        if let Ok(text) = fs::read_to_string(&path) {
            counts.push((name, text.trim().parse().context(name)?));
        }
    }
    Ok(counts)
}
