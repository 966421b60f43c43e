//! A small machine for the tests of moves: vCPUs, memory, and a window in which the guest tells
//! how it gets on.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use devices::ioapic::IoApic;
use state::{MachineState, MemoryFile, Sections};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::signal::Killable;

use super::*;
use crate::boot::CpuState;
use crate::bus::Bus;
use crate::config::MemoryConfig;
use crate::cpuid::Template;
use crate::memory::{self, Memory};
use crate::vcpu::{Current, Shared};
use crate::{kvm, signals};

const CODE: u64 = 0x10_0000;
/// Memory that is not RAM: a number written there is what the guest tells, and stops it.
const WINDOW: u64 = 0xd000_0000;
/// Longer than any test takes.
const HANG: Duration = Duration::from_secs(120);

/// What the guest has told.
#[derive(Default)]
struct Told {
    shared: std::sync::OnceLock<Weak<Shared>>,
    /// A bit for each number.
    numbers: AtomicU32,
}

impl DeviceMmio for Told {
    fn mmio_read(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &[u8]) {
        let number = data.first().copied().unwrap_or(0);
        self.numbers.fetch_or(1 << number, Ordering::SeqCst);
        if let Some(shared) = self.shared.get().and_then(Weak::upgrade) {
            shared.stop.store(true, Ordering::SeqCst);
        }
    }
}

struct NoMessages;

impl pci::MsiSink for NoMessages {
    fn signal(&self, _requester: pci::Bdf, _address: u64, _data: u32) {}
}

/// A machine whose vCPUs do not run at the moment.
pub(crate) struct Machine {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) memory: Memory,
    shared: Arc<Shared>,
    told: Arc<Told>,
}

impl Machine {
    /// A fresh one. `None` on a host without KVM.
    pub(crate) fn new(cpus: u8) -> Option<Self> {
        let config = MemoryConfig::plain(4 << 20);
        let memory =
            memory::allocate(&config, 0, memory::Backing::Anonymous, None).expect("memory");
        Self::with_memory(cpus, memory)
    }

    /// The same with this memory.
    pub(crate) fn with_memory(cpus: u8, memory: Memory) -> Option<Self> {
        let Ok(host) = kvm::open(cpus) else {
            eprintln!("skipped: this host has no usable /dev/kvm");
            return None;
        };
        signals::install_kick().expect("a handler");
        let vm = kvm::create_vm(&host, &memory).expect("a virtual machine");
        let template = Template::new(&host, cpus).expect("a CPUID table");
        let vcpu = |id| Vcpu::new(&vm, id, &template).expect("a vCPU");
        let vcpus = (0..cpus).map(vcpu).collect();
        let told = Arc::<Told>::default();
        let requester = pci::Bdf::from_requester_id(0xff00);
        let mut bus = Bus::new(IoApic::new(Arc::new(NoMessages), requester));
        bus.add_mmio(WINDOW, 0x1000, Arc::clone(&told) as _)
            .expect("free");
        let shared = Arc::new(Shared {
            bus,
            accesses: Arc::default(),
            stop: AtomicBool::new(false),
            park: Arc::default(),
            brake: Arc::default(),
            at: (0..cpus).map(|_| Current::default()).collect(),
        });
        let _ = told.shared.set(Arc::downgrade(&shared));
        Some(Self {
            vm,
            vcpus,
            memory,
            shared,
            told,
        })
    }

    /// Has all vCPUs begin with `code`, and with what `prepare` puts into their registers.
    pub(crate) fn load(&self, code: &[u8], prepare: impl Fn(u8, &mut kvm_regs)) {
        let at = GuestAddress(CODE);
        self.memory.write_slice(code, at).expect("in RAM");
        for vcpu in &self.vcpus {
            vcpu.set_entry(&CpuState::bzimage(CODE)).expect("taken");
            let mut regs = vcpu.fd.get_regs().expect("readable");
            prepare(vcpu.id, &mut regs);
            vcpu.fd.set_regs(&regs).expect("taken");
            vcpu.fd
                .set_mp_state(kvm_mp_state::default())
                .expect("runnable");
        }
    }

    /// Runs all vCPUs until one tells something, or for a time.
    pub(crate) fn run(&mut self, time: Option<Duration>) {
        self.shared.stop.store(false, Ordering::SeqCst);
        let begin = Instant::now();
        let (sender, events) = channel();
        let threads: Vec<_> = std::mem::take(&mut self.vcpus)
            .into_iter()
            .map(|vcpu| {
                let (shared, sender) = (Arc::clone(&self.shared), sender.clone());
                thread::spawn(move || vcpu.run(&shared, &sender))
            })
            .collect();
        while !self.shared.stop.load(Ordering::SeqCst)
            && begin.elapsed() < time.unwrap_or(HANG)
            && threads.iter().any(|thread| !thread.is_finished())
        {
            thread::sleep(Duration::from_micros(200));
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in &threads {
            let _ = thread.kill(signals::kick_signal());
        }
        let vcpus = threads.into_iter().map(thread::JoinHandle::join);
        self.vcpus = vcpus.collect::<Result<_, _>>().expect("no panic");
        assert_eq!(events.try_recv().ok(), None, "nothing goes wrong");
        assert!(begin.elapsed() < HANG, "the guest hangs");
    }

    /// Whether the guest has told `number`.
    pub(crate) fn has_told(&self, number: u32) -> bool {
        self.told.numbers.load(Ordering::SeqCst) >> number & 1 != 0
    }

    /// The state, from a file.
    pub(crate) fn save(&self) -> Sections {
        let mut sections = Sections::default();
        for vcpu in &self.vcpus {
            sections.add(format!("vcpu{}", vcpu.id), vcpu.save().expect("readable"));
        }
        let clock = save_clock(&self.vm, &self.vcpus).expect("readable");
        sections.add("clock", clock);
        let state = MachineState {
            writer: String::new(),
            memory: MemoryFile {
                file: String::new(),
                bytes: 0,
            },
            options: Vec::new(),
            sections,
        };
        let file = state::encode(&state).expect("small");
        state::decode(&file).expect("whole").sections
    }

    /// Another machine with the same memory and that state. This one must not run any more.
    pub(crate) fn restored(&self, mut sections: Sections) -> Self {
        let cpus = u8::try_from(self.vcpus.len()).expect("few");
        let other = Self::with_memory(cpus, Arc::clone(&self.memory)).expect("there was one");
        let numbers = self.told.numbers.load(Ordering::SeqCst);
        other.told.numbers.store(numbers, Ordering::SeqCst);
        let clock = sections.take("clock").expect("saved");
        restore_clock(&other.vm, &other.vcpus, &clock).expect("possible");
        for vcpu in &other.vcpus {
            let section = sections.take(&format!("vcpu{}", vcpu.id)).expect("saved");
            vcpu.restore(&section).expect("possible");
        }
        other
    }

    /// The machine, elsewhere.
    pub(crate) fn moved(self) -> Self {
        self.restored(self.save())
    }

    /// The 32-bit number at `address`.
    pub(crate) fn word(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).expect("in RAM")
    }
}
