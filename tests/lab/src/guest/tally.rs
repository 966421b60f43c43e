//! The cost of this guest's work below it: exits, waits of its remapping unit and ioctls, which the
//! agent counts.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::agent::Agent;

/// Has the agent count while `work` runs, which returns how often it did `what`.
pub(super) fn count(
    agent: &mut Agent,
    what: &str,
    work: impl FnOnce() -> Result<u64>,
) -> Result<u64> {
    agent.request("tally")?;
    let times = work()?;
    agent.request(&format!("tallied what={what} times={times}"))?;
    Ok(times)
}

/// The same, then for as long while nothing but this processor's own timer happens, as `what` with
/// `-idle`.
pub(super) fn count_beside_idle(
    agent: &mut Agent,
    what: &str,
    work: impl FnOnce() -> Result<u64>,
) -> Result<()> {
    let mut took = Duration::ZERO;
    let times = count(agent, what, || {
        let started = Instant::now();
        let times = work()?;
        took = started.elapsed();
        Ok(times)
    })?;
    count(agent, &format!("{what}-idle"), || {
        spin(took);
        Ok(times)
    })?;
    Ok(())
}

/// A processor that sleeps has fewer ticks than one that works.
fn spin(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
}
