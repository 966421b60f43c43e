//! The README shows what the example prints.

use std::env;
use std::process::Command;

const README: &str = include_str!("../../README.md");

#[test]
#[ignore = "prints; the other test runs it"]
fn print() {
    crate::main().unwrap();
}

#[test]
fn the_readme_has_what_the_example_prints() {
    let (_, rest) = README.split_once("```text\n").unwrap();
    let (shown, _) = rest.split_once("```").unwrap();
    let run = Command::new(env::current_exe().unwrap())
        .args(["--exact", "readme_test::print", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let printed = String::from_utf8(run.stdout).unwrap();
    assert!(
        printed.contains(shown),
        "iommu/unit/README.md shows another output; renew it with: cargo run -p intel-vtd --example vmm\n{printed}"
    );
}
