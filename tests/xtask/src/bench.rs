//! `cargo xtask bench boot`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::agent::bench::Bench;
use lab::agent::init::Request;
use lab::protocol::AgentLine;
use lab::scenario::BOOT;

use crate::build::{self, Extras, Stage};
use crate::place::{self, Place};
use crate::{Where, bundle, level0, paths};

/// What the others are compared with.
const BASE: &str = "qemu-microvm";
/// Directories of firmware in Debian's packages.
const FIRMWARE: &[&str] = &["/usr/share/seabios", "/usr/share/qemu"];
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

#[derive(Debug, Default)]
struct Samples {
    microseconds: Vec<u64>,
    memory_kib: Vec<u64>,
}

/// The benchmark.
pub(crate) fn boot(wanted: Where, rounds: u32) -> Result<bool> {
    let stage = build::stage(Extras::default())?;
    let place = place::choose(wanted, &stage)?;
    level0::install()?;
    bundle_qemu(&stage)?;
    let directory = paths::logs()?.join("bench-boot");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    println!(
        "one vCPU, 512 MiB, the same kernel (ELF, PVH) and initramfs for all; {rounds} rounds, alternating"
    );
    let mut samples = BTreeMap::<String, Samples>::new();
    let mut failures = Vec::new();
    let mut report = |line: AgentLine| match line {
        AgentLine::Measure(text) => {
            println!("  {text}");
            add(&mut samples, &text);
        }
        AgentLine::Failure(reason) => failures.push(reason),
        AgentLine::Note(_) | AgentLine::Guest(_) | AgentLine::Done { .. } => {}
    };
    match place {
        Place::Host => {
            Bench {
                files: stage.directory.clone(),
                output: directory.clone(),
                rounds,
            }
            .run(&mut report)?;
        }
        Place::Level1 => {
            let request = Request {
                mode: "bench".to_owned(),
                scenario: "boot".to_owned(),
                arguments: vec![rounds.to_string()],
                show_guest: false,
            };
            let limit = Duration::from_secs(60 + 80 * u64::from(rounds));
            level0::run(&stage, &directory, &request, &BOOT.host, limit, &mut report)?;
        }
    }
    print(&samples);
    for failure in &failures {
        println!("FAIL {failure}");
    }
    println!("logs: {}", directory.display());
    Ok(failures.is_empty())
}

fn add(samples: &mut BTreeMap<String, Samples>, text: &str) {
    let value = |key: &str| {
        text.split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let number = |key: &str| value(key).and_then(|value| value.parse().ok());
    if let (Some(name), Some(time), Some(memory)) =
        (value("vmm"), number("us"), number("memory_kib"))
    {
        let entry = samples.entry(name.to_owned()).or_default();
        entry.microseconds.push(time);
        entry.memory_kib.push(memory);
    }
}

/// The value in the middle; of two in the middle, the lower.
pub(crate) fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

fn print(samples: &BTreeMap<String, Samples>) {
    let base = samples
        .get(BASE)
        .and_then(|samples| median(&samples.microseconds));
    println!(
        "\n{:14} {:>10} {:>10} {:>10} {:>12} {:>22}",
        "", "median", "min", "max", "to microvm", "VMM memory, median"
    );
    for (name, samples) in samples {
        let milliseconds = |value: Option<u64>| {
            value.map_or("-".to_owned(), |value| {
                format!("{} ms", Duration::from_micros(value).as_millis())
            })
        };
        let middle = median(&samples.microseconds);
        let ratio = match (middle, base) {
            (Some(middle), Some(base)) if base > 0 => format!(
                "{:.2}",
                Duration::from_micros(middle).div_duration_f64(Duration::from_micros(base))
            ),
            _ => "-".to_owned(),
        };
        let memory = median(&samples.memory_kib).unwrap_or(0);
        println!(
            "{name:14} {:>10} {:>10} {:>10} {ratio:>12} {:>18} KiB",
            milliseconds(middle),
            milliseconds(samples.microseconds.iter().min().copied()),
            milliseconds(samples.microseconds.iter().max().copied()),
            memory
        );
    }
}

/// Copies the distribution's QEMU with its libraries and firmware into the stage.
pub(crate) fn bundle_qemu(stage: &Stage) -> Result<()> {
    let directory = stage.directory.join("qemu");
    let _ = fs::remove_dir_all(&directory);
    for part in ["lib", "firmware"] {
        fs::create_dir_all(directory.join(part))?;
    }
    copy(Path::new(PROGRAM), &directory.join("qemu-system-x86_64"))?;
    for library in bundle::libraries(Path::new(PROGRAM))? {
        let name = bundle::name(&library)?;
        let name = if name.starts_with("ld-linux") {
            "ld.so".to_owned()
        } else {
            name
        };
        copy(&library, &directory.join("lib").join(name))?;
    }
    for source in FIRMWARE {
        for entry in fs::read_dir(source).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = name.ends_with(".bin") || name == "qboot.rom";
            if wanted && entry.path().is_file() {
                copy(&entry.path(), &directory.join("firmware").join(name))?;
            }
        }
    }
    Ok(())
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    fs::copy(source, target).with_context(|| format!("cannot copy {}", source.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_lower_of_the_middle() {
        assert_eq!(median(&[4, 1, 3, 2]), Some(2));
        assert_eq!(median(&[]), None);
    }
}
