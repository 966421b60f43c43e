//! Processors and device interrupts.

use std::fs;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::Guest;
use crate::sys;

/// As many processors as the argument says are online, and each runs a thread.
pub(super) fn processors(_guest: &Guest, argument: &str) -> Result<String> {
    let wanted: usize = argument.parse().context("smp=N")?;
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let expected = if wanted == 1 {
        "0".to_owned()
    } else {
        format!("0-{}", wanted - 1)
    };
    ensure!(
        online.trim() == expected,
        "online: {}, not {expected}",
        online.trim()
    );
    let threads: Vec<_> = (0..wanted)
        .map(|cpu| thread::spawn(move || sys::run_on_cpu(cpu)))
        .collect();
    for (cpu, thread) in threads.into_iter().enumerate() {
        let ran = thread
            .join()
            .ok()
            .context("thread failed")?
            .with_context(|| format!("processor {cpu}"))?;
        ensure!(ran == cpu, "the thread for processor {cpu} ran on {ran}");
    }
    Ok(format!("online: {}", online.trim()))
}

/// Device interrupts arrived; the argument `remapped` or `plain` says which domain they must belong to.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let rows = virtio_rows(&table);
    ensure!(!rows.is_empty(), "no virtio interrupts in /proc/interrupts");
    let total: u64 = rows.iter().map(|row| row.count).sum();
    ensure!(total > 0, "no virtio interrupt ever arrived");
    let remapped = argument == "remapped";
    for row in &rows {
        ensure!(
            row.remapped == remapped,
            "'{}' is {}remapped",
            row.line,
            if row.remapped { "" } else { "not " }
        );
    }
    Ok(format!("{} vectors, {total} interrupts", rows.len()))
}

struct Row<'a> {
    line: &'a str,
    count: u64,
    remapped: bool,
}

fn virtio_rows(table: &str) -> Vec<Row<'_>> {
    table
        .lines()
        .filter(|line| line.contains("virtio") && line.contains("MSI"))
        .map(|line| Row {
            line: line.trim(),
            count: line
                .split_whitespace()
                .skip(1)
                .map_while(|word| word.parse::<u64>().ok())
                .sum(),
            remapped: line.split_whitespace().any(|word| word.starts_with("IR-")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sums_its_processors() {
        let table = "           CPU0       CPU1\n \
            24:          3         39  IR-PCI-MSIX-0000:00:03.0    1-edge      virtio0-req.0\n \
            NMI:  0  0 Non-maskable interrupts\n";
        let rows = virtio_rows(table);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].count, 42);
        assert!(rows[0].remapped);
    }
}
