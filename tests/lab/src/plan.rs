//! A guest's plan, which is `lab.plan=` on its command line.
//!
//! A plan is a list of steps separated by `;`, one for each boot. A step is a list of checks
//! separated by `,`, each `name` or `name=argument`, then `>` and how the boot ends: `poweroff`,
//! `restart`, `crash`, which is a panic of the kernel, `kdump`, which is one that starts a crash
//! kernel, `kexec:PARAMETER`, which starts the same kernel again with one more parameter, or `stay`:
//! the guest goes on until it is ended from outside.

use anyhow::{Result, bail};

/// The parameter's name on the command line.
pub const PARAMETER: &str = "lab.plan=";

/// One check of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name, a key of the guest's table of checks.
    pub name: String,
    /// What follows `=`, or nothing.
    pub argument: String,
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.argument.as_str() {
            "" => f.write_str(&self.name),
            argument => write!(f, "{}={argument}", self.name),
        }
    }
}

/// How a boot ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Power off.
    PowerOff,
    /// Reset through the firmware.
    Restart,
    /// A panic of the kernel, in the middle of everything, after which it resets the machine.
    Crash,
    /// The same, after which the kernel starts one that was loaded for that, in memory of its own
    /// (`crashkernel=`).
    Kdump,
    /// Start the kernel again without the firmware, with this parameter added.
    Kexec(String),
    /// Stay, with everything that the checks have left.
    Stay,
}

/// What one boot does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Checks, in order.
    pub checks: Vec<Check>,
    /// Afterwards.
    pub end: End,
}

/// Parses a plan.
pub fn parse(plan: &str) -> Result<Vec<Step>> {
    plan.split(';').map(parse_step).collect()
}

/// Whether a plan, which parses, has a check of this name.
pub fn names(plan: &str, name: &str) -> bool {
    let steps = parse(plan).unwrap_or_default();
    let mut checks = steps.iter().flat_map(|step| &step.checks);
    checks.any(|check| check.name == name)
}

/// Whether its guest goes to another nido while it runs.
pub fn migrates(plan: &str) -> bool {
    let steps = parse(plan).unwrap_or_default();
    let mut checks = steps.iter().flat_map(|step| &step.checks);
    checks.any(|check| check.name == "moves" && check.argument.contains("/migrate"))
}

fn parse_step(step: &str) -> Result<Step> {
    let Some((checks, end)) = step.split_once('>') else {
        bail!("step '{step}' has no '>'")
    };
    let end = match end {
        "poweroff" => End::PowerOff,
        "restart" => End::Restart,
        "crash" => End::Crash,
        "kdump" => End::Kdump,
        "stay" => End::Stay,
        other => match other.strip_prefix("kexec:") {
            Some(parameter) => End::Kexec(parameter.to_owned()),
            None => bail!(
                "step '{step}' ends with '{other}', which is none of poweroff, restart, crash, kdump, stay, kexec:PARAMETER"
            ),
        },
    };
    let checks = checks
        .split(',')
        .filter(|check| !check.is_empty())
        .map(|check| {
            let (name, argument) = check.split_once('=').unwrap_or((check, ""));
            Check {
                name: name.to_owned(),
                argument: argument.to_owned(),
            }
        })
        .collect();
    Ok(Step { checks, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_steps_of_checks_with_an_end() {
        let steps =
            parse("scalable,smp=2>restart;>kexec:intel_iommu=sm_off;legacy>poweroff").unwrap();
        assert_eq!(steps.len(), 3);
        assert_eq!(
            steps[0].checks[1],
            Check {
                name: "smp".into(),
                argument: "2".into()
            }
        );
        assert_eq!(steps[0].checks[1].to_string(), "smp=2");
        assert_eq!(steps[0].end, End::Restart);
        assert!(steps[1].checks.is_empty());
        assert_eq!(steps[1].end, End::Kexec("intel_iommu=sm_off".into()));
        assert_eq!(steps[2].end, End::PowerOff);
    }

    #[test]
    fn a_step_without_a_known_end_is_refused() {
        assert!(parse("scalable").is_err());
        assert!(parse("scalable>sleep").is_err());
        assert_eq!(parse("scalable>stay").unwrap()[0].end, End::Stay);
        assert_eq!(parse("scalable>crash").unwrap()[0].end, End::Crash);
        assert_eq!(parse("scalable>kdump").unwrap()[0].end, End::Kdump);
    }
}
