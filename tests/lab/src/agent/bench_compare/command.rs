//! The command lines of the VMMs that are compared: each with one vCPU, the same memory, the same
//! kernel (ELF, PVH), initramfs and parameters, the serial port on standard output, and nothing else
//! that it does not need. None has its system calls filtered, since nido has not.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::subject::{Mode, Subject, Vmm};
use crate::agent::bench::{Candidate, MEMORY_MIB, Program, QEMU, words};

/// What every guest's kernel is told. Its clock stands before its lines.
const PARAMETERS: &str = "console=ttyS0 quiet panic=-1 printk.devkmsg=on printk.time=1";

/// The tap, its address and the guest's; for documentation (RFC 5737), so that no real network is
/// meant.
pub(super) const TAP: &str = "bench0";
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const PREFIX: u8 = 24;
const MASK: &str = "255.255.255.0";
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MAC: &str = "52:54:00:12:34:56";

/// A virtio device of a guest.
#[derive(Clone, Copy)]
pub(super) enum Device<'a> {
    None,
    /// A disk that is this file.
    Disk(&'a Path),
    /// The tap, on whose other side a server has this port.
    Net(u16),
}

/// A guest of a VMM.
pub(super) struct Guest<'a> {
    /// Directory with the files.
    pub(super) files: &'a Path,
    /// The kernel among them.
    pub(super) kernel: &'a str,
    /// Directory for files that a VMM wants.
    pub(super) scratch: &'a Path,
    pub(super) subject: Subject,
    /// What the guest does.
    pub(super) plan: &'a str,
    pub(super) device: Device<'a>,
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
        let net = match self.device {
            Device::Net(port) => format!("lab.net={GUEST}/{PREFIX},{HOST}:{port} "),
            Device::None | Device::Disk(_) => String::new(),
        };
        format!("{PARAMETERS} {mode} {net}lab.plan={}", self.plan)
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
            (kernel, path(self.kernel)),
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
        arguments.extend(self.device("--disk path=", &format!("--net tap={TAP}")));
        arguments.extend(self.what(["--kernel", "--initramfs", "--cmdline"]));
        self.candidate(arguments)
    }

    /// The options of the device: `disk` goes before its file.
    fn device(&self, disk: &str, net: &str) -> Vec<String> {
        match self.device {
            Device::None => Vec::new(),
            Device::Disk(path) => words(&format!("{disk}{}", path.display())),
            Device::Net(_) => words(net),
        }
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
        let platform = if mode == Mode::NoUnit { "off" } else { "on" };
        let common = format!("disable-legacy=on,iommu_platform={platform}");
        let device = match self.device {
            Device::None => String::new(),
            Device::Disk(path) => format!(
                " -drive if=none,id=disk,format=raw,file={} -device virtio-blk-pci,drive=disk,{common}",
                path.display()
            ),
            Device::Net(_) => format!(
                " -netdev tap,id=net,ifname={TAP},script=no,downscript=no \
                 -device virtio-net-pci,netdev=net,mac={MAC},romfile=,{common}"
            ),
        };
        let path = |name| self.path(name).display().to_string();
        let what = [path(self.kernel), path("guest.cpio"), self.parameters()];
        let program = Program {
            files: self.files,
            name: program,
        };
        Candidate::qemu(
            vmm.name(),
            program,
            &format!("{machine}{unit}{device}"),
            what,
        )
    }

    fn alioth(&self) -> Candidate {
        let mut arguments = words("boot --cpu count=1 --memory");
        arguments.push(format!("size={MEMORY_MIB}M,thp=on"));
        let net = format!("--net tap,if={TAP},mac={MAC},mtu=1500");
        arguments.extend(self.device("--blk file,path=", &net));
        arguments.extend(self.what(["--pvh", "--initramfs", "--cmdline"]));
        self.candidate(arguments)
    }

    fn cloud_hypervisor(&self) -> Candidate {
        let mut arguments =
            words("--cpus boot=1 --serial tty --console off --seccomp false --memory");
        arguments.push(format!("size={MEMORY_MIB}M"));
        // It would give the tap an address of its own.
        let net = format!("--net tap={TAP},ip={HOST},mask={MASK},mac={MAC}");
        arguments.extend(self.device("--disk image_type=raw,path=", &net));
        arguments.extend(self.what(["--kernel", "--initramfs", "--cmdline"]));
        self.candidate(arguments)
    }

    /// It takes a file, and puts devices on PCI, which it does without otherwise, if it is told to:
    /// the guest's kernel knows no others.
    fn firecracker(&self) -> Result<Candidate> {
        let (drive, interface) = match self.device {
            Device::None => (String::new(), String::new()),
            Device::Disk(path) => (
                format!(
                    "{{\"drive_id\": \"disk\", \"is_root_device\": false, \"is_read_only\": false, \
                     \"path_on_host\": \"{}\"}}",
                    path.display()
                ),
                String::new(),
            ),
            Device::Net(_) => (
                String::new(),
                format!(
                    "{{\"iface_id\": \"net\", \"guest_mac\": \"{MAC}\", \"host_dev_name\": \"{TAP}\"}}"
                ),
            ),
        };
        let path = |name| self.path(name).display().to_string();
        let text = format!(
            "{{\"boot-source\": {{\"kernel_image_path\": \"{}\", \"initrd_path\": \"{}\", \"boot_args\": \"{}\"}}, \
             \"drives\": [{drive}], \"network-interfaces\": [{interface}], \"machine-config\": {{\"vcpu_count\": 1, \"mem_size_mib\": {MEMORY_MIB}}}}}\n",
            path(self.kernel),
            path("guest.cpio"),
            self.parameters()
        );
        let file = self.scratch.join("firecracker.json");
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        let mut arguments = words("--no-api --no-seccomp");
        if !matches!(self.device, Device::None) {
            arguments.push("--enable-pci".to_owned());
        }
        arguments.push("--config-file".to_owned());
        arguments.push(file.display().to_string());
        Ok(self.candidate(arguments))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(vmm: Vmm, mode: Mode) -> Result<String> {
        let guest = Guest {
            kernel: "vmlinux",
            files: Path::new("/f"),
            scratch: Path::new("/s"),
            subject: Subject { vmm, mode },
            plan: ">stay",
            device: Device::Disk(Path::new("/d")),
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
        assert!(!none.contains("iommu") && none.contains("--disk path=/d"));
    }

    #[test]
    fn who_has_no_unit_is_not_measured_with_one() {
        assert!(command(Vmm::Alioth, Mode::NoUnit).is_ok());
        assert!(command(Vmm::Alioth, Mode::Lazy).is_err());
    }
}
