//! What has been measured, in Markdown, as docs/benchmarks.md has it.

use super::cases::Case;
use crate::bench_samples::{Samples, cell};

/// A column: its title, the name of what was measured, how a value is shown.
type Column = (&'static str, &'static str, fn(u64) -> String);

const MOVED: &[Column] = &[
    ("stands still, as the VMM says, ms", "still (ns)", tenths),
    ("silent, ms", "silent (ns)", tenths),
    ("a gap of its own clock, ms", "own (ns)", tenths),
    ("until it runs there, ms", "total (ns)", whole),
    ("sent, MiB", "sent_kib", mebibytes),
];

const WROTE: &[Column] = &[
    ("written meanwhile, MiB", "written_kib", mebibytes),
    ("sent for a page of it, bytes", "page_bytes", plain),
    ("before, MiB/s", "before_kib_s", mebibytes),
    ("meanwhile, MiB/s", "during_kib_s", mebibytes),
    ("after, MiB/s", "after_kib_s", mebibytes),
];

const SAVED: &[Column] = &[
    ("stands still, ms", "still (ns)", whole),
    ("--restore to the first sign, ms", "restore (ns)", tenths),
    ("memory, MiB", "memory_kib", mebibytes),
    ("state, KiB", "state_kib", plain),
];

fn tenths(nanoseconds: u64) -> String {
    let tenths = (nanoseconds + 50_000) / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn whole(nanoseconds: u64) -> String {
    ((nanoseconds + 500_000) / 1_000_000).to_string()
}

fn mebibytes(kibibytes: u64) -> String {
    ((kibibytes + 512) / 1024).to_string()
}

fn plain(value: u64) -> String {
    value.to_string()
}

/// All tables.
pub(super) fn markdown(cases: &[&Case], samples: &Samples) -> String {
    let row = |vmm: &str, case: &str| (format!("{vmm}, {case}"), format!("{vmm}/{case}"));
    let rows = |cases: &mut dyn Iterator<Item = &Case>| -> Vec<(String, String, String)> {
        let names = cases.map(|case| case.name);
        names
            .flat_map(|name| ["nido", "qemu"].map(|vmm| (row(vmm, name), row("qemu", name).1)))
            .map(|((title, own), base)| (title, own, base))
            .collect()
    };
    let mut text = table(MOVED, &rows(&mut cases.iter().copied()), samples);
    let mut writing = cases.iter().copied().filter(|case| case.writes());
    text.push('\n');
    text.push_str(&table(WROTE, &rows(&mut writing), samples));
    if !samples.of("nido/snapshot", "still (ns)").is_empty() {
        let saved = ["nido, snapshot", "nido/snapshot", ""].map(str::to_owned);
        text.push('\n');
        text.push_str(&table(SAVED, &[saved.into()], samples));
    }
    text
}

/// A row each: its title, whose values, and whose the ratio is to.
fn table(columns: &[Column], rows: &[(String, String, String)], samples: &Samples) -> String {
    let titles: String = columns
        .iter()
        .map(|(title, ..)| format!(" {title} |"))
        .collect();
    let mut text = format!("| |{titles}\n|---|{}\n", "---|".repeat(columns.len()));
    for (title, own, base) in rows {
        text.push_str(&format!("| {title} |"));
        for (_, what, show) in columns {
            let values = cell(samples.of(own, what), samples.of(base, what), *show);
            text.push_str(&format!(" {values} |"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::cases::CASES;
    use super::*;

    #[test]
    fn each_case_has_a_row_for_each_vmm_and_ratios_to_qemu() {
        let mut samples = Samples::default();
        samples.add("vmm=nido/idle still_ns=4000000 sent_kib=262144");
        samples.add("vmm=qemu/idle still_ns=8000000 sent_kib=262144");
        samples.add("vmm=nido/snapshot still_ns=3000000 memory_kib=1024");
        let cases: Vec<&Case> = CASES.iter().collect();
        let text = markdown(&cases, &samples);
        assert!(
            text.contains("| nido, idle | 4.0 ×0.50 | - | - | - | 256 ×1.00 |\n"),
            "{text}"
        );
        assert!(
            text.contains("| nido, snapshot | 3 | - | 1 | - |\n"),
            "{text}"
        );
        assert_eq!(text.matches("idle").count(), 2, "it writes nothing: {text}");
    }
}
