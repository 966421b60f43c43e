//! `cargo xtask boot`: one guest, with a shell or with a check of itself.

use std::io::IsTerminal;

use anyhow::Result;
use lab::scenario::BOOT;

use crate::build::{self, Extras};
use crate::{Where, paths, place};

/// Boots a guest: with a shell on a terminal, else with its self-check.
pub(crate) fn run(wanted: Where, check: bool, options: Vec<String>) -> Result<bool> {
    let interactive = !check && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let stage = build::stage(Extras {
        shell: interactive,
        ..Extras::default()
    })?;
    let place = place::choose(wanted, &stage)?;
    let output = paths::logs()?.join(BOOT.name);
    if interactive {
        println!("a shell follows; it ends with `exit` or Ctrl-D, and Ctrl-A x ends nido at once");
        place.interact(&stage, &output, &options)?;
        return Ok(true);
    }
    println!("standard input is no terminal, so the guest checks itself and powers off");
    let mut show = |line: &str| println!("{line}");
    let verdict = place.run(&BOOT, &stage, &output, &options, &mut show)?;
    let passed = verdict.failures.is_empty();
    for reason in &verdict.failures {
        println!("{reason}");
    }
    println!(
        "{}: {} checks passed in {:.1} s; logs: {}",
        if passed {
            "the guest is sound"
        } else {
            "FAILED"
        },
        verdict.passed,
        verdict.guest_time.as_secs_f64(),
        output.display()
    );
    Ok(passed)
}
