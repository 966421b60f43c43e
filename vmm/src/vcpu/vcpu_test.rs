//! The loop of a vCPU on the host's KVM, where there is one.

use std::sync::mpsc::channel;

use parking_lot::Mutex;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::config::MemoryConfig;
use crate::{kvm, memory};

const CODE: u64 = 0x10_0000;
/// Memory that is not RAM.
const WINDOW: u64 = 0xd000_0000;

/// Offset and bytes of each access.
type Accesses = Vec<(u64, Vec<u8>)>;

/// Takes the vCPU's accesses down, and stops it at the first. Each byte that it is read from is the
/// low byte of its offset.
#[derive(Default)]
struct Recorder {
    shared: Mutex<Option<Arc<Shared>>>,
    accesses: Mutex<Accesses>,
}

impl Recorder {
    fn note(&self, offset: u64, data: &[u8]) {
        self.accesses.lock().push((offset, data.to_vec()));
        if let Some(shared) = &*self.shared.lock() {
            shared.stop.store(true, Ordering::Release);
        }
    }
}

impl DeviceMmio for Recorder {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(offset..) {
            *byte = value.to_le_bytes()[0];
        }
        self.note(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.note(offset, data);
    }
}

struct NoMessages;

impl pci::MsiSink for NoMessages {
    fn signal(&self, _requester: pci::Bdf, _address: u64, _data: u32) {}
}

/// Runs `code` with EAX 0x44332211 until its first access to the window is over; the accesses that
/// were made, and the vCPU. `None` on a host without KVM.
fn run(code: &[u8]) -> Option<(Accesses, Vcpu)> {
    let Ok(host) = kvm::open(1) else {
        eprintln!("skipped: this host has no usable /dev/kvm");
        return None;
    };
    let config = MemoryConfig {
        size: 4 << 20,
        hugepages: false,
        prefault: false,
        shared: false,
    };
    let memory = memory::allocate(&config, memory::Backing::Anonymous).expect("memory");
    let vm = kvm::create_vm(&host, &memory).expect("a virtual machine");
    let template = Template::new(&host, 1).expect("a CPUID table");
    let vcpu = Vcpu::new(&vm, 0, &template).expect("a vCPU");
    memory
        .write_slice(code, GuestAddress(CODE))
        .expect("in RAM");
    vcpu.set_entry(&CpuState::bzimage(CODE)).expect("taken");
    let mut regs = vcpu.fd.get_regs().expect("readable");
    regs.rax = 0x4433_2211;
    vcpu.fd.set_regs(&regs).expect("taken");
    let recorder = Arc::<Recorder>::default();
    let requester = pci::Bdf::from_requester_id(0xff00);
    let ioapic = devices::ioapic::IoApic::new(Arc::new(NoMessages), requester);
    let mut bus = Bus::new(ioapic);
    bus.add_mmio(WINDOW, 0x2000, Arc::clone(&recorder) as _)
        .expect("free");
    let shared = Arc::new(Shared {
        bus,
        accesses: Arc::default(),
        stop: AtomicBool::new(false),
    });
    *recorder.shared.lock() = Some(Arc::clone(&shared));
    let (sender, events) = channel();
    let vcpu = vcpu.run(&shared, &sender);
    assert_eq!(events.try_recv().ok(), None, "nothing is reported");
    let accesses = recorder.accesses.lock().clone();
    *recorder.shared.lock() = None;
    Some((accesses, vcpu))
}

#[test]
fn a_write_across_a_page_is_whole_although_the_vcpu_is_stopped_within_it() {
    // mov [0xd0000ffd], eax; hlt
    let Some((accesses, vcpu)) = run(&[0xa3, 0xfd, 0x0f, 0x00, 0xd0, 0xf4]) else {
        return;
    };
    let expected = [(0xffd, vec![0x11, 0x22, 0x33]), (0x1000, vec![0x44])];
    assert_eq!(accesses, expected);
    assert_eq!(vcpu.fd.get_regs().expect("readable").rip, CODE + 5);
}

#[test]
fn a_read_across_a_page_is_whole_although_the_vcpu_is_stopped_within_it() {
    // mov eax, [0xd0000ffe]; hlt
    let Some((accesses, vcpu)) = run(&[0xa1, 0xfe, 0x0f, 0x00, 0xd0, 0xf4]) else {
        return;
    };
    let expected = [(0xffe, vec![0xfe, 0xff]), (0x1000, vec![0x00, 0x01])];
    assert_eq!(accesses, expected);
    let regs = vcpu.fd.get_regs().expect("readable");
    assert_eq!((regs.rip, regs.rax), (CODE + 5, 0x0100_fffe));
}
