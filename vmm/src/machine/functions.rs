//! The functions on the PCI bus.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use anyhow::Context as _;
use devices::edu::Edu;
use devices::ioapic::IoApic;
use devices::vfio::{EventLoop, GuestMappings, HostEvent, HostListener, VfioPci, VfioPciParts};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonOptions};
use devices::virtio::blk::{Block, BlockOptions};
use devices::virtio::console::{Console, ConsoleInput, ConsoleSender};
use devices::virtio::mem::{Mem, MemControl, MemOptions};
use devices::virtio::net::{Net, NetOptions, Pairs, VhostNet};
use devices::virtio::pci::VirtioPci;
use devices::virtio::rng::Rng;
use devices::virtio::vhost::{
    Invalidations, Place, UserBlockOptions, UserNetOptions, VhostUser, WriteLog,
};
use devices::virtio::vsock::Vsock;
use devices::{Dma, Doorbells, InterruptRoutes};
use intel_vtd::SourceId;
use pci::{Bdf, MsiSink, PciFunction, RootComplex, RootPort};

use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::balloon::BalloonSlot;
use super::claims::Claims;
use super::hotplug::{HotPlug, Maker};
use super::plugged::PluggedMemory;
use super::settled::places;
use super::standard_output;
use crate::assign::Assigner;
use crate::config::stays::SERVED;
use crate::config::{
    FunctionConfig, FunctionKind, MemoryDeviceConfig, Served, VfioConfig, VhostUserConfig,
};
use crate::host_files::{DeviceFiles, Given};
use crate::irq::{self, Unit};
use crate::memory::Memory;
use crate::memory::reclaim::Reclaimer;

/// INTA#, the only pin that functions here use.
const INTA: u8 = 0;

/// How many queues a device has at the most if the user does not say it. Each takes a thread and a
/// vector.
const QUEUES: u16 = 4;

/// What functions are wired to.
pub(super) struct Platform {
    pub(super) root: Arc<RootComplex>,
    pub(super) memory: Memory,
    pub(super) unit: Option<Arc<Unit>>,
    pub(super) ioapic: Arc<IoApic>,
    pub(super) msi: Arc<dyn MsiSink>,
    pub(super) doorbells: Arc<dyn Doorbells>,
    pub(super) assignment: Assignment,
    /// Of the devices that the kernel serves behind the unit, once there was one.
    pub(super) invalidations: OnceLock<Arc<Invalidations>>,
    /// What this is a part of, once all functions are there.
    pub(super) hotplug: Arc<OnceLock<Weak<HotPlug>>>,
    /// Of disks.
    pub(super) claims: Arc<Claims>,
    /// What the kernel writes to memory for devices that it serves.
    pub(super) writers: Arc<WriteLog>,
    /// The balloon, if there is one.
    pub(super) balloon: Arc<BalloonSlot>,
    /// Another process serves a device, or has served one.
    pub(super) is_served: AtomicBool,
    /// Why no memory can be given back to the host page by page, if that is so.
    pub(super) memory_stays: Option<&'static str>,
    /// What gives it back, if it can be.
    pub(super) reclaimer: Arc<Reclaimer>,
    /// Memory that is plugged and unplugged, if there is a device for that.
    pub(super) plugged: Arc<OnceLock<MemControl>>,
    /// What devices have open.
    pub(super) files: Arc<DeviceFiles>,
    /// What they have in place of what they would open.
    pub(super) given: Given,
    /// How many vCPUs there are.
    pub(super) cpus: u8,
}

/// What assigned devices are given besides.
pub(super) struct Assignment {
    pub(super) interrupts: Arc<dyn InterruptRoutes>,
    pub(super) mappings: Arc<dyn GuestMappings>,
    /// If there are iommufds.
    pub(super) assigner: Option<Arc<Assigner>>,
    pub(super) event_loop: Arc<dyn EventLoop>,
}

impl Platform {
    /// Creates all functions, root ports first. Returns where to type, if one of them is a console.
    pub(super) fn add_functions(
        &self,
        functions: &[FunctionConfig],
    ) -> anyhow::Result<Option<ConsoleSender>> {
        let mut console = None;
        for (config, bdf) in places(functions) {
            if config.kind == FunctionKind::RootPort {
                self.root.add_port(bdf, Arc::clone(&self.msi))?;
            }
        }
        for (config, bdf) in places(functions) {
            if config.kind != FunctionKind::RootPort {
                let function = self.function(bdf, &config.kind, &mut console)?;
                self.root.add(bdf, function)?;
            }
        }
        let ports = named_ports(functions, &self.root);
        for config in functions {
            let Some(bus) = &config.bus else { continue };
            let (_, port) = ports
                .iter()
                .find(|(name, _)| name == bus)
                .with_context(|| format!("bus={bus}: there is no such root port"))?;
            let function = self.function(port.function_address(), &config.kind, &mut console)?;
            self.root.plug(port, function)?;
        }
        Ok(console)
    }

    fn function(
        &self,
        bdf: Bdf,
        kind: &FunctionKind,
        console: &mut Option<ConsoleSender>,
    ) -> anyhow::Result<Arc<dyn PciFunction>> {
        match kind {
            FunctionKind::Disk(disk) => {
                let options = BlockOptions {
                    path: disk.path.clone(),
                    readonly: disk.readonly,
                    serial: disk.id.clone(),
                    queues: disk.queues.unwrap_or(self.usual_queues()),
                };
                let option = || format!("--disk path={}", disk.path.display());
                let block = match self.given.disk(&disk.path) {
                    Some(file) => Block::of(file, &options),
                    None => {
                        self.given.permit_opening().with_context(option)?;
                        Block::open_unlocked(&options)
                    }
                };
                let block = block.with_context(option)?;
                self.claims.add(bdf, block.claim()).with_context(option)?;
                self.files.add_disk(block.claim());
                self.virtio(bdf, block)
            }
            FunctionKind::Net(net) => {
                let options = NetOptions {
                    tap: net.tap.clone(),
                    mac: net.mac,
                    pairs: match net.queues {
                        Some(queues) => Pairs::Exactly(queues),
                        None => Pairs::UpTo(self.usual_queues()),
                    },
                };
                let option = || format!("--net tap={}", net.tap);
                let given = self.given.tap(&net.tap);
                if given.is_none() {
                    self.given.permit_opening().with_context(option)?;
                }
                if net.vhost {
                    let place = self.place(bdf);
                    let device = match given {
                        Some(queues) => VhostNet::of(&options, &place, queues),
                        None => VhostNet::open(&options, &place),
                    };
                    let device = device.with_context(|| format!("{},vhost=on", option()))?;
                    self.writers.add(device.writers());
                    self.files.add_tap(&net.tap, device.files());
                    return self.virtio(bdf, device);
                }
                let device = match given {
                    Some(queues) => Net::of(&options, queues),
                    None => Net::open(&options),
                };
                let device = device.with_context(option)?;
                self.files.add_tap(&net.tap, device.files());
                self.virtio(bdf, device)
            }
            FunctionKind::Vsock(cid) => {
                let option = || format!("--vsock cid={cid}");
                let vsock = Vsock::open(*cid, self.place(bdf)).with_context(option)?;
                let address = vsock.address();
                self.claims.add_address(address).with_context(option)?;
                self.writers.add([vsock.writer()]);
                self.virtio(bdf, vsock)
            }
            FunctionKind::VhostUser(device) => {
                let device = self.served(device).with_context(|| device.to_string())?;
                self.virtio(bdf, device)
            }
            FunctionKind::Rng => self.virtio(bdf, Rng::new()),
            FunctionKind::Balloon(options) => {
                let balloon = self.balloon(*options);
                self.physical(bdf, balloon.context("--device virtio-balloon")?)
            }
            FunctionKind::Memory(config) => {
                let device = self.memory_device(*config);
                self.virtio(bdf, device.context("--device virtio-mem-pci")?)
            }
            FunctionKind::Console => {
                let (sender, input) = ConsoleInput::channel().context("--device virtio-console")?;
                *console = Some(sender);
                self.virtio(bdf, Console::new(input, standard_output()?))
            }
            FunctionKind::Edu(options) => Ok(Edu::new(
                bdf,
                self.dma(bdf),
                Arc::clone(&self.msi),
                self.ioapic.line(self.interrupt_pin(bdf)?),
                self.unit.clone(),
                *options,
            )
            .context("--device edu")?),
            FunctionKind::RootPort => {
                anyhow::bail!("--device pcie-root-port: a port cannot be behind another")
            }
            FunctionKind::Vfio(device) => self.assigned(bdf, device),
        }
    }

    /// How many queues a device has at the most if the user does not say it.
    fn usual_queues(&self) -> u16 {
        u16::from(self.cpus).min(QUEUES)
    }

    /// A device that another process serves.
    fn served(&self, config: &VhostUserConfig) -> anyhow::Result<VhostUser> {
        if self.unit.is_some() {
            anyhow::bail!("{}", config.with_a_unit());
        }
        let gives_back = self.balloon.get().is_some() || self.plugged.get().is_some();
        anyhow::ensure!(!gives_back, SERVED);
        self.is_served.store(true, Ordering::Relaxed);
        let (socket, memory) = (config.socket.clone(), Arc::clone(&self.memory));
        Ok(match config.device {
            Served::Disk { queues } => {
                let queues = queues.map_or(1..=self.usual_queues(), |wanted| wanted..=wanted);
                VhostUser::block(&UserBlockOptions { socket, queues }, memory)?
            }
            Served::Net { mac } => VhostUser::net(&UserNetOptions { socket, mac }, memory)?,
        })
    }

    /// The balloon, of which there is one.
    fn balloon(&self, options: BalloonOptions) -> anyhow::Result<Balloon> {
        if let Some(why) = self.memory_stays {
            anyhow::bail!(why);
        }
        anyhow::ensure!(!self.is_served.load(Ordering::Relaxed), SERVED);
        let balloon = Balloon::new(options, Arc::clone(&self.reclaimer) as _)?;
        self.balloon.set(balloon.control())?;
        Ok(balloon)
    }

    /// The device whose region of memory is behind RAM.
    fn memory_device(&self, config: MemoryDeviceConfig) -> anyhow::Result<Mem> {
        let region = self.memory.iter().last().context("no memory")?;
        let options = MemOptions {
            address: region.start_addr().raw_value(),
            size: config.size,
            block: config.block,
            requested: config.requested,
        };
        let memory = PluggedMemory {
            reclaimer: Arc::clone(&self.reclaimer),
            assigner: self.assignment.assigner.clone(),
            memory: Arc::clone(&self.memory),
        };
        let device = Mem::new(&options, Arc::new(memory))?;
        let is_first = self.plugged.set(device.control()).is_ok();
        anyhow::ensure!(is_first, "there is one already");
        Ok(device)
    }

    fn virtio(
        &self,
        bdf: Bdf,
        device: impl VirtioDevice + 'static,
    ) -> anyhow::Result<Arc<dyn PciFunction>> {
        self.virtio_by(bdf, self.dma(bdf), device)
    }

    /// A virtio device that takes physical addresses: in front of it there is no unit.
    fn physical(
        &self,
        bdf: Bdf,
        device: impl VirtioDevice + 'static,
    ) -> anyhow::Result<Arc<dyn PciFunction>> {
        self.virtio_by(bdf, Dma::direct(Arc::clone(&self.memory)), device)
    }

    fn virtio_by(
        &self,
        bdf: Bdf,
        dma: Dma,
        device: impl VirtioDevice + 'static,
    ) -> anyhow::Result<Arc<dyn PciFunction>> {
        let (msi, doorbells) = (Arc::clone(&self.msi), Arc::clone(&self.doorbells));
        let routes = Arc::clone(&self.assignment.interrupts);
        let device = Box::new(device);
        Ok(VirtioPci::new(bdf, dma, msi, routes, doorbells, device).context("virtio device")?)
    }

    fn assigned(&self, bdf: Bdf, config: &VfioConfig) -> anyhow::Result<Arc<dyn PciFunction>> {
        let parts = &self.assignment;
        let assigner = parts
            .assigner
            .as_ref()
            .with_context(|| format!("{config}: this machine was started without iommufd"))?;
        let device = assigner.bind(config)?;
        let function = VfioPci::new(VfioPciParts {
            bdf,
            device: Arc::clone(device.cdev()),
            shown: device.shown(),
            routes: Arc::clone(&parts.interrupts),
            mappings: Arc::clone(&parts.mappings),
            listener: Some(self.listener(bdf)),
            event_loop: Arc::clone(&parts.event_loop),
        })
        .with_context(|| config.to_string())?;
        let pin = self.interrupt_pin(bdf)?;
        let line = self.ioapic.line_with_end(pin, function.end_of_interrupt());
        function.connect_intx(line);
        // Only now does it reach memory: it was reset before.
        assigner.add(SourceId(bdf.as_u16()), device)?;
        Ok(function)
    }

    /// Has the guest give the assigned device at `bdf` up when the host wants it back.
    fn listener(&self, bdf: Bdf) -> HostListener {
        let hotplug = Arc::clone(&self.hotplug);
        Box::new(move |event| {
            let plug = hotplug.get().and_then(Weak::upgrade);
            if let (HostEvent::Requested, Some(plug)) = (event, plug) {
                plug.give_back(bdf);
            }
        })
    }

    /// The pin of the IOAPIC that INTA# of the function at `bdf` is wired to.
    fn interrupt_pin(&self, bdf: Bdf) -> anyhow::Result<u8> {
        let ports = self.root.ports();
        let port = ports.iter().find(|port| port.function_address() == bdf);
        let gsi = match port {
            Some(port) => acpi::intx_gsi_behind(port.address().device(), bdf.device(), INTA),
            None => acpi::intx_gsi(bdf.device(), INTA),
        };
        u8::try_from(gsi).context("INTx pin")
    }

    /// How the kernel reaches memory for the function at `bdf`.
    fn place(&self, bdf: Bdf) -> Place {
        let memory = Arc::clone(&self.memory);
        let Some(unit) = &self.unit else {
            return Place::Direct(memory);
        };
        // A unit that nobody observes has less to do: it is told with the first device.
        let invalidations = self.invalidations.get_or_init(|| {
            let invalidations = Arc::<Invalidations>::default();
            unit.observe_translations(Arc::clone(&invalidations) as _);
            invalidations
        });
        Place::Behind {
            memory,
            invalidations: Arc::clone(invalidations),
            source: SourceId(bdf.as_u16()),
        }
    }

    /// How the function at `bdf` reaches memory.
    fn dma(&self, bdf: Bdf) -> Dma {
        let dma = match &self.unit {
            Some(unit) => unit.port(SourceId(bdf.as_u16())),
            None => Dma::direct(Arc::clone(&self.memory)),
        };
        dma.with_interrupt_requests(irq::requests_of(bdf, Arc::clone(&self.msi)))
    }
}

impl Maker for Platform {
    fn make(&self, bdf: Bdf, kind: &FunctionKind) -> anyhow::Result<Arc<dyn PciFunction>> {
        // No console is plugged in.
        self.function(bdf, kind, &mut None)
    }

    fn release(&self, bdf: Bdf) {
        if let Some(assigner) = &self.assignment.assigner {
            assigner.remove(SourceId(bdf.as_u16()));
        }
    }
}

/// Hot-plug for the machine that `platform` has made from `functions`.
pub(super) fn hotplug(platform: Platform, functions: &[FunctionConfig]) -> Arc<HotPlug> {
    let root = Arc::clone(&platform.root);
    let ports = named_ports(functions, &root);
    let behind = functions.iter().filter_map(|function| {
        let bus = function.bus.as_ref()?;
        let (_, port) = ports.iter().find(|(name, _)| name == bus)?;
        Some((port.function_address(), function))
    });
    let all: Vec<_> = places(functions)
        .map(|(function, bdf)| (bdf, function))
        .chain(behind)
        .collect();
    let place = Arc::clone(&platform.hotplug);
    let hotplug = HotPlug::new(Arc::clone(&root), Box::new(platform), ports.clone(), &all);
    // It is set once only.
    let _ = place.set(Arc::downgrade(&hotplug));
    hotplug
}

/// The root ports among `functions`, by their names. `root` was made from them.
fn named_ports(functions: &[FunctionConfig], root: &RootComplex) -> Vec<(String, Arc<RootPort>)> {
    let ports = functions
        .iter()
        .filter(|function| function.kind == FunctionKind::RootPort);
    // A port without a name cannot be configured.
    let names = ports.map(|port| port.id.clone().unwrap_or_default());
    names.zip(root.ports()).collect()
}
