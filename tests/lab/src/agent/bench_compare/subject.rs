//! Who is compared: a VMM, and how its guest uses a remapping unit.

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vmm {
    /// This project's.
    Nido,
    /// QEMU's machine without PCI and firmware.
    QemuMicrovm,
    /// QEMU's machine with PCI Express.
    QemuQ35,
    /// alioth.
    Alioth,
    /// cloud-hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
}

impl Vmm {
    const ALL: [Self; 6] = [
        Self::Nido,
        Self::QemuMicrovm,
        Self::QemuQ35,
        Self::Alioth,
        Self::CloudHypervisor,
        Self::Firecracker,
    ];

    /// Name in tables and requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nido => "nido",
            Self::QemuMicrovm => "qemu-microvm",
            Self::QemuQ35 => "qemu-q35",
            Self::Alioth => "alioth",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
        }
    }

    /// The program, or the directory with all that it needs, among the files of level 1.
    pub fn file(self) -> &'static str {
        match self {
            Self::QemuMicrovm | Self::QemuQ35 => "qemu",
            other => other.name(),
        }
    }

    /// Whether it has a unit of Intel's kind.
    pub fn has_unit(self) -> bool {
        matches!(self, Self::Nido | Self::QemuQ35)
    }
}

/// How a guest uses the remapping unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// There is none.
    NoUnit,
    /// First-stage tables; what is unmapped is invalidated later.
    Lazy,
    /// First-stage tables; what is unmapped is invalidated at once.
    Strict,
    /// Second-stage tables; what is unmapped is invalidated at once.
    SecondStage,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NoUnit, Self::Lazy, Self::Strict, Self::SecondStage];

    /// Name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoUnit => "no-unit",
            Self::Lazy => "lazy",
            Self::Strict => "strict",
            Self::SecondStage => "second-stage",
        }
    }

    /// What it is called in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::NoUnit => "no unit",
            Self::Lazy => "first stage, lazy",
            Self::Strict => "first stage, strict",
            Self::SecondStage => "second stage, strict",
        }
    }

    /// How the guest's functions are translated then: kind of table, type of domain.
    pub(super) fn translation(self) -> &'static str {
        match self {
            Self::NoUnit => "none",
            Self::Lazy => "first-stage/DMA-FQ",
            Self::Strict => "first-stage/DMA",
            Self::SecondStage => "second-stage/DMA",
        }
    }

    /// What the guest's kernel is told.
    pub(super) fn parameters(self) -> &'static str {
        match self {
            Self::NoUnit => "",
            Self::Lazy => "intel_iommu=on,sm_on iommu.passthrough=0 iommu.strict=0",
            Self::Strict | Self::SecondStage => {
                "intel_iommu=on,sm_on iommu.passthrough=0 iommu.strict=1"
            }
        }
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// The program.
    pub vmm: Vmm,
    /// Its unit.
    pub mode: Mode,
}

impl Subject {
    /// Name in requests and in what is measured.
    pub fn name(self) -> String {
        format!("{}/{}", self.vmm.name(), self.mode.name())
    }

    /// The subject of this name.
    pub fn parse(name: &str) -> Option<Self> {
        let (vmm, mode) = name.split_once('/')?;
        Some(Self {
            vmm: Vmm::ALL.into_iter().find(|other| other.name() == vmm)?,
            mode: Mode::ALL.into_iter().find(|other| other.name() == mode)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_found_by_its_name() {
        for vmm in Vmm::ALL {
            for mode in Mode::ALL {
                let subject = Subject { vmm, mode };
                assert_eq!(Subject::parse(&subject.name()), Some(subject));
            }
        }
        assert_eq!(Subject::parse("nido/nested"), None);
    }
}
