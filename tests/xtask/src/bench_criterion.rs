//! `cargo xtask bench iommu` and `bench host`: criterion's figures for the remapping unit and for
//! assigned devices, as a table with ratios.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::build::cargo_here;
use crate::paths;
use crate::process::Logged;

/// One command's benchmarks.
pub(crate) struct Suite {
    title: &'static str,
    log: &'static str,
    cargo: &'static [&'static str],
    /// What groups are compared with, other than their first case.
    bases: &'static [(&'static str, &'static str)],
}

/// `bench iommu`.
pub(crate) const IOMMU: Suite = Suite {
    title: "bench iommu",
    log: "bench-iommu.log",
    cargo: &["--package", "intel-vtd", "--bench", "speed"],
    bases: &[
        ("read8", "raw"),
        ("sweep", "raw"),
        ("threads", "1"),
        ("copy4k", "raw"),
        ("pin", "copy-128k"),
        ("virtio4k", "raw"),
        ("queue", "page"),
    ],
};

/// `bench host`.
pub(crate) const HOST: Suite = Suite {
    title: "bench host",
    log: "bench-host.log",
    cargo: &[
        "--package",
        "intel-vtd-host",
        "--bench",
        "host",
        "--features",
        "fake-host",
    ],
    bases: &[],
};

/// Descriptors in a round of the group "queue".
const BATCH: f64 = 255.0;

/// The command: cases whose names contain `filter`.
pub(crate) fn run(suite: &Suite, filter: Option<&str>) -> Result<bool> {
    let logs = paths::logs()?;
    fs::create_dir_all(&logs)?;
    let log = logs.join(suite.log);
    let step = Logged {
        title: suite.title,
        log: &log,
        limit: Duration::from_secs(3600),
        count: Some((|line| line.contains("time:"), "cases")),
    };
    let mut command = cargo_here()?;
    command
        .arg("bench")
        .args(suite.cargo)
        .arg("--")
        .args(filter);
    let cases = cases(&step.run(&mut command)?);
    if cases.is_empty() {
        bail!("no case ran; the output is in {}", log.display());
    }
    print(suite, &cases);
    Ok(true)
}

/// Name of a case, and nanoseconds: low, middle, high.
type Case = (String, [f64; 3]);

/// The estimates in criterion's output. A long name stands on a line of its own.
fn cases(lines: &[String]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut above = "";
    for line in lines {
        if let Some((name, figures)) = line.split_once("time:") {
            let name = if name.trim().is_empty() { above } else { name };
            if let Some(times) = times(figures) {
                cases.push((name.trim().to_owned(), times));
            }
        }
        above = line;
    }
    cases
}

/// `[1.1 ns 1.2 ns 1.3 µs]` in nanoseconds.
fn times(text: &str) -> Option<[f64; 3]> {
    let words: Vec<&str> = text.trim().trim_matches(['[', ']']).split(' ').collect();
    let mut times = words.chunks(2).map(|pair| {
        let [number, unit] = pair else { return None };
        let factor = match *unit {
            "ps" => 1e-3,
            "ns" => 1.0,
            "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            _ => return None,
        };
        Some(number.parse::<f64>().ok()? * factor)
    });
    Some([times.next()??, times.next()??, times.next()??])
}

fn print(suite: &Suite, cases: &[Case]) {
    let middles: BTreeMap<&str, f64> = cases
        .iter()
        .map(|(name, [_, middle, _])| (name.as_str(), *middle))
        .collect();
    println!(
        "\n{:30} {:>10} {:>19} {:>8} {:>10}",
        "", "time", "low to high", "ratio", "more"
    );
    for (name, [low, middle, high]) in cases {
        let group = name.split('/').next().unwrap_or_default();
        let mut bases = suite.bases.iter();
        let base = match bases.find(|(known, _)| *known == group) {
            Some((_, base)) => middles.get(format!("{group}/{base}").as_str()),
            None if suite.bases.is_empty() => first_of(group, cases),
            None => None,
        };
        let (ratio, more) = base.map_or((String::new(), String::new()), |base| {
            (
                format!("{:.2}", middle / base),
                format!("{:+.1} ns", middle - base),
            )
        });
        let range = format!("{low:.1} to {high:.1}");
        print!("{name:30} {middle:>7.1} ns {range:>19} {ratio:>8} {more:>10}");
        if group == "queue" {
            // Millions, as there are 1000 nanoseconds in a microsecond.
            print!(
                "   {:.1} million descriptors a second",
                BATCH * 1e3 / middle
            );
        }
        println!();
    }
}

/// The middle of the first case of a group.
fn first_of<'a>(group: &str, cases: &'a [Case]) -> Option<&'a f64> {
    let first = cases
        .iter()
        .find(|(name, _)| name.split('/').next() == Some(group));
    first.map(|(_, [_, middle, _])| middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_found_below_and_beside_names() {
        let lines = [
            "read8/raw               time:   [8.1 ns 8.2 ns 8.3 ns]",
            "                        change: [-1% +0% +1%]",
            "queue/a-name-that-does-not-fit",
            "                        time:   [990.0 ns 1.5 µs 2.0 µs]",
        ];
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(
            cases(&lines),
            [
                ("read8/raw".to_owned(), [8.1, 8.2, 8.3]),
                (
                    "queue/a-name-that-does-not-fit".to_owned(),
                    [990.0, 1500.0, 2000.0]
                ),
            ]
        );
    }

    #[test]
    fn what_is_no_estimate_is_left_out() {
        for bad in ["", "[1 ns 2 ns]", "[1 h 2 h 3 h]", "[a ns b ns c ns]"] {
            assert_eq!(times(bad), None, "{bad}");
        }
    }
}
