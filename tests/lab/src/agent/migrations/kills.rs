//! A guest that is saved, and migrates from there many times: each time one side is killed, or the connection
//! ends, at each step and at moments of chance.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Journey;
use super::proxy::Place;
use super::trial::{Loss, Moment, Side, Trials};
use crate::agent::moved::Moved;
use crate::sys;

/// What nido says when it has got so far, in order.
const STEPS: &[&str] = &["round 1", "paused", "ready", "yours", "running"];
/// How many moments of chance there are for each side.
const CHANCES: u32 = 6;
/// Kinds of frames of the source, and of the target.
const FORTH: &[u8] = &[0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07];
const BACK: &[u8] = &[0x81, 0x83, 0x84, 0x86];
/// Those that have no payload, so that nothing is in the middle of them.
const EMPTY: &[u8] = &[0x06, 0x07];
/// Failures after which no more are looked for.
const ENOUGH: usize = 6;

/// All trials; at last the guest goes on from where it was saved.
pub(super) fn go(journey: &Journey<'_>, nido: &mut Child) -> Result<(Moved, String)> {
    let way = journey.way;
    way.save(nido, false)?;
    let kept = journey.output.join("trials");
    fs::create_dir_all(&kept)?;
    // In memory, so that who looks at a log sees at once what is new.
    let directory = way.scratch.join("trials");
    let seed = sys::monotonic_ns();
    let mut trials = Trials {
        journey,
        directory: directory.join("undisturbed"),
    };
    let (_, time) = trials.run(Loss::Nothing).context("undisturbed")?;
    let (mut failures, mut summary) = (Vec::new(), Vec::new());
    for loss in losses(seed, time) {
        let name = loss.name();
        trials.directory = directory.join(&name);
        match trials.run(loss) {
            Ok((fate, _)) => {
                let fate = fate.map_or("nobody".to_owned(), |side| format!("{side:?}"));
                summary.push(format!("{name}: {}", fate.to_lowercase()));
            }
            Err(error) => {
                keep(&trials.directory, &kept.join(&name))?;
                failures.push(format!("{name}: {error:#}"));
                summary.push(format!("{name}: FAILED: {error:#}"));
            }
        }
        fs::remove_dir_all(&trials.directory)?;
        fs::write(kept.join("summary.txt"), summary.join("\n") + "\n")?;
        if failures.len() >= ENOUGH || sys::interrupted() {
            break;
        }
    }
    if !failures.is_empty() {
        bail!("of {} trials: {}", summary.len(), failures.join("; "));
    }
    crate::agent::moved::copy_disks(&way.copies(), way.scratch)?;
    let said = format!("{} trials, seed {seed}, each {time:?}", summary.len());
    Ok((way.restore()?, said))
}

/// Copies the files of one directory to another.
fn keep(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// What is lost in each trial, with a migration that takes `time` if nothing is.
fn losses(seed: u64, time: Duration) -> Vec<Loss> {
    let sides = [Side::Source, Side::Target];
    let mut losses = Vec::new();
    for step in STEPS {
        losses.extend(sides.map(|side| Loss::Killed(side, Moment::Step(step))));
    }
    for (kinds, back) in [(FORTH, false), (BACK, true)] {
        for kind in kinds.iter().copied() {
            let place = Place { back, kind };
            losses.extend(sides.map(|side| Loss::Killed(side, Moment::Frame(place))));
            losses.push(Loss::Connection(place, false));
            if !back && !EMPTY.contains(&kind) {
                losses.push(Loss::Connection(place, true));
            }
        }
    }
    let mut chance = seed | 1;
    for _ in 0..CHANCES {
        for side in sides {
            chance = chance
                .wrapping_mul(0x5851_F42D_4C95_7F2D)
                .wrapping_add(0x1405_7B7E_F767_814F);
            // The time until the answer is seen is a little more than the migration's.
            let part = u32::try_from(chance >> 48).unwrap_or(0);
            let moment = Moment::After(time * part / (1 << 16));
            losses.push(Loss::Killed(side, moment));
        }
    }
    losses
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_trial_has_a_name_of_its_own() {
        let losses = losses(7, Duration::from_secs(1));
        let names: BTreeSet<String> = losses.iter().map(|loss| loss.name()).collect();
        assert_eq!(names.len(), losses.len());
        assert!(names.contains("source-at-ready"));
        assert!(names.contains("target-at-0x86"));
    }
}
