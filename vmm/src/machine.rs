//! The machine: everything that a configuration asks for, created and wired.

mod acpi;
mod balloon;
pub(crate) mod claims;
mod functions;
mod hotplug;
mod interrupts;
mod map;
mod plugged;
mod saved;
mod settled;
pub(crate) mod unit;

use std::fs::File;
use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use devices::ioapic::IoApic;
use devices::output::Output;
use devices::serial::SerialPort;
use devices::virtio::console::ConsoleSender;
use devices::virtio::mem::MemControl;
use devices::virtio::vhost::WriteLog;
use devices::vtd::VtdMmio;
use kvm_ioctls::VmFd;
use pci::{Apertures, RootComplex};
use vm_memory::{Bytes, GuestAddress};

use crate::assign::{self, Assigner, BoundDevice};
use crate::boot::Images;
use crate::config::Config;
use crate::cpuid::Template;
use crate::event::Event;
use crate::event_loop::Handle;
use crate::host_files::{DeviceFiles, Given, Role};
use crate::irq::{LocalApics, MessageRoutes, Unit};
use crate::layout;
use crate::limits;
use crate::memory::dirty::Writers;
use crate::memory::reclaim::Reclaimer;
use crate::memory::{self, Memory};
use crate::vcpu::{Current, Shared, Vcpu};
use crate::{doorbell, kvm};
pub(crate) use balloon::BalloonSlot;
use claims::Claims;
use functions::{Assignment, Platform};
#[cfg(test)]
pub(crate) use hotplug::Maker;
pub(crate) use hotplug::{HotPlug, HotPlugHold, Unplugged, plug_later};
use interrupts::Interrupts;

/// Work on a machine that stands still. What comes of it is for a client of the control socket.
pub(crate) type Work = Box<dyn FnOnce(&mut Machine) -> Result<String, String> + Send>;

/// Work that gives the guest of a machine that stands still to another process. It is told whether the
/// guest is paused, and so is to stand still there as well.
pub(crate) type HandOver = Box<dyn FnOnce(&mut Machine, bool) -> Handed + Send>;

/// Whose a guest is that was to be handed over, with what a client is told of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Handed {
    /// Another process runs it: it must not go on here.
    Away(String),
    /// It is this one's as before.
    Back(String),
    /// Nobody here can tell: it stands still until somebody decides.
    Unknown(String),
}

/// A whole machine. While its vCPUs run, only a [`Guest`](crate::vm) has it as `&mut`.
pub(crate) struct Machine {
    /// What it was made from.
    config: Config,
    images: Images,
    tables: ::acpi::Tables,
    /// In the order of their APIC ids; empty while they run.
    pub(crate) vcpus: Vec<Vcpu>,
    /// What the vCPUs' threads share.
    pub(crate) shared: Arc<Shared>,
    root: Arc<RootComplex>,
    unit: Option<Arc<Unit>>,
    assigner: Option<Arc<Assigner>>,
    hotplug: Arc<HotPlug>,
    claims: Arc<Claims>,
    writers: Arc<WriteLog>,
    balloon: Arc<BalloonSlot>,
    plugged: Arc<OnceLock<MemControl>>,
    routes: Arc<MessageRoutes>,
    ioapic: Arc<IoApic>,
    serial: Arc<SerialPort>,
    console: Option<ConsoleSender>,
    /// The remapping unit's registers, and its thread.
    window: Option<Arc<VtdMmio>>,
    /// Whether the guest has been started before.
    used: bool,
    vm: Arc<VmFd>,
    /// Keeps guest memory mapped for as long as vCPUs can run.
    memory: Memory,
    /// The file of a snapshot that memory came from.
    source: Option<Arc<File>>,
    /// What its devices have open.
    files: Arc<DeviceFiles>,
}

impl Machine {
    /// Creates the machine, whose memory holds what `saved` does, if that is given, and that has what is
    /// `given` in place of what it would open. What the guest asks of it as a whole goes to `events`;
    /// `event_loop` serves its devices.
    pub(crate) fn new(
        config: &Config,
        saved: Option<&Arc<File>>,
        given: Given,
        events: &Sender<Event>,
        event_loop: &Handle,
    ) -> anyhow::Result<Self> {
        let mut settled = config.clone();
        settled.functions = settled::settle(&config.functions)?;
        let config = &settled;
        let images = images(config, &given)?;
        let Foundation {
            vm,
            cpuid,
            physical_bits,
            memory,
        } = Foundation::new(config, saved, &given)?;
        limits::raise_file_limit();
        // Devices of the host come first: the unit promises nothing that the host's IOMMU does not
        // keep.
        let (host, devices) = open_host(config, &vm)?;
        let local_apics = Arc::new(LocalApics::new(Arc::clone(&vm)));
        let unit = unit::create(config, &devices, &memory, &local_apics, physical_bits)?;
        // Whoever goes on with the machine may have other devices, or none.
        let open = config.iommu.filter(|_| config.assigns());
        let iommu = open
            .zip(unit.as_ref())
            .map(|(open, (_, unit))| unit::settle(open, unit));
        let assigner = if config.assigns() {
            let unit = unit.as_ref().map(|(unit, config)| (unit, config.clone()));
            let iommu = config.iommu.as_ref();
            let ram = (&memory, layout::ram(config.memory.size).len());
            let assigner = Assigner::new(host, devices, ram, unit, iommu, event_loop)?;
            Some(assigner)
        } else {
            None
        };
        let unit = unit.map(|(unit, _)| unit);
        let interrupts = Interrupts::new(&vm, local_apics, unit.clone());
        let routes = interrupts.of_assigned_devices(event_loop)?;
        let root = Arc::new(RootComplex::new(apertures(config, physical_bits)));
        let claims = Claims::new(!config.claimed_later);
        let writers = Arc::<WriteLog>::default();
        let balloon = Arc::<BalloonSlot>::default();
        let plugged = Arc::<OnceLock<MemControl>>::default();
        let files = Arc::<DeviceFiles>::default();
        let platform = Platform {
            root: Arc::clone(&root),
            memory: Arc::clone(&memory),
            unit: unit.clone(),
            ioapic: Arc::clone(&interrupts.ioapic),
            msi: Arc::clone(&interrupts.remapper) as _,
            doorbells: Arc::new(doorbell::KvmDoorbells(Arc::clone(&vm))),
            assignment: Assignment {
                interrupts: Arc::clone(&routes) as _,
                mappings: Arc::new(kvm::KvmSlots::new(Arc::clone(&vm), &memory)),
                assigner: assigner.clone(),
                event_loop: Arc::new(event_loop.clone()),
            },
            invalidations: OnceLock::new(),
            hotplug: Arc::default(),
            claims: Arc::clone(&claims),
            writers: Arc::clone(&writers),
            balloon: Arc::clone(&balloon),
            memory_stays: config.memory.stays(&config.functions, config.assigns()),
            is_served: AtomicBool::new(false),
            reclaimer: Arc::new(Reclaimer::new(&memory, saved)),
            plugged: Arc::clone(&plugged),
            files: Arc::clone(&files),
            given,
            cpus: config.cpus,
        };
        let console = platform.add_functions(&config.functions)?;
        platform.given.close();
        let hotplug = functions::hotplug(platform, &config.functions);
        let ioapic = interrupts.ioapic;
        let output = standard_output()?;
        let serial = SerialPort::new(Arc::clone(&ioapic), layout::COM1_IRQ, output);
        let serial = Arc::new(serial);
        let window = map::window(unit.as_ref())?;
        let bus = map::bus(&root, window.as_ref(), &ioapic, &serial, events)?;
        Ok(Self {
            images,
            tables: acpi::tables(config, physical_bits),
            vcpus: create_vcpus(&vm, config.cpus, &cpuid)?,
            shared: Arc::new(Shared {
                bus,
                accesses: Arc::default(),
                stop: AtomicBool::new(false),
                park: Arc::default(),
                brake: Arc::default(),
                at: (0..config.cpus).map(|_| Current::default()).collect(),
            }),
            root,
            unit,
            assigner,
            hotplug,
            claims,
            writers,
            balloon,
            plugged,
            routes,
            ioapic,
            serial,
            console,
            window,
            used: false,
            vm,
            memory,
            source: saved.cloned(),
            files,
            config: Config {
                iommu: iommu.or(settled.iommu),
                ..settled
            },
        })
    }

    /// The PCI bus.
    pub(crate) fn root(&self) -> &Arc<RootComplex> {
        &self.root
    }

    /// The remapping unit.
    pub(crate) fn unit(&self) -> Option<&Arc<Unit>> {
        self.unit.as_ref()
    }

    /// What assigns devices of the host, if there are iommufds.
    pub(crate) fn assigner(&self) -> Option<&Arc<Assigner>> {
        self.assigner.as_ref()
    }

    /// The remapping unit's registers, and its thread.
    pub(crate) fn window(&self) -> Option<&Arc<VtdMmio>> {
        self.window.as_ref()
    }

    /// The virtual machine of KVM.
    pub(crate) fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Interrupts that KVM sends by itself.
    pub(crate) fn routes(&self) -> &MessageRoutes {
        &self.routes
    }

    /// Has what is typed wait outside of the serial port, which interrupts the guest by itself; or has
    /// it come in again.
    pub(crate) fn hold_input(&self, held: bool) {
        self.serial.hold(held);
    }

    /// What is plugged in and out.
    pub(crate) fn hotplug(&self) -> &Arc<HotPlug> {
        &self.hotplug
    }

    /// The locks of its disks, and its addresses.
    pub(crate) fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// Its balloon, if it has one.
    pub(crate) fn balloon(&self) -> &Arc<BalloonSlot> {
        &self.balloon
    }

    /// Memory that the guest plugs and unplugs, if there is any.
    pub(crate) fn plugged_memory(&self) -> Option<&MemControl> {
        self.plugged.get()
    }

    /// All that writes to its memory.
    pub(crate) fn writers(&self) -> Writers {
        let assigner = self.assigner.as_ref();
        Writers {
            vm: Arc::clone(&self.vm),
            memory: Arc::clone(&self.memory),
            served: Arc::clone(&self.writers),
            assigned: assigner.map(|assigner| Arc::clone(assigner.devices())),
        }
    }

    /// Takes what is typed, to where the configuration has the console. Returns how much there was
    /// room for.
    pub(crate) fn input(&self) -> impl Fn(&[u8]) -> usize + Send + 'static {
        let (console, serial) = (self.console.clone(), Arc::clone(&self.serial));
        move |bytes| match &console {
            // An error means that the console is gone, and the input with it.
            Some(console) => console.send(bytes).unwrap_or(bytes.len()),
            None => serial.push_input(bytes),
        }
    }

    /// Brings vCPUs to their power-on state, if they are not there, and loads the guest: firmware's
    /// work. Devices are in theirs, and [quiet](Self::is_quiet).
    pub(crate) fn boot(&mut self) -> anyhow::Result<()> {
        if self.used {
            for vcpu in &mut self.vcpus {
                vcpu.reset()?;
            }
        }
        self.root
            .assign_bars()
            .context("the PCI apertures are too small for the BARs; remove devices")?;
        self.memory
            .write_slice(&self.tables.bytes, GuestAddress(self.tables.rsdp_address))?;
        let entry = self.images.load(
            &self.memory,
            self.config.memory.size,
            self.tables.rsdp_address,
            self.used,
        )?;
        if let Some(boot_cpu) = self.vcpus.first() {
            boot_cpu.set_entry(&entry)?;
        }
        self.used = true;
        Ok(())
    }

    /// Whether no device touches guest memory any more after
    /// [`reset_devices`](Self::reset_devices).
    pub(crate) fn is_quiet(&self) -> bool {
        self.root.is_quiet() && self.hotplug.is_quiet()
    }

    /// Stops all devices: what they have begun is finished or abandoned, and nothing touches guest
    /// memory afterwards, but for a file that does not answer.
    pub(crate) fn reset_devices(&self) {
        self.root.reset();
        if let Some(unit) = &self.unit {
            unit.reset();
        }
        self.serial.reset();
        self.ioapic.reset();
    }
}

/// What a machine stands on: a virtual machine of KVM with memory.
struct Foundation {
    vm: Arc<VmFd>,
    cpuid: Template,
    /// Width of the guest's physical addresses.
    physical_bits: u8,
    memory: Memory,
}

impl Foundation {
    fn new(config: &Config, saved: Option<&Arc<File>>, given: &Given) -> anyhow::Result<Self> {
        let kvm = kvm::open(config.cpus)?;
        let cpuid =
            Template::new(&kvm, config.cpus).map_err(kvm::failed("reading the supported CPUID"))?;
        let physical_bits = cpuid.physical_bits();
        let further = config.further_memory();
        check_address_space(config.memory.size, further, physical_bits)?;
        let memory = match given.take(&Role::Memory).map(Arc::new) {
            Some(file) => memory::shared::map_again(&config.memory, further, &file)?,
            None => {
                given.permit_opening().context("guest memory")?;
                memory::allocate(&config.memory, further, backing(config), saved)?
            }
        };
        Ok(Self {
            vm: kvm::create_vm(&kvm, &memory)?,
            cpuid,
            physical_bits,
            memory,
        })
    }
}

/// What the guest boots from: what is given, or what is at the paths of the configuration.
fn images(config: &Config, given: &Given) -> anyhow::Result<Images> {
    let initramfs = config.initramfs.as_deref();
    if let Some(kernel) = given.take(&Role::Kernel) {
        let initramfs = match initramfs {
            Some(path) => {
                let file = given.take(&Role::Initramfs);
                Some((file.context("the initramfs is missing")?, path))
            }
            None => None,
        };
        return Ok(Images::of(
            (kernel, &config.kernel),
            initramfs,
            &config.cmdline,
        ));
    }
    let open = match config.claimed_later {
        true => Images::open_regular,
        false => Images::open,
    };
    Ok(open(&config.kernel, initramfs, &config.cmdline)?)
}

/// What guest memory is made of. Devices of the host are bound to an iommufd that is there from the
/// start, also those that are plugged in later.
fn backing(config: &Config) -> memory::Backing {
    if config.shares_memory() {
        memory::Backing::File
    } else {
        memory::Backing::Anonymous
    }
}

/// The host's iommufds, and its devices that are bound to them.
fn open_host(config: &Config, vm: &Arc<VmFd>) -> anyhow::Result<(assign::Host, Vec<BoundDevice>)> {
    let kvm = Arc::new(kvm::KvmVfio::new(Arc::clone(vm)));
    let host = assign::Host::open(&config.iommufds, kvm)?;
    let mut devices = host.bind_all(&config.functions)?;
    devices.extend(host.bind_all(&config.plugged_later)?);
    Ok((host, devices))
}

/// Where the PCI bus is in the guest's address space.
fn apertures(config: &Config, physical_bits: u8) -> Apertures {
    Apertures {
        ecam_base: layout::PCI_ECAM,
        buses: u16::from(config.last_bus()) + 1,
        mmio32: layout::PCI_MMIO32,
        mmio64: layout::pci_mmio64(physical_bits),
    }
}

/// RAM and PCI windows must not meet.
fn check_address_space(ram_size: u64, further: u64, physical_bits: u8) -> anyhow::Result<()> {
    let limit = layout::pci_mmio64(physical_bits).start;
    let end = layout::ram(ram_size)
        .last()
        .map_or(0, |(address, size)| address + size);
    anyhow::ensure!(
        end <= limit,
        "--memory {}M: guests of this CPU have {physical_bits} address bits, which leave room for {}M; write a smaller size",
        ram_size / layout::MIB,
        (limit - (layout::RAM_HOLE.end - layout::RAM_HOLE.start)) / layout::MIB
    );
    if let Some((start, size)) = layout::further(ram_size, further) {
        anyhow::ensure!(
            start.saturating_add(size) <= limit,
            "--device virtio-mem-pci,size={}M: guests of this CPU have {physical_bits} address bits, which leave room for {}M beside --memory {}M; write a smaller size",
            size / layout::MIB,
            limit.saturating_sub(start) / layout::MIB,
            ram_size / layout::MIB
        );
    }
    Ok(())
}

fn create_vcpus(vm: &VmFd, cpus: u8, cpuid: &Template) -> anyhow::Result<Vec<Vcpu>> {
    (0..cpus).map(|id| Ok(Vcpu::new(vm, id, cpuid)?)).collect()
}

/// Standard output without a buffer: the guest's console appears as the guest writes it.
fn standard_output() -> anyhow::Result<Box<dyn Write + Send>> {
    use std::os::fd::AsFd;
    let fd = std::io::stdout().as_fd().try_clone_to_owned();
    let fd = fd.context("standard output cannot be used")?;
    Ok(Box::new(Output::new(File::from(fd))))
}
