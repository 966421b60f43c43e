//! The command lines of the VMMs that are compared: each with one vCPU, the same memory, the same
//! kernel (ELF, PVH), initramfs and parameters, the serial port on standard output, and nothing else
//! that it does not need. The kernel of level 1 has no system-call filters.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::subject::{Mode, Subject, Vmm};
use crate::agent::bench::{Candidate, MEMORY_MIB, Program, QEMU, words};

/// What every guest's kernel is told. Its clock stands before its lines.
const PARAMETERS: &str = "console=ttyS0 quiet panic=-1 printk.devkmsg=on printk.time=1";

/// A guest of a VMM.
pub(super) struct Guest<'a> {
    /// Directory with the files.
    pub(super) files: &'a Path,
    /// Directory for files that a VMM wants.
    pub(super) scratch: &'a Path,
    pub(super) subject: Subject,
    /// What the guest does.
    pub(super) plan: &'a str,
}

impl Guest<'_> {
    /// How the VMM is started.
    pub(super) fn command(&self) -> Result<Candidate> {
        let Subject { vmm, mode } = self.subject;
        ensure!(
            mode == Mode::NoUnit || vmm.has_unit(),
            "{} has no remapping unit",
            vmm.name()
        );
        match vmm {
            Vmm::Nido => Ok(self.nido()),
            Vmm::QemuMicrovm | Vmm::QemuQ35 => Ok(self.qemu()),
            Vmm::Alioth => Ok(self.alioth()),
            Vmm::CloudHypervisor => Ok(self.cloud_hypervisor()),
            Vmm::Firecracker => self.firecracker(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    fn parameters(&self) -> String {
        let mode = self.subject.mode.parameters();
        format!("{PARAMETERS} {mode} lab.plan={}", self.plan)
    }

    fn candidate(&self, arguments: Vec<String>) -> Candidate {
        let vmm = self.subject.vmm;
        Candidate {
            name: vmm.name(),
            program: self.path(vmm.file()),
            arguments,
        }
    }

    /// Kernel, initramfs and parameters, each behind its option.
    fn what(&self, [kernel, initramfs, parameters]: [&str; 3]) -> Vec<String> {
        let path = |name| self.path(name).display().to_string();
        let pairs = [
            (kernel, path("vmlinux")),
            (initramfs, path("guest.cpio")),
            (parameters, self.parameters()),
        ];
        let pairs = pairs.into_iter();
        pairs
            .flat_map(|(option, value)| [option.to_owned(), value])
            .collect()
    }

    fn nido(&self) -> Candidate {
        let mut arguments = words(&format!("--memory {MEMORY_MIB}M --cpus 1"));
        arguments.extend(words(match self.subject.mode {
            Mode::NoUnit => "",
            Mode::Lazy | Mode::Strict => "--device intel-iommu,x-flts=on",
            Mode::SecondStage => "--device intel-iommu,x-flts=off",
        }));
        arguments.extend(self.what(["--kernel", "--initramfs", "--cmdline"]));
        self.candidate(arguments)
    }

    fn qemu(&self) -> Candidate {
        let Subject { vmm, mode } = self.subject;
        let (program, machine) = match vmm {
            Vmm::QemuMicrovm => (
                "qemu-system-x86_64-microvm",
                "-machine microvm,rtc=off,pit=off,pic=off,isa-serial=on",
            ),
            _ => (QEMU, "-machine q35,kernel-irqchip=split"),
        };
        let unit = match mode {
            Mode::NoUnit => "",
            Mode::Lazy | Mode::Strict => {
                " -device intel-iommu,intremap=on,aw-bits=48,scalable-mode=on,fsts=on"
            }
            Mode::SecondStage => {
                " -device intel-iommu,intremap=on,aw-bits=48,scalable-mode=on,fsts=off"
            }
        };
        let path = |name| self.path(name).display().to_string();
        let what = [path("vmlinux"), path("guest.cpio"), self.parameters()];
        let program = Program {
            files: self.files,
            name: program,
        };
        Candidate::qemu(vmm.name(), program, &format!("{machine}{unit}"), what)
    }

    fn alioth(&self) -> Candidate {
        let mut arguments = words("boot --cpu count=1 --memory");
        arguments.push(format!("size={MEMORY_MIB}M,thp=on"));
        arguments.extend(self.what(["--pvh", "--initramfs", "--cmdline"]));
        self.candidate(arguments)
    }

    fn cloud_hypervisor(&self) -> Candidate {
        let mut arguments =
            words("--cpus boot=1 --serial tty --console off --seccomp false --memory");
        arguments.push(format!("size={MEMORY_MIB}M"));
        arguments.extend(self.what(["--kernel", "--initramfs", "--cmdline"]));
        self.candidate(arguments)
    }

    /// It takes a file.
    fn firecracker(&self) -> Result<Candidate> {
        let path = |name| self.path(name).display().to_string();
        let text = format!(
            "{{\"boot-source\": {{\"kernel_image_path\": \"{}\", \"initrd_path\": \"{}\", \"boot_args\": \"{}\"}}, \
             \"drives\": [], \"machine-config\": {{\"vcpu_count\": 1, \"mem_size_mib\": {MEMORY_MIB}}}}}\n",
            path("vmlinux"),
            path("guest.cpio"),
            self.parameters()
        );
        let file = self.scratch.join("firecracker.json");
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        let mut arguments = words("--no-api --no-seccomp --config-file");
        arguments.push(file.display().to_string());
        Ok(self.candidate(arguments))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(vmm: Vmm, mode: Mode) -> Result<String> {
        let guest = Guest {
            files: Path::new("/f"),
            scratch: Path::new("/s"),
            subject: Subject { vmm, mode },
            plan: ">stay",
        };
        guest.command().map(|command| command.arguments.join(" "))
    }

    #[test]
    fn the_unit_and_the_guest_s_kernel_agree_on_the_stage() {
        let lazy = command(Vmm::QemuQ35, Mode::Lazy).unwrap();
        assert!(lazy.contains("fsts=on") && lazy.contains("iommu.strict=0"));
        let second = command(Vmm::Nido, Mode::SecondStage).unwrap();
        assert!(second.contains("x-flts=off") && second.contains("iommu.strict=1"));
        let none = command(Vmm::Nido, Mode::NoUnit).unwrap();
        assert!(!none.contains("iommu"));
    }

    #[test]
    fn who_has_no_unit_is_not_measured_with_one() {
        assert!(command(Vmm::Alioth, Mode::NoUnit).is_ok());
        assert!(command(Vmm::Alioth, Mode::Lazy).is_err());
    }
}
