//! The state of a machine whose parts have all been stopped, part by part.
//!
//! What can still send an interrupt or write to memory is saved first, the local APICs after it, memory
//! last. It is restored in the same order, before anything runs.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use intel_vtd::UnitState;
use state::{RestoreError, SaveError, Section, Sections};
use vm_memory::GuestMemoryBackend as _;

use super::Machine;
use crate::config::{Config, FileSource, FunctionKind};
use crate::host_files::Role;
use crate::memory::Memory;
use crate::vcpu;

const UNIT: &str = "intel-vtd";
const IOAPIC: &str = "ioapic";
const SERIAL: &str = "serial";
const CLOCK: &str = "clock";

/// How long the unit of a machine that was just made may take to be idle.
const IDLE: Duration = Duration::from_secs(1);

impl Machine {
    /// What the machine is like. It is paused, and its vCPUs are here. What the guest has asked of the
    /// remapping unit may be carried out for that.
    ///
    /// # Errors
    /// The part that cannot be saved, and why.
    pub(crate) fn save(&self) -> Result<Sections, String> {
        let mut sections = Sections::default();
        // Before the unit, which may have to record that one is blocked.
        self.end_lost_interrupts()
            .map_err(|error| late(IOAPIC, error))?;
        if let Some(unit) = &self.unit {
            let state = unit.save().map_err(|error| late(UNIT, error))?;
            let section = Section::new(UNIT, UnitState::VERSION, &state);
            sections.add(UNIT, section.map_err(|error| late(UNIT, error))?);
        }
        // After the unit, which tells them of invalidations and of answers to page requests.
        let functions = self
            .root
            .save()
            .map_err(|(name, error)| late(&name, error))?;
        for (name, section) in functions {
            sections.add(name, section);
        }
        let serial = self.serial.save().map_err(|error| late(SERIAL, error))?;
        sections.add(SERIAL, serial);
        let ioapic = self.ioapic.save().map_err(|error| late(IOAPIC, error))?;
        sections.add(IOAPIC, ioapic);
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            let name = vcpu_name(id);
            sections.add(
                name.clone(),
                vcpu.save().map_err(|error| late(&name, error))?,
            );
        }
        let clock = vcpu::save_clock(&self.vm, &self.vcpus);
        sections.add(CLOCK, clock.map_err(|error| late(CLOCK, error))?);
        Ok(sections)
    }

    /// Ends level-triggered interrupts whose handlers are over: a vCPU that is stopped between the end of
    /// an interrupt and the exit for it keeps the exit to itself. An end can have the next interrupt be
    /// sent, which may reach nobody: each vector is ended once.
    fn end_lost_interrupts(&self) -> Result<(), SaveError> {
        let mut ended = Vec::new();
        loop {
            let vectors = vcpu::unfinished(&self.vcpus)?;
            let mut lost = self.ioapic.in_service();
            lost.retain(|vector| !vectors.contains(*vector) && !ended.contains(vector));
            if lost.is_empty() {
                return Ok(());
            }
            lost.iter().for_each(|vector| self.ioapic.eoi(*vector));
            ended.extend(lost);
        }
    }

    /// Becomes the machine that `sections` are of, paused. This one was just made, and has run nothing.
    ///
    /// # Errors
    /// The part that is not like the saved one, and the first difference. Nothing is to be done with the
    /// machine then.
    pub(crate) fn restore(&mut self, mut sections: Sections) -> anyhow::Result<()> {
        // As at a start: functions decode where firmware would have them, until they are restored.
        self.root
            .assign_bars()
            .context("the PCI apertures are too small for the BARs")?;
        if let Some(window) = &self.window {
            let idle = window.park(Instant::now() + IDLE);
            anyhow::ensure!(
                idle,
                "the remapping unit is at work before anything has run"
            );
        }
        if let Some(unit) = &self.unit {
            let section = take(&mut sections, UNIT)?;
            let state: UnitState = section.read(UNIT, UnitState::VERSION).context(UNIT)?;
            unit.restore(&state).context(UNIT)?;
        }
        self.root
            .restore(&mut sections)
            .map_err(|(name, error)| anyhow::Error::from(error).context(name))?;
        // All of its pins are masked until then, whatever is driven.
        let ioapic = take(&mut sections, IOAPIC)?;
        self.ioapic.restore(&ioapic).context(IOAPIC)?;
        let serial = take(&mut sections, SERIAL)?;
        self.serial.restore(&serial).context(SERIAL)?;
        let clock = take(&mut sections, CLOCK)?;
        vcpu::restore_clock(&self.vm, &self.vcpus, &clock).context(CLOCK)?;
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            let name = vcpu_name(id);
            let section = take(&mut sections, &name)?;
            vcpu.restore(&section).context(name)?;
        }
        if let Some((name, section)) = sections.left() {
            anyhow::bail!(
                "{name}: the saved machine has {} there, and this one nothing",
                section.kind()
            );
        }
        self.used = true;
        self.shared.park.ask();
        self.hold_input(true);
        // Nothing has come or gone yet.
        let _ = self.hotplug.freeze();
        Ok(())
    }

    /// What makes such a machine again: what it was made from, with what is plugged in now, and with
    /// paths that mean the same anywhere.
    pub(crate) fn config(&self) -> Config {
        let mut config = self.config.clone();
        config.functions.retain(|function| function.bus.is_none());
        config.functions.extend(self.hotplug.plugged());
        config.control = None;
        config.claimed_later = false;
        config.plugged_later.clear();
        let paths = [&mut config.kernel]
            .into_iter()
            .chain(&mut config.initramfs);
        paths.for_each(make_absolute);
        for function in &mut config.functions {
            match &mut function.kind {
                FunctionKind::Disk(disk) => make_absolute(&mut disk.path),
                FunctionKind::VhostUser(device) => make_absolute(&mut device.socket),
                _ => {}
            }
        }
        for iommufd in &mut config.iommufds {
            // Which one is the host's to say.
            iommufd.source = FileSource::Path(intel_vtd_host::IOMMUFD_PATH.into());
        }
        config
    }

    /// Guest memory.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What it has open that another process of this host needs to have the machine: its memory, if that is in
    /// a file of its own, what it boots from, and what its devices have.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn open_files(&self) -> io::Result<Vec<(Role, File)>> {
        let mut files = Vec::new();
        if let Some(file) = crate::memory::shared::file(&self.memory) {
            files.push((Role::Memory, file.try_clone()?));
        }
        let (kernel, initramfs) = self.images.files()?;
        files.push((Role::Kernel, kernel));
        files.extend(initramfs.map(|file| (Role::Initramfs, file)));
        files.extend(self.files.open()?);
        Ok(files)
    }

    /// The file of a snapshot that memory came from.
    pub(crate) fn source(&self) -> Option<&Arc<File>> {
        self.source.as_ref()
    }

    /// Whether nobody but this process maps guest memory.
    pub(crate) fn has_private_memory(&self) -> bool {
        self.memory
            .iter()
            .all(|region| region.file_offset().is_none())
    }
}

/// It fails only without a current directory: what is relative then leads nowhere here, too.
fn make_absolute(path: &mut PathBuf) {
    if let Ok(absolute) = std::path::absolute(&*path) {
        *path = absolute;
    }
}

fn vcpu_name(id: usize) -> String {
    format!("vcpu{id}")
}

fn take(sections: &mut Sections, name: &str) -> anyhow::Result<Section> {
    let section: Result<_, RestoreError> = sections.take(name);
    section.with_context(|| name.to_owned())
}

fn late(name: &str, error: impl std::fmt::Display) -> String {
    format!("{name}: {error}")
}
