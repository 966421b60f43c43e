//! Samples of benchmarks: values by subject and quantity, their medians and ratios.

use std::collections::BTreeMap;

/// Counts that a line has beside `times`; they become numbers per thousand.
const COUNTS: &[&str] = &["exits", "ioctls", "mmio_exits", "waits"];

/// Times in nanoseconds, other values as they are.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<String, BTreeMap<String, Vec<u64>>>);

impl Samples {
    /// Takes a line of `key=value` words, of which `vmm` says who was measured. With `what` and
    /// `times` it is about something that happened so often, and has counts; else its words are
    /// values, whose names end with their unit.
    pub(crate) fn add(&mut self, line: &str) {
        let words: BTreeMap<&str, &str> = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        let Some(vmm) = words.get("vmm") else { return };
        let own = self.0.entry((*vmm).to_owned()).or_default();
        let mut put = |name: String, value: u64| own.entry(name).or_default().push(value);
        let number = |name: &str| -> Option<u64> { words.get(name)?.parse().ok() };
        if let (Some(what), Some(times)) = (words.get("what"), number("times")) {
            for name in COUNTS {
                if let Some(count) = number(name)
                    && let Some(each) = (count * 1000).checked_div(times)
                {
                    put(format!("{name} per 1000 {what}"), each);
                }
            }
            if let (Some(ioctls), Some(waits)) = (number("ioctls"), number("waits"))
                && let Some(each) = (ioctls * 1000).checked_div(waits)
            {
                put(format!("ioctls per 1000 waits, {what}"), each);
            }
            return;
        }
        for (name, value) in &words {
            if let Some(name) = name.strip_suffix("_us")
                && let Some(value) = nanoseconds(value)
            {
                put(format!("{name} (ns)"), value);
            } else if let Some(name) = name.strip_suffix("_ns")
                && let Ok(value) = value.parse()
            {
                put(format!("{name} (ns)"), value);
            } else if let Ok(value) = value.parse() {
                put((*name).to_owned(), value);
            }
        }
    }

    /// All who were measured.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The values of `what` of `name`.
    pub(crate) fn of(&self, name: &str, what: &str) -> &[u64] {
        let values = self.0.get(name).and_then(|values| values.get(what));
        values.map_or(&[], Vec::as_slice)
    }

    /// Prints the medians: a line for each thing that was measured, a column for `base`, then for
    /// each other its column and the ratio to `base`.
    pub(crate) fn print(&self, base: &str) {
        let others: Vec<&str> = self.names().filter(|name| *name != base).collect();
        print!("\n{:34} {base:>12}", "medians");
        for other in &others {
            print!(" {other:>12} {:>7}", "ratio");
        }
        println!();
        let all: std::collections::BTreeSet<&String> =
            self.0.values().flat_map(BTreeMap::keys).collect();
        for what in all {
            let reference = median(self.of(base, what));
            print!("{what:34} {:>12}", show(reference));
            for other in &others {
                let own = median(self.of(other, what));
                print!(" {:>12} {:>7}", show(own), ratio(own, reference));
            }
            println!();
        }
    }
}

/// `12.5` microseconds.
fn nanoseconds(microseconds: &str) -> Option<u64> {
    let (whole, tenths) = microseconds.split_once('.')?;
    let (whole, tenths): (u64, u64) = (whole.parse().ok()?, tenths.parse().ok()?);
    Some(whole * 1000 + tenths * 100)
}

fn show(value: Option<u64>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

/// The value in the middle; of two in the middle, the lower.
pub(crate) fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// How many times `base` a value is.
pub(crate) fn ratio(own: Option<u64>, base: Option<u64>) -> String {
    // In thousandths, rounded.
    let thousandths = own.zip(base).and_then(|(own, base)| {
        let doubled = own.checked_mul(2000)?.checked_div(base)?;
        Some(doubled.div_ceil(2))
    });
    thousandths.map_or("-".to_owned(), |all| {
        format!("{}.{:03}", all / 1000, all % 1000)
    })
}

/// `1203 (1190–1250) ×0.57`: the median, the least and the greatest value, and the ratio to `base`.
pub(crate) fn cell(own: &[u64], base: &[u64], show: fn(u64) -> String) -> String {
    let Some(middle) = median(own) else {
        return "-".to_owned();
    };
    let mut text = show(middle);
    if let (Some(least), Some(greatest)) = (own.iter().min(), own.iter().max())
        && least != greatest
    {
        text.push_str(&format!(" ({}–{})", show(*least), show(*greatest)));
    }
    let ratio = ratio(Some(middle), median(base));
    if ratio != "-" {
        // Two digits of three.
        text.push_str(&format!(
            " ×{}",
            ratio.get(..ratio.len() - 1).unwrap_or(&ratio)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_lower_of_the_middle() {
        assert_eq!(median(&[4, 1, 3, 2]), Some(2));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn times_become_nanoseconds_and_counts_numbers_per_thousand() {
        let mut samples = Samples::default();
        samples.add("vmm=nido map_1_ns=700 read_4k_us=12.5 memory_kib=9 threads=x");
        samples.add("vmm=nido what=maps-of-256-pages times=50 ioctls=120 0x3b83=120");
        samples.add("vmm=nido what=nothing times=0 ioctls=120");
        samples.add("map_1_ns=800");
        assert_eq!(samples.of("nido", "map_1 (ns)"), [700]);
        assert_eq!(samples.of("nido", "read_4k (ns)"), [12_500]);
        assert_eq!(samples.of("nido", "memory_kib"), [9]);
        assert_eq!(
            samples.of("nido", "ioctls per 1000 maps-of-256-pages"),
            [2400]
        );
        assert_eq!(samples.0["nido"].len(), 4);
    }

    #[test]
    fn a_ratio_needs_both_and_is_rounded() {
        assert_eq!(ratio(Some(1), Some(4)), "0.250");
        assert_eq!(ratio(Some(2), Some(3)), "0.667");
        assert_eq!(ratio(Some(12_500), Some(1000)), "12.500");
        assert_eq!(ratio(Some(1), None), "-");
        assert_eq!(ratio(Some(1), Some(0)), "-");
    }
}
