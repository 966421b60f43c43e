//! nido's command line for a task: the scenario's, with what the user added taking precedence.

use std::path::{Path, PathBuf};

use super::Task;
use crate::scenario::{Initramfs, Kernel};

/// Options that a command line has once.
const SINGLE: &[&str] = &["--kernel", "--initramfs", "--cmdline", "--memory", "--cpus"];
/// By this parameter of the kernel a guest learns that the user wants so many vCPUs: its own guest gets
/// as many.
pub(crate) const CPUS: &str = "lab.cpus";
/// As many queues as nido gives a disk that says nothing of them, if there are as many vCPUs.
const MOST_QUEUES: u32 = 4;
/// Checks whose outcome depends on the unit's options and on the kernel's parameters.
const UNIT_CHECKS: &[&str] = &[
    "scalable",
    "groups",
    "translation",
    "invalidation",
    "intremap",
    "interrupts",
];

/// What a guest has besides its kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// Arguments of nido: disks and network.
    pub(super) arguments: Vec<String>,
    /// Parameters by which the guest learns of them.
    pub(super) command_line: String,
    /// The taps of its network. The first is in the arguments.
    pub(super) taps: Vec<String>,
}

/// nido's arguments and the plan that its guest is given.
#[derive(Clone, Debug)]
pub(super) struct Invocation {
    pub(super) arguments: Vec<String>,
    pub(super) plan: String,
    /// As in [`Surroundings`].
    pub(super) taps: Vec<String>,
}

/// File name of an initramfs.
fn initramfs_name(kind: Initramfs) -> Option<&'static str> {
    match kind {
        Initramfs::Plain => Some("guest.cpio"),
        Initramfs::Kexec => Some("kexec.cpio"),
        Initramfs::Cloud => Some("cloud.cpio"),
        Initramfs::Debian => Some("debian-initrd"),
        Initramfs::Tools => Some("tools.cpio"),
        Initramfs::KexecTools => Some("kexec-tools.cpio"),
        Initramfs::Shell => Some("shell.cpio"),
        Initramfs::Host => Some("host.cpio"),
        Initramfs::HostKexec => Some("host-kexec.cpio"),
        Initramfs::None => None,
    }
}

impl Task {
    /// The kernel's file.
    pub fn kernel(&self) -> PathBuf {
        self.files.join(match self.scenario.kernel {
            Kernel::Vmlinux => "vmlinux",
            Kernel::BzImage => "bzImage",
            Kernel::Cloud => "cloud-vmlinuz",
            Kernel::Debian => "debian-vmlinuz",
            Kernel::Payload => "payload",
        })
    }

    /// The initramfs, if there is one.
    pub fn initramfs(&self) -> Option<PathBuf> {
        initramfs_name(self.scenario.initramfs).map(|name| self.files.join(name))
    }

    /// The user's value of an option: of `--name value` or `--name=value`, the last.
    fn own(&self, option: &str) -> Option<&str> {
        let mut found = None;
        let mut words = self.extra.iter();
        while let Some(word) = words.next() {
            if word == option {
                found = words.next().map(String::as_str).or(found);
            } else if let Some(value) = word
                .strip_prefix(option)
                .and_then(|rest| rest.strip_prefix('='))
            {
                found = Some(value);
            }
        }
        found
    }

    fn has_own_unit(&self) -> bool {
        self.extra.iter().any(|word| {
            let value = word.strip_prefix("--device=").unwrap_or(word);
            value == "intel-iommu" || value.starts_with("intel-iommu,")
        })
    }

    /// A plan, without what the user's options make uncertain.
    fn adapt(&self, plan: &str) -> String {
        let steps: Vec<String> = plan.split(';').map(|step| self.adapt_step(step)).collect();
        steps.join(";")
    }

    fn adapt_step(&self, plan: &str) -> String {
        let uncertain = self.has_own_unit() || self.own("--cmdline").is_some();
        let cpus = self.own("--cpus");
        if !uncertain && cpus.is_none() {
            return plan.to_owned();
        }
        let (checks, end) = plan.split_once('>').unwrap_or(("", plan));
        let checks: Vec<String> = checks
            .split(',')
            .filter_map(|check| {
                let name = check.split('=').next().unwrap_or(check);
                match (name, cpus) {
                    ("smp", Some(cpus)) => Some(format!("smp={cpus}")),
                    ("disk" | "disk-queues" | "net-queues", Some(cpus)) if check != name => {
                        let queues = cpus.parse().unwrap_or(1).min(MOST_QUEUES);
                        Some(format!("{name}={queues}"))
                    }
                    _ if uncertain && UNIT_CHECKS.contains(&name) => None,
                    _ => Some(check.to_owned()),
                }
            })
            .collect();
        format!("{}>{end}", checks.join(","))
    }
}

impl Invocation {
    /// For a guest that carries out its plan, or for one with a shell.
    pub(super) fn new(task: &Task, surroundings: &Surroundings, shell: bool) -> Self {
        let plan = task.scenario.plan;
        Self::with_plan(task, surroundings, shell, plan)
    }

    /// The same with another plan.
    pub(super) fn with_plan(
        task: &Task,
        surroundings: &Surroundings,
        shell: bool,
        plan: &str,
    ) -> Self {
        let plan = task.adapt(plan);
        let scenario = &task.scenario;
        let mut command_line = format!(
            "console=ttyS0 printk.devkmsg=on panic=-1 {} {}",
            scenario.command_line, surroundings.command_line
        );
        command_line.push_str(&if shell {
            " quiet lab.shell=1".to_owned()
        } else {
            format!(" lab.plan={plan}")
        });
        if let Some(cpus) = task.own("--cpus") {
            command_line.push_str(&format!(" {CPUS}={cpus}"));
        }
        if let Some(own) = task.own("--cmdline") {
            command_line.push(' ');
            command_line.push_str(own);
        }
        let default = |option: &str| -> Option<String> {
            match option {
                "--kernel" => Some(task.kernel().display().to_string()),
                "--initramfs" => task.initramfs().map(|path| path.display().to_string()),
                "--memory" => Some(scenario.memory.to_owned()),
                "--cpus" => Some(scenario.cpus.to_string()),
                _ => (scenario.kernel != Kernel::Payload).then(|| command_line.clone()),
            }
        };
        let mut arguments = Vec::new();
        for option in SINGLE {
            // The user's parameters are part of the command line already.
            let own = task
                .own(option)
                .filter(|_| *option != "--cmdline")
                .map(str::to_owned);
            if let Some(value) = own.or_else(|| default(option)) {
                arguments.extend([(*option).to_owned(), value]);
            }
        }
        if let Some(unit) = scenario.unit
            && !task.has_own_unit()
        {
            arguments.extend(["--device".to_owned(), unit.to_owned()]);
        }
        arguments.extend(surroundings.arguments.iter().cloned());
        arguments.extend(
            scenario
                .arguments
                .iter()
                .map(|argument| (*argument).to_owned()),
        );
        arguments.extend(without_single(&task.extra));
        Self {
            arguments,
            plan,
            taps: surroundings.taps.clone(),
        }
    }
}

/// The user's options that may be repeated.
fn without_single(extra: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = extra.iter();
    while let Some(word) = words.next() {
        if SINGLE.contains(&word.as_str()) {
            words.next();
        } else if !SINGLE
            .iter()
            .any(|option| word.starts_with(&format!("{option}=")))
        {
            kept.push(word.clone());
        }
    }
    kept
}

/// A command line as a person would type it.
pub(super) fn quoted(program: &Path, arguments: &[String]) -> String {
    let mut text = program.display().to_string();
    for argument in arguments {
        let plain = argument
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_=/.,:".contains(c));
        text.push_str(&if plain {
            format!(" {argument}")
        } else {
            format!(" '{argument}'")
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::BOOT;

    fn task(extra: &[&str]) -> Task {
        Task {
            scenario: BOOT,
            files: PathBuf::from("/f"),
            output: PathBuf::new(),
            scratch: PathBuf::new(),
            extra: extra.iter().map(|word| (*word).to_owned()).collect(),
            show_guest: false,
        }
    }

    fn invoke(extra: &[&str]) -> Invocation {
        Invocation::new(&task(extra), &Surroundings::default(), false)
    }

    fn values<'a>(invocation: &'a Invocation, option: &str) -> Vec<&'a str> {
        let pairs = invocation.arguments.windows(2);
        pairs
            .filter(|pair| pair[0] == option)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    #[test]
    fn an_own_option_replaces_the_scenario_s() {
        let invocation = invoke(&["--cpus", "4", "--memory=1G", "-v", "--device", "edu"]);
        assert_eq!(values(&invocation, "--cpus"), ["4"]);
        assert_eq!(values(&invocation, "--memory"), ["1G"]);
        assert_eq!(values(&invocation, "--kernel"), ["/f/vmlinux"]);
        assert!(invocation.arguments.ends_with(&[
            "-v".to_owned(),
            "--device".to_owned(),
            "edu".to_owned()
        ]));
        assert!(invocation.plan.contains("smp=4"));
        assert!(invocation.plan.contains("translation=first-stage"));
    }

    #[test]
    fn an_own_unit_replaces_the_scenario_s_and_its_checks() {
        let invocation = invoke(&["--device", "intel-iommu,x-flts=off"]);
        let units: Vec<&str> = values(&invocation, "--device")
            .into_iter()
            .filter(|value| value.starts_with("intel-iommu"))
            .collect();
        assert_eq!(units, ["intel-iommu,x-flts=off"]);
        assert!(!invocation.plan.contains("translation"));
        assert!(invocation.plan.contains("disk"));
    }

    #[test]
    fn own_vcpus_are_in_every_step_of_a_plan_and_known_to_the_guest() {
        let plan = "smp=2,disk=2,edu>kexec:a,b;disk,disk-queues=1>poweroff";
        let surroundings = Surroundings::default();
        let invocation = Invocation::with_plan(&task(&["--cpus=8"]), &surroundings, false, plan);
        let expected = "smp=8,disk=4,edu>kexec:a,b;disk,disk-queues=4>poweroff";
        assert_eq!(invocation.plan, expected);
        assert!(values(&invocation, "--cmdline")[0].contains(" lab.cpus=8"));
    }

    #[test]
    fn own_parameters_come_last() {
        let invocation = invoke(&["--cmdline", "a=b c"]);
        let command_line = values(&invocation, "--cmdline");
        assert_eq!(command_line.len(), 1);
        assert!(
            command_line[0].starts_with("console=ttyS0 ") && command_line[0].ends_with(" a=b c")
        );
    }
}
