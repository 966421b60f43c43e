//! `cargo xtask check`: the tests that need no kernel and no guest, in the order in which it is
//! cheap to learn.
//!
//! `cargo xtask test` begins with the same steps.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::build::cargo_here;
use crate::lab_command::Tally;
use crate::process::{Logged, Outcome, last, output, seconds};
use crate::tools::{self, CARGO_DENY, CARGO_MACHETE};
use crate::{apt, paths};

/// The workspace's `rust-version`.
const MINIMUM_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// A command that must succeed.
struct Step {
    name: &'static str,
    /// Gets what the command needs, and the command.
    prepare: fn() -> Result<Prepared>,
}

/// What comes of the preparation of a step.
enum Prepared {
    /// To be run.
    Run(Command),
    /// Not to be had here, for this reason.
    Skip(String),
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        prepare: || cargo(&["fmt", "--all", "--check"]),
    },
    Step {
        name: "unused dependencies",
        prepare: unused_dependencies,
    },
    Step {
        name: "cargo deny",
        prepare: || {
            let mut deny = tools::command(&CARGO_DENY)?;
            deny.args(["--offline", "check", "bans", "licenses", "sources"]);
            Ok(Prepared::Run(deny))
        },
    },
    Step {
        name: "advisories",
        prepare: advisories,
    },
    Step {
        name: "clippy",
        prepare: || {
            apt::install(&["g++"], "lint the fuzz targets")?;
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "--deny",
                "warnings",
            ])
        },
    },
    Step {
        name: "documentation",
        prepare: documentation,
    },
    Step {
        // The component as others get it: with its licences, and without the rest of the tree.
        name: "package",
        prepare: || cargo(&["package", "--package", "intel-vtd", "--allow-dirty"]),
    },
    Step {
        name: "minimum Rust",
        prepare: minimum_rust,
    },
    Step {
        name: "unit tests",
        prepare: || cargo(&["test", "--workspace", "--no-fail-fast"]),
    },
];

/// The command.
pub(crate) fn run(fetch_advisories: bool) -> Result<bool> {
    let start = Instant::now();
    if fetch_advisories {
        output(tools::command(&CARGO_DENY)?.args(["fetch", "db"]))?;
    }
    let tally = run_steps()?;
    println!("all steps took {}", seconds(start.elapsed()));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// Runs every step, whatever became of those before it.
pub(crate) fn run_steps() -> Result<Tally> {
    fs::create_dir_all(paths::logs()?)?;
    let mut tally = Tally::default();
    for step in STEPS {
        tally += step.run()?;
    }
    Ok(tally)
}

fn cargo(arguments: &[&str]) -> Result<Prepared> {
    let mut command = cargo_here()?;
    command.args(arguments);
    Ok(Prepared::Run(command))
}

fn unused_dependencies() -> Result<Prepared> {
    let mut machete = tools::command(&CARGO_MACHETE)?;
    machete.args(["--with-metadata", "."]);
    Ok(Prepared::Run(machete))
}

/// The database is fetched by whoever can reach it, not here: a test does not depend on the
/// network.
fn advisories() -> Result<Prepared> {
    let databases = tools::cargo_home()?.join("advisory-dbs");
    let there = fs::read_dir(&databases).is_ok_and(|mut entries| entries.next().is_some());
    if !there {
        let why = "there is no database; `cargo xtask check --fetch-advisories` gets it where its host can be reached";
        return Ok(Prepared::Skip(why.to_owned()));
    }
    let mut deny = tools::command(&CARGO_DENY)?;
    deny.args(["--offline", "check", "advisories"]);
    Ok(Prepared::Run(deny))
}

fn documentation() -> Result<Prepared> {
    let mut doc = cargo_here()?;
    // Replaces `rustdocflags`, of which the checkout has none.
    doc.env("RUSTDOCFLAGS", "--deny warnings").args([
        "doc",
        "--no-deps",
        "--keep-going",
        "--workspace",
        "--all-features",
    ]);
    Ok(Prepared::Run(doc))
}

/// Builds with the version of Rust that the workspace asks for, unless the other steps use it
/// anyway.
fn minimum_rust() -> Result<Prepared> {
    let running = output(Command::new("rustc").arg("--version"))?;
    if running
        .strip_prefix("rustc ")
        .is_some_and(|version| is_release_of(MINIMUM_RUST, version))
    {
        let why = format!("the other steps use Rust {MINIMUM_RUST}");
        return Ok(Prepared::Skip(why));
    }
    let toolchains = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let Some(toolchain) = toolchains
        .split_whitespace()
        .find(|name| is_release_of(MINIMUM_RUST, name))
    else {
        return Ok(Prepared::Skip(format!(
            "this is {}; `rustup toolchain install {MINIMUM_RUST}` gets Rust {MINIMUM_RUST}",
            running.trim()
        )));
    };
    let mut check = Command::new("rustup");
    check
        .current_dir(paths::root())
        .env("CARGO_TARGET_DIR", paths::target()?.join("minimum-rust"))
        .args(["run", toolchain, "cargo", "check", "--workspace"])
        .arg("--all-targets");
    Ok(Prepared::Run(check))
}

/// Whether `name` is `version` or a patch release of it: `1.95.1 (...)` and
/// `1.95-x86_64-unknown-linux-gnu` are of `1.95`.
fn is_release_of(version: &str, name: &str) -> bool {
    name.strip_prefix(version)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

impl Step {
    fn run(&self) -> Result<Tally> {
        let name = self.name;
        let mut command = match (self.prepare)() {
            Ok(Prepared::Run(command)) => command,
            Ok(Prepared::Skip(why)) => {
                println!("skip {name}  {why}");
                return Ok(Tally::default());
            }
            Err(error) if lab::sys::interrupted() => return Err(error),
            Err(error) => {
                println!("FAIL {name}: {error:#}");
                return Ok(Tally {
                    passed: 0,
                    failed: 1,
                });
            }
        };
        let log = paths::logs()?.join(format!("{}.log", name.replace(' ', "-")));
        let start = Instant::now();
        let logged = Logged {
            title: name,
            log: &log,
            limit: Duration::from_secs(3600),
            count: Some((is_progress, "crates and tests")),
        };
        println!("{name}");
        let outcome = logged.outcome(&mut command)?;
        let tally = tally(&outcome);
        println!(
            "{} {name}  {}, {} passed, {} failed",
            if outcome.passed { "ok  " } else { "FAIL" },
            seconds(start.elapsed()),
            tally.passed,
            tally.failed
        );
        if !outcome.passed {
            let telling: Vec<String> = outcome
                .lines
                .iter()
                .filter(|line| is_telling(line))
                .cloned()
                .collect();
            let shown = if telling.is_empty() {
                &outcome.lines
            } else {
                &telling
            };
            for line in last(shown, 40) {
                println!("     {line}");
            }
            println!("     log: {}", log.display());
        }
        Ok(tally)
    }
}

fn is_progress(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("Compiling") || line.starts_with("Checking") || line.starts_with("test ")
}

/// Whether a line of cargo's output says what failed.
fn is_telling(line: &str) -> bool {
    ["error", "warning:", "Diff in "]
        .iter()
        .any(|start| line.starts_with(start))
        || [" FAILED", "panicked at", "minimal failing input"]
            .iter()
            .any(|part| line.contains(part))
}

/// Counts tests from the closing lines of cargo's test programs; a step without tests counts as
/// one.
fn tally(outcome: &Outcome) -> Tally {
    let mut tally = Tally::default();
    for line in outcome
        .lines
        .iter()
        .filter_map(|line| line.strip_prefix("test result:"))
    {
        let count = |what: &str| -> usize {
            let words: Vec<&str> = line
                .split([' ', ';', '.'])
                .filter(|word| !word.is_empty())
                .collect();
            let found = words.windows(2).find_map(|pair| match pair {
                [number, word] if *word == what => number.parse().ok(),
                _ => None,
            });
            found.unwrap_or(0)
        };
        tally.passed += count("passed");
        tally.failed += count("failed");
    }
    match (outcome.passed, tally.passed, tally.failed) {
        (true, 0, 0) => tally.passed = 1,
        (false, _, 0) => tally.failed = 1,
        _ => {}
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(passed: bool, lines: &[&str]) -> Outcome {
        Outcome {
            passed,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn tests_are_counted_over_all_programs() {
        let tally = tally(&outcome(
            false,
            &[
                "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            ],
        ));
        assert_eq!((tally.passed, tally.failed), (15, 2));
    }

    #[test]
    fn a_step_without_tests_counts_once() {
        assert_eq!(tally(&outcome(true, &[])).passed, 1);
        assert_eq!(tally(&outcome(false, &["error"])).failed, 1);
    }

    #[test]
    fn patch_releases_are_of_their_minor_version() {
        for name in [
            "1.95.0 (f2d3ce0bd 2026-03-21)",
            "1.95-x86_64-unknown-linux-gnu",
        ] {
            assert!(is_release_of("1.95", name), "{name}");
        }
        for name in ["1.9.5", "1.950.0", "stable-x86_64-unknown-linux-gnu", ""] {
            assert!(!is_release_of("1.95", name), "{name}");
        }
    }

    /// Of these cargo-machete says nothing.
    #[test]
    fn every_dependency_of_the_workspace_has_a_member_that_uses_it() {
        let root = fs::read_to_string(paths::root().join("Cargo.toml")).unwrap();
        let (_, rest) = root.split_once("[workspace.dependencies]\n").unwrap();
        let (table, _) = rest.split_once("\n[").unwrap();
        let (_, members) = root.split_once("\nmembers = [").unwrap();
        let (members, _) = members.split_once(']').unwrap();
        let manifests: String = members
            .split(',')
            .map(|member| {
                let member = member.trim().trim_matches('"');
                fs::read_to_string(paths::root().join(member).join("Cargo.toml")).unwrap()
            })
            .collect();
        for line in table.lines() {
            let Some((name, _)) = line.split_once(" = ") else {
                continue;
            };
            let used = manifests.lines().any(|line| {
                line.starts_with(&format!("{name}.workspace"))
                    || line.starts_with(&format!("{name} = {{ workspace"))
            });
            assert!(used, "{name} is used by no member");
        }
    }
}
