//! The check `net-queues`: a network device with several queue pairs, each of which interrupts.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::interrupts::{Interrupt, on_each_processor};
use super::{Guest, network};

/// Bytes exchanged by each processor.
const STREAM: usize = 1 << 20;

/// The interface has as many queue pairs as the argument says, which is one for each processor. A
/// thread on each of these has a stream of its own echoed, all at the same time, and each pair has
/// interrupted for packets that came.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let expected: usize = argument.parse().context("net-queues=NUMBER")?;
    let text = guest.parameter("lab.net");
    let text = text.context("lab.net= is missing on the command line")?;
    let (address, server) = network::parse(text)?;
    let name = network::configure(&address)?;
    let queues = fs::read_dir(format!("/sys/class/net/{name}/queues"))?;
    let receive = queues
        .flatten()
        .filter(|queue| queue.file_name().to_string_lossy().starts_with("rx-"))
        .count();
    ensure!(receive == expected, "{name} has {receive} queue pairs");
    let device = fs::canonicalize(format!("/sys/class/net/{name}/device"))?;
    let device = device.file_name().and_then(|name| name.to_str());
    let device = device.context("the interface's device has no name")?;
    let before = counts(device, expected)?;
    on_each_processor(expected, |processor| {
        network::stream(server, STREAM)
            .with_context(|| format!("the stream of processor {processor}"))
    })?;
    let after = counts(device, expected)?;
    let mut grown = Vec::new();
    for (queue, (before, after)) in before.iter().zip(&after).enumerate() {
        ensure!(after > before, "pair {queue} has not interrupted");
        grown.push((after - before).to_string());
    }
    Ok(format!("{name}: interrupts by pair: {}", grown.join(" ")))
}

/// How often each pair has interrupted for packets that came.
fn counts(device: &str, pairs: usize) -> Result<Vec<u64>> {
    let count = |pair| {
        let interrupt = Interrupt::find(&format!("{device}-input.{pair}"))?;
        Ok(interrupt.counts.iter().sum())
    };
    (0..pairs).map(count).collect()
}
