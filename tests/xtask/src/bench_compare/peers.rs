//! Whom nido is compared with: where their programs come from, and in what they are measured.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::agent::bench_compare::{Mode, Part, Subject, Vmm};

use crate::bench::copy;
use crate::build::Stage;
use crate::newer_qemu::{self, Qemu};
use crate::tools::ALIOTH;

/// Programs that are given by options.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// cloud-hypervisor, static.
    pub(crate) cloud_hypervisor: Option<PathBuf>,
    /// Firecracker, static.
    pub(crate) firecracker: Option<PathBuf>,
}

/// Who is there.
pub(crate) struct Peers {
    /// Emulates level 1, and is a VMM in it.
    pub(crate) qemu: Qemu,
    /// Names with versions.
    pub(crate) titles: Vec<String>,
    vmms: Vec<Vmm>,
}

/// Puts all of them into the stage.
pub(crate) fn provide(stage: &Stage, given: &Given) -> Result<Peers> {
    let qemu = newer_qemu::provide()?;
    let mut vmms = vec![Vmm::Nido, Vmm::QemuMicrovm, Vmm::QemuQ35];
    let mut titles = vec![format!("qemu {}", qemu.version)];
    copy_tree(&qemu.directory, &stage.directory.join("qemu"))?;
    match ALIOTH.provide() {
        Ok(program) => {
            vmms.push(Vmm::Alioth);
            titles.push(ALIOTH.title());
            copy(&program, &stage.directory.join(Vmm::Alioth.file()))?;
        }
        Err(error) => println!("without {}: {error:#}", ALIOTH.title()),
    }
    for (vmm, program) in [
        (Vmm::CloudHypervisor, &given.cloud_hypervisor),
        (Vmm::Firecracker, &given.firecracker),
    ] {
        if let Some(program) = program {
            vmms.push(vmm);
            titles.push(format!("{} as given", vmm.name()));
            copy(program, &stage.directory.join(vmm.file()))?;
        }
    }
    Ok(Peers { qemu, titles, vmms })
}

impl Peers {
    /// Who is measured in this part, in the order of the table.
    pub(crate) fn subjects(&self, part: Part) -> Vec<Subject> {
        let all = self.vmms.iter().flat_map(|vmm| {
            let modes = Mode::ALL.into_iter();
            modes.map(|mode| Subject { vmm: *vmm, mode })
        });
        all.filter(|subject| is_measured(*subject, part)).collect()
    }
}

fn is_measured(subject: Subject, part: Part) -> bool {
    let Subject { vmm, mode } = subject;
    match part {
        // Until its init a guest maps next to nothing.
        Part::First | Part::Boot => mode == Mode::NoUnit || mode == Mode::Lazy && vmm.has_unit(),
        // microvm's devices are q35's.
        Part::Disk | Part::Net => {
            vmm != Vmm::QemuMicrovm && (mode == Mode::NoUnit || vmm.has_unit())
        }
    }
}

fn copy_tree(source: &Path, target: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(target);
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(source).with_context(|| source.display().to_string())? {
        let path = entry?.path();
        let copied = target.join(path.file_name().context("no file name")?);
        if path.is_dir() {
            copy_tree(&path, &copied)?;
        } else {
            copy(&path, &copied)?;
        }
    }
    Ok(())
}
