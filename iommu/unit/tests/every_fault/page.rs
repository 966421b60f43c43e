//! `FAULTS.md`, which is part of the documentation of [`intel_vtd::spec::fault_reason`].

use std::fmt::Write as _;
use std::{env, fs};

use super::case::{Ask, Case, Told};
use super::{NOT_PROVOKED, cases, is_qualified};
use intel_vtd::spec::fault_reason::FaultReason;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/FAULTS.md");

const HEAD: &str = "\
# Which faults a unit gives

Codes and names of section 7.1. A test (`tests/every_fault`) provokes each reason in every way that the table names: it writes
tables into guest memory, has a device make the request, and compares the fault record bit by bit. This page is made of the
cases of that test.

* **FPD in**: the entries whose Fault Processing Disable bit suppresses the record (the reason is *qualified*). The test sets
  that of each. A reason without any is not qualified: it is recorded also where an entry that was read before has FPD set.
* **Translation request**: what a device is told that asks for a translation (ATS) in the same place. *UR* and *CA* are
  Unsupported Request and Completer Abort, and are recorded. The other answers are successes, and are not recorded unless the
  table says so. The test makes these requests, too.
* A **page request** of scalable mode meets the reasons 38h to 43h, 45h to 48h, and 50h to 5Bh in the same places: it is recorded,
  and answered with Invalid Request if it is the last of its group. What is wrong beyond the PASID entry does not concern it. The
  test makes these requests, too.

| code | reason | provoked by | FPD in | translation request |
|---|---|---|---|---|
";

const NOTES: &str = "
¹ No port of this crate makes such requests, but `GuestTables::translate` takes them. There is no record, so the test looks at
the answer and at whether a record is due.

² The PASID is checked before any entry is read. The specification qualifies the reason.

# Reasons that do not apply

| code | reason | why |
|---|---|---|
";

fn page() -> String {
    let mut page = String::from(HEAD);
    for reason in FaultReason::ALL {
        let cases: Vec<&Case> = cases().filter(|case| case.reason == *reason).collect();
        if cases.is_empty() {
            continue;
        }
        let ways: Vec<&str> = cases.iter().map(|case| case.when).collect();
        let mark = if cases.iter().any(|case| matches!(case.ask, Ask::Walk(_))) {
            " ¹"
        } else {
            ""
        };
        writeln!(
            page,
            "| {:02X}h | {reason:?} | {}{mark} | {} | {} |",
            reason.code(),
            ways.join("; "),
            fpd(*reason, &cases),
            told(&cases)
        )
        .unwrap();
    }
    page.push_str(NOTES);
    for (reason, why) in NOT_PROVOKED {
        writeln!(page, "| {:02X}h | {reason:?} | {why} |", reason.code()).unwrap();
    }
    page
}

fn fpd(reason: FaultReason, cases: &[&Case]) -> String {
    if !is_qualified(reason) {
        return "–".to_owned();
    }
    let mut names: Vec<&str> = Vec::new();
    for place in cases.iter().flat_map(|case| case.fpd) {
        if !names.contains(&place.0) {
            names.push(place.0);
        }
    }
    if names.is_empty() {
        return "– ²".to_owned();
    }
    names.join(", ")
}

fn told(cases: &[&Case]) -> &'static str {
    let told = cases.iter().map(|case| case.told);
    match told.max_by_key(|told| *told != Told::Nothing) {
        Some(Told::Unsupported) => "UR",
        Some(Told::Aborted) => "CA",
        Some(Told::NoAccess) => "no access",
        Some(Told::NoAccessRecorded) => "no access; recorded",
        Some(Told::WhatIsPermitted) => "what is permitted",
        Some(Told::Nothing) | None => "–",
    }
}

#[test]
fn the_page_of_faults_is_made_of_the_cases() {
    let page = page();
    if env::var_os("WRITE_FAULTS_PAGE").is_some() {
        fs::write(FILE, &page).unwrap();
    }
    let there = fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        there == page,
        "iommu/unit/FAULTS.md is out of date; renew it with: WRITE_FAULTS_PAGE=1 cargo test -p intel-vtd every_fault"
    );
}
