//! What has been measured, in Markdown, as docs/benchmarks.md has it.

use lab::agent::bench_compare::{COUNTERS, Mode, Part, Subject, Vmm};

use crate::bench_samples::{Samples, cell, median};

/// A column: its title, the name of what was measured, how a value is shown.
type Column = (&'static str, &'static str, fn(u64) -> String);

const BOOT: &[Column] = &[
    ("start to first instruction, ms", "first (ns)", milliseconds),
    ("start to init, ms", "boot (ns)", milliseconds),
    ("of it by the guest's clock, ms", "guest (ns)", milliseconds),
    ("processor time, ms", "cpu (ns)", milliseconds),
    ("VMM memory, MiB", "memory_kib", mebibytes),
    ("exits", "exits", |count| count.to_string()),
];

const DISK: &[Column] = &[
    ("read 4 KiB, µs", "read_4k_1 (ns)", microseconds),
    ("32 at once", "read_4k_32 (ns)", microseconds),
    ("write 4 KiB", "write_4k_1 (ns)", microseconds),
    ("32 at once", "write_4k_32 (ns)", microseconds),
    ("read 128 KiB", "read_128k (ns)", microseconds),
    ("write 128 KiB", "write_128k (ns)", microseconds),
];

const NET: &[Column] = &[
    ("a byte and its answer, µs", "answer (ns)", microseconds),
    ("to level 1, MiB/s", "send_kib_s", mebibytes),
    ("from level 1, MiB/s", "receive_kib_s", mebibytes),
];

fn microseconds(nanoseconds: u64) -> String {
    ((nanoseconds + 500) / 1000).to_string()
}

fn milliseconds(nanoseconds: u64) -> String {
    ((nanoseconds + 500_000) / 1_000_000).to_string()
}

fn mebibytes(kibibytes: u64) -> String {
    let tenths = (kibibytes * 10 + 512) / 1024;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// The tables of a part; those of another have what it measured if there are none.
pub(super) fn markdown(part: Part, subjects: &[Subject], samples: &Samples) -> Option<String> {
    let q35 = |subject: Subject| Subject {
        vmm: Vmm::QemuQ35,
        ..subject
    };
    Some(match part {
        Part::First => return None,
        Part::Disk => table(DISK, subjects, samples, q35),
        Part::Net => table(NET, subjects, samples, q35),
        Part::Boot => {
            let base = |subject: Subject| Subject {
                vmm: if subject.mode == Mode::NoUnit {
                    Vmm::QemuMicrovm
                } else {
                    Vmm::QemuQ35
                },
                ..subject
            };
            let first = table(BOOT, subjects, samples, base);
            format!("{first}\n{}", exits(subjects, samples))
        }
    })
}

fn title(subject: Subject) -> String {
    format!("{}, {}", subject.vmm.name(), subject.mode.title())
}

/// A row for each subject: medians, the least and the greatest value, and the ratio to the base of
/// the subject.
fn table(
    columns: &[Column],
    subjects: &[Subject],
    samples: &Samples,
    base: impl Fn(Subject) -> Subject,
) -> String {
    let mut text = "| |".to_owned();
    for (title, ..) in columns {
        text.push_str(&format!(" {title} |"));
    }
    text.push_str(&format!("\n|---|{}\n", "---|".repeat(columns.len())));
    for subject in subjects {
        text.push_str(&format!("| {} |", title(*subject)));
        for (_, what, show) in columns {
            let own = samples.of(&subject.name(), what);
            let reference = samples.of(&base(*subject).name(), what);
            text.push_str(&format!(" {} |", cell(own, reference, *show)));
        }
        text.push('\n');
    }
    text
}

/// A row for each counter that is not zero everywhere, medians, a column for each subject.
fn exits(subjects: &[Subject], samples: &Samples) -> String {
    let mut text = "| KVM's counters until init |".to_owned();
    for subject in subjects {
        text.push_str(&format!(" {} |", title(*subject)));
    }
    text.push_str(&format!("\n|---|{}\n", "---|".repeat(subjects.len())));
    for (name, meaning) in COUNTERS {
        let values: Vec<Option<u64>> = subjects
            .iter()
            .map(|subject| median(samples.of(&subject.name(), name)))
            .collect();
        if values.iter().all(|value| value.unwrap_or(0) == 0) {
            continue;
        }
        text.push_str(&format!("| `{name}`: {meaning} |"));
        for value in values {
            let value = value.map_or("-".to_owned(), |value| value.to_string());
            text.push_str(&format!(" {value} |"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIDO: Subject = Subject {
        vmm: Vmm::Nido,
        mode: Mode::NoUnit,
    };
    const MICROVM: Subject = Subject {
        vmm: Vmm::QemuMicrovm,
        mode: Mode::NoUnit,
    };

    #[test]
    fn a_row_has_the_median_its_spread_and_the_ratio_to_the_base() {
        let mut samples = Samples::default();
        for time in [1_000_000, 3_000_000, 2_000_000] {
            samples.add(&format!(
                "vmm=nido/no-unit boot_ns={time} memory_kib=2304 exits=9"
            ));
        }
        samples.add("vmm=qemu-microvm/no-unit boot_ns=4000000");
        let text = markdown(Part::Boot, &[NIDO, MICROVM], &samples).expect("tables");
        assert!(
            text.contains("| nido, no unit | - | 2 (1–3) ×0.50 | - | - | 2.3 | 9 |\n"),
            "{text}"
        );
        assert!(
            text.contains("| `exits`: exits of the guest | 9 | - |\n"),
            "{text}"
        );
        assert!(!text.contains("hypercalls"), "{text}");
    }
}
