//! Memory that goes back to level 1: by a balloon, and by reports of what is free.

use anyhow::{Context, Result, bail, ensure};

use super::Guest;
use super::agent::Agent;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
/// MiB of what was freed that may be kept: by the kernel for itself, and in blocks with something in use.
const KEPT: usize = 32;
/// MiB of nido's own, and of the guest's memory that is used for something else.
const BESIDES: usize = 64;

/// `reports:MIB`: so much is used and freed, and level 1 has it back. `grow:MIB`: the same by a balloon of that
/// size. `held:MIB:ALL`: in a guest of ALL MiB, nido has no more than is not in that balloon, whatever is
/// used. `shrink:MIB`: the balloon goes, and so much can be used.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let mut words = argument.split(':');
    let what = words.next().unwrap_or_default();
    let sizes: Vec<usize> = words.map(str::parse).collect::<Result<_, _>>()?;
    let mut agent = Agent::open()?;
    match (what, sizes.as_slice()) {
        ("reports", [mib]) => {
            used(*mib)?.and_then(&mut agent, "remember")?;
            // What is free in pieces of less than 2 MiB is not reported.
            agent.request(&format!("given-back less {}", mib * 3 / 5))?;
        }
        ("grow", [mib]) => {
            used(*mib)?.and_then(&mut agent, "remember")?;
            agent.request(&format!("given-back to {mib}"))?;
            let less = mib.checked_sub(KEPT).context("too little")?;
            agent.request(&format!("given-back less {less}"))?;
        }
        ("held", [mib, all]) => {
            let rest = all.checked_sub(*mib).context("too much")?;
            let most = rest + BESIDES;
            used(rest / 2)?.and_then(&mut agent, &format!("most {most}"))?;
        }
        ("shrink", [mib]) => {
            agent.request("given-back to 0")?;
            drop(used(*mib)?);
        }
        _ => bail!("balloon=reports:MIB, grow:MIB, held:MIB:ALL or shrink:MIB"),
    }
    Ok(String::new())
}

/// Memory that is in use.
pub(super) struct InUse(Vec<u8>);

/// Uses so much memory: each page holds something, and nothing else.
pub(super) fn used(mib: usize) -> Result<InUse> {
    let mut memory = vec![0_u8; mib * MIB];
    for (page, number) in memory.chunks_mut(PAGE).zip(1_u64..) {
        ensure!(
            page.iter().all(|byte| *byte == 0),
            "page {number} is not new"
        );
        let [first, ..] = page.as_chunks_mut::<8>().0 else {
            bail!("no page")
        };
        *first = number.to_ne_bytes();
    }
    for (page, number) in memory.chunks(PAGE).zip(1_u64..) {
        ensure!(page.starts_with(&number.to_ne_bytes()), "page {number}");
    }
    Ok(InUse(memory))
}

impl InUse {
    /// Has the agent look, then frees it.
    fn and_then(self, agent: &mut Agent, what: &str) -> Result<()> {
        agent.request(&format!("given-back {what}"))?;
        drop(self.0);
        Ok(())
    }
}
