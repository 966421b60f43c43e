//! The verdict on a guest: whether it did what its plan says, from the lines of its console.

use crate::plan::{self, End, Step};
use crate::protocol::{GuestLine, RELAYED};
use anyhow::Result;

/// Console lines that mean a broken guest, wherever they come from.
const FATAL: &[&str] = &[
    "Kernel panic",
    "Oops:",
    "BUG:",
    "Call Trace:",
    "general protection fault",
    "------------[ cut here ]",
    "detected stall",
    "Unhandled fault",
    "soft lockup",
    "INFO: task ",
    "Attempted to kill init",
];

/// Whether a message of Linux tells of a fault that the remapping unit reported, or of an error of
/// its queue.
pub fn is_fault_line(line: &str) -> bool {
    line.contains("DMAR: [")
        || line.contains("DMAR: DRHD: handling fault")
        || line.contains("[INTR-REMAP] Request device")
        || line.contains("VT-d detected")
        || line.contains("DMAR: ERROR")
        || line.contains("DMAR hardware is malfunctioning")
}

/// Whether a line of a kernel's console means that the kernel is broken.
pub fn is_fatal_line(line: &str) -> bool {
    FATAL.iter().any(|pattern| line.contains(pattern))
}

/// Reads a guest's console line by line.
#[derive(Debug)]
pub struct Judge {
    expected: Vec<Expected>,
    ends: Vec<bool>,
    failures: Vec<String>,
    faults_allowed: bool,
    /// Boots that end with a panic.
    crashes: Vec<u32>,
    /// Such a boot has ended, and the next has not begun.
    crashing: bool,
    fatal: bool,
    passed: usize,
}

#[derive(Debug)]
struct Expected {
    boot: u32,
    check: String,
    reported: bool,
}

impl Judge {
    /// A judge of `plan`; `faults_allowed` when the plan causes DMA faults on purpose.
    pub fn new(plan: &str, faults_allowed: bool) -> Result<Self> {
        let steps: Vec<Step> = plan::parse(plan)?;
        let mut expected = Vec::new();
        for (boot, step) in (0_u32..).zip(&steps) {
            for check in &step.checks {
                expected.push(Expected {
                    boot,
                    check: check.to_string(),
                    reported: false,
                });
            }
        }
        let crashes = (0_u32..).zip(&steps);
        let crashes = crashes.filter(|(_, step)| matches!(step.end, End::Crash | End::Kdump));
        Ok(Self {
            expected,
            crashes: crashes.map(|(boot, _)| boot).collect(),
            crashing: false,
            ends: vec![false; steps.len()],
            failures: vec![],
            faults_allowed,
            fatal: false,
            passed: 0,
        })
    }

    /// No [`GuestLine::End`] is expected: the guest leaves by itself after its last check.
    pub fn without_ends(mut self) -> Self {
        self.ends.clear();
        self
    }

    /// Takes a line of the console.
    pub fn line(&mut self, line: &str) {
        match GuestLine::parse(line) {
            Some(GuestLine::Report {
                boot,
                check,
                passed,
                detail,
            }) => self.report(boot, &check, passed, &detail),
            Some(GuestLine::End(boot)) => {
                self.crashing = self.crashes.contains(&boot);
                if let Some(end) = usize::try_from(boot)
                    .ok()
                    .and_then(|boot| self.ends.get_mut(boot))
                {
                    *end = true;
                }
            }
            Some(GuestLine::Begin(_)) => self.crashing = false,
            Some(GuestLine::Ask(_) | GuestLine::Request(_)) => {}
            None if self.crashing || line.starts_with(RELAYED) => {}
            None if is_fatal_line(line) => {
                self.fatal = true;
                self.fail(format!("console: {}", line.trim()));
            }
            None if is_fault_line(line) && !self.faults_allowed => {
                self.fail(format!("console: {}", line.trim()))
            }
            None => {}
        }
    }

    fn report(&mut self, boot: u32, check: &str, passed: bool, detail: &str) {
        let expected = self
            .expected
            .iter_mut()
            .find(|expected| expected.boot == boot && expected.check == check);
        match expected {
            Some(expected) if expected.reported => {
                self.fail(format!("boot {boot}: {check} was reported twice"))
            }
            Some(expected) => {
                expected.reported = true;
                if passed {
                    self.passed += 1;
                } else {
                    self.fail(format!("boot {boot}: {check}: {detail}"));
                }
            }
            None => self.fail(format!("boot {boot}: {check}: {detail} (not in the plan)")),
        }
    }

    fn fail(&mut self, reason: String) {
        // One broken guest can print thousands of lines; the log has them all.
        if self.failures.len() < 10 {
            self.failures.push(reason);
        }
    }

    /// Whether the guest broke, so that waiting for it is in vain.
    pub fn is_over(&self) -> bool {
        self.fatal
    }

    /// Number of checks that passed so far.
    pub fn passed(&self) -> usize {
        self.passed
    }

    /// All reasons against the guest, now that its console has ended.
    pub fn finish(mut self) -> Vec<String> {
        let missing: Vec<String> = self
            .expected
            .iter()
            .filter(|expected| !expected.reported)
            .map(|expected| format!("{} (boot {})", expected.check, expected.boot))
            .collect();
        if !missing.is_empty() {
            self.failures
                .push(format!("no report of {}", missing.join(", ")));
        } else if let Some(boot) = self.ends.iter().position(|end| !end) {
            self.failures.push(format!("boot {boot} did not end"));
        }
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(lines: &[&str]) -> Vec<String> {
        let mut judge = Judge::new("disk>restart;disk>poweroff", false).unwrap();
        for line in lines {
            judge.line(line);
        }
        judge.finish()
    }

    const GOOD: [&str; 4] = [
        "[ 1.0] @nido report 0 disk ok fine",
        "[ 1.1] @nido end 0",
        "@nido report 1 disk ok fine",
        "@nido end 1",
    ];

    #[test]
    fn a_guest_that_reports_everything_passes() {
        assert!(judge(&GOOD).is_empty());
    }

    #[test]
    fn a_panic_is_expected_where_the_plan_has_one_and_nowhere_else() {
        for end in ["crash", "kdump"] {
            let plan = format!("disk>{end};disk>poweroff");
            let mut judge = Judge::new(&plan, false).unwrap();
            let panic = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100";
            for line in [&GOOD[..2], &[panic, "@nido begin 1"], &GOOD[2..]].concat() {
                judge.line(line);
            }
            judge.line(&format!("level 3, guest.log: {panic}"));
            assert!(!judge.is_over());
            judge.line(panic);
            assert!(judge.is_over());
            assert_eq!(judge.finish().len(), 1);
        }
    }

    #[test]
    fn a_missing_report_fails_and_is_named() {
        assert_eq!(judge(&GOOD[..2]), ["no report of disk (boot 1)"]);
    }

    #[test]
    fn a_missing_end_fails() {
        assert_eq!(judge(&GOOD[..3]), ["boot 1 did not end"]);
    }

    #[test]
    fn a_failed_check_fails() {
        assert_eq!(
            judge(&[
                GOOD[0],
                GOOD[1],
                "@nido report 1 disk fail bad hash",
                GOOD[3]
            ]),
            ["boot 1: disk: bad hash"]
        );
    }

    #[test]
    fn a_fault_line_and_a_panic_fail_unless_faults_are_expected() {
        let fault = "DMAR: [DMA Write NO_PASID] Request device [0000:00:03.0] fault addr 0x1000 [fault reason 0x71] x";
        let mut lines = GOOD.to_vec();
        lines.push(fault);
        assert_eq!(judge(&lines).len(), 1);
        lines.push("Kernel panic - not syncing: x");
        assert_eq!(judge(&lines).len(), 2);
        let mut tolerant = Judge::new(">poweroff", true).unwrap();
        tolerant.line(fault);
        tolerant.line("@nido end 0");
        assert!(tolerant.finish().is_empty());
    }
}
