//! Processors and device interrupts.

use std::fs;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

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

/// Has a thread on each of the first `count` processors do `work`, all at the same time.
pub(super) fn on_each_processor(
    count: usize,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let run = |processor| {
            move || {
                sys::run_on_cpu(processor).context("choosing a processor")?;
                work(processor)
            }
        };
        let threads: Vec<_> = (0..count)
            .map(|processor| scope.spawn(run(processor)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(_) => bail!("a thread panicked"),
            })
    })
}

/// Device interrupts arrived; the argument `remapped` or `plain` says which domain they must belong
/// to.
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

/// The interrupt of one driver, as /proc/interrupts shows it.
pub(super) struct Interrupt {
    pub(super) number: u32,
    /// How often each processor took it.
    pub(super) counts: Vec<u64>,
    /// Controller, pin and trigger.
    pub(super) kind: String,
}

impl Interrupt {
    /// That of the first line that contains `name`.
    pub(super) fn find(name: &str) -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/interrupts")?, name)
    }

    fn parse(table: &str, name: &str) -> Result<Self> {
        let line = table
            .lines()
            .find(|line| line.contains(name))
            .with_context(|| format!("no '{name}' in /proc/interrupts"))?;
        let (number, rest) = line.split_once(':').context("no number")?;
        let processors = table.lines().next().unwrap_or_default();
        let processors = processors.split_whitespace().count();
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (counts, kind) = words.split_at_checked(processors).context("short line")?;
        Ok(Self {
            number: number.trim().parse().context("number of an interrupt")?,
            counts: counts
                .iter()
                .map(|count| count.parse())
                .collect::<Result<_, _>>()?,
            kind: kind.join(" "),
        })
    }

    /// Has `processor` take it from now on.
    pub(super) fn route_to(&self, processor: usize) -> Result<()> {
        let path = format!("/proc/irq/{}/smp_affinity_list", self.number);
        fs::write(&path, processor.to_string()).context(path)
    }
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
    fn an_interrupt_is_its_number_its_counts_and_its_kind() {
        let table = "           CPU0       CPU1\n \
            18:          3         39  IR-IO-APIC   18-fasteoi   vfio-intx(0000:00:06.0)\n";
        let interrupt = Interrupt::parse(table, "vfio-intx(").unwrap();
        assert_eq!(interrupt.number, 18);
        assert_eq!(interrupt.counts, [3, 39]);
        assert!(interrupt.kind.starts_with("IR-IO-APIC 18-fasteoi"));
        assert!(Interrupt::parse(table, "edu").is_err());
    }

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
