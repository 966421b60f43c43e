//! `cargo xtask bench shadow`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Result;
use lab::agent::init::Request;
use lab::protocol::AgentLine;
use lab::scenario::SHADOW;

use crate::bench::{bundle_qemu, median};
use crate::build::{self, Extras};
use crate::{level0, paths};

/// Who the others are compared with.
const BASE: &str = "qemu";
/// Time of one run of one VMM.
const LIMIT: u64 = 150;

/// By VMM and by what was measured, the values in nanoseconds or as numbers.
type Samples = BTreeMap<String, BTreeMap<String, Vec<u64>>>;

/// The benchmark. It needs the devices of level 0, so that it always runs in level 1.
pub(crate) fn run(rounds: u32) -> Result<bool> {
    let stage = build::stage(Extras::default())?;
    level0::install()?;
    bundle_qemu(&stage)?;
    let directory = paths::logs()?.join("bench-shadow");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    println!(
        "one vCPU, 512 MiB, second-stage tables, caching mode, strict; an assigned nvme and an assigned edu; \
         {rounds} rounds, alternating"
    );
    let mut samples = Samples::new();
    let mut failures = Vec::new();
    let mut report = |line: AgentLine| match line {
        AgentLine::Measure(text) => {
            println!("  {text}");
            add(&mut samples, &text);
        }
        AgentLine::Failure(reason) => failures.push(reason),
        AgentLine::Note(_) | AgentLine::Guest(_) | AgentLine::Done { .. } => {}
    };
    let request = Request {
        mode: "bench".to_owned(),
        scenario: SHADOW.name.to_owned(),
        arguments: vec![rounds.to_string()],
        show_guest: false,
    };
    let limit = Duration::from_secs(60 + 2 * LIMIT * u64::from(rounds));
    level0::run(
        &stage,
        &directory,
        &request,
        &SHADOW.host,
        limit,
        &mut report,
    )?;
    print(&samples);
    for failure in &failures {
        println!("FAIL {failure}");
    }
    println!("logs: {}", directory.display());
    Ok(failures.is_empty())
}

/// The guest writes `name_ns=`, `name_us=`; the agent counts ioctls, which become a number per thousand maps.
fn add(samples: &mut Samples, text: &str) {
    let words: BTreeMap<&str, &str> = text
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .collect();
    let Some(vmm) = words.get("vmm") else { return };
    let mut put = |name: &str, value: u64| {
        let vmm = samples.entry((*vmm).to_owned()).or_default();
        vmm.entry(name.to_owned()).or_default().push(value);
    };
    let number = |name: &str| -> Option<u64> { words.get(name)?.parse().ok() };
    if let (Some(pages), Some(maps), Some(ioctls)) =
        (number("pages"), number("maps"), number("ioctls"))
        && maps > 0
    {
        put(
            &format!("ioctls per 1000 maps of {pages} pages"),
            ioctls * 1000 / maps,
        );
        return;
    }
    for (name, value) in &words {
        if let Some(name) = name.strip_suffix("_ns")
            && let Ok(value) = value.parse()
        {
            put(&format!("{name} (ns)"), value);
        }
        if let Some(name) = name.strip_suffix("_us")
            && let Some((whole, tenths)) = value.split_once('.')
            && let (Ok(whole), Ok(tenths)) = (whole.parse::<u64>(), tenths.parse::<u64>())
        {
            put(&format!("{name} (ns)"), whole * 1000 + tenths * 100);
        }
    }
}

fn print(samples: &Samples) {
    let none = BTreeMap::new();
    let base = samples.get(BASE).unwrap_or(&none);
    for (vmm, values) in samples.iter().filter(|(vmm, _)| *vmm != BASE) {
        println!("\n{:34} {vmm:>12} {BASE:>12} {:>8}", "medians", "ratio");
        for (name, values) in values {
            let own = median(values);
            let other = base.get(name).and_then(|values| median(values));
            let show = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
            println!(
                "{name:34} {:>12} {:>12} {:>8}",
                show(own),
                show(other),
                ratio(own, other)
            );
        }
    }
}

fn ratio(own: Option<u64>, other: Option<u64>) -> String {
    match (own, other) {
        (Some(own), Some(other)) if other > 0 => {
            let (own, other) = (Duration::from_nanos(own), Duration::from_nanos(other));
            format!("{:.3}", own.div_duration_f64(other))
        }
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_nanoseconds_and_ioctls_a_number_per_thousand_maps() {
        let mut samples = Samples::new();
        add(&mut samples, "vmm=nido map_1_ns=700 read_4k_us=12.5");
        add(
            &mut samples,
            "vmm=nido pages=256 maps=50 ioctls=120 0x3b83=120",
        );
        let nido = &samples["nido"];
        assert_eq!(nido["map_1 (ns)"], [700]);
        assert_eq!(nido["read_4k (ns)"], [12_500]);
        assert_eq!(nido["ioctls per 1000 maps of 256 pages"], [2400]);
        assert_eq!(nido.len(), 3);
    }

    #[test]
    fn a_ratio_needs_both() {
        assert_eq!(ratio(Some(1), Some(4)), "0.250");
        assert_eq!(ratio(Some(1), None), "-");
        assert_eq!(ratio(Some(1), Some(0)), "-");
    }
}
