//! The loop of a vCPU on the host's KVM, where there is one.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::config::MemoryConfig;
use crate::vm::suspend::stop_vcpus;
use crate::{kvm, memory, signals};

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

/// A vCPU that will run some code.
struct Bench {
    vcpu: Vcpu,
    shared: Arc<Shared>,
    recorder: Arc<Recorder>,
    memory: memory::Memory,
    _vm: Arc<VmFd>,
}

/// One with EAX 0x44332211, or `None` on a host without KVM.
fn bench(code: &[u8]) -> Option<Bench> {
    let Ok(host) = kvm::open(1) else {
        eprintln!("skipped: this host has no usable /dev/kvm");
        return None;
    };
    let config = MemoryConfig::plain(4 << 20);
    let memory = memory::allocate(&config, 0, memory::Backing::Anonymous, None).expect("memory");
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
        park: Arc::default(),
        brake: Arc::default(),
        at: Box::new([Current::default()]),
    });
    Some(Bench {
        vcpu,
        shared,
        recorder,
        memory,
        _vm: vm,
    })
}

/// Runs `code` until its first access to the window is over; the accesses that were made, and the
/// vCPU.
fn run(code: &[u8]) -> Option<(Accesses, Vcpu)> {
    let Bench {
        vcpu,
        shared,
        recorder,
        memory: _memory,
        _vm,
    } = bench(code)?;
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

/// Far beyond what anything takes.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn a_vcpu_rests_and_goes_on_many_times_and_stops_while_it_rests() {
    // inc dword [0x200000]; jmp back
    let code = [0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8];
    let Some(bench) = bench(&code) else { return };
    signals::install_kick().expect("a handler");
    let count = || {
        let memory = &bench.memory;
        memory
            .read_obj::<u32>(GuestAddress(0x20_0000))
            .expect("in RAM")
    };
    let (sender, _events) = channel();
    let (shared, vcpu) = (Arc::clone(&bench.shared), bench.vcpu);
    let parkable = shared.park.enter();
    let running = [thread::spawn(move || {
        let vcpu = vcpu.run(&shared, &sender);
        drop(parkable);
        vcpu
    })];
    let shared = &bench.shared;
    for _ in 0..20 {
        stop_vcpus(shared, &running, soon()).expect("it rests");
        let before = count();
        thread::sleep(Duration::from_millis(2));
        assert_eq!(count(), before, "it rests");
        shared.park.release();
        let until = soon();
        while count() == before {
            assert!(Instant::now() < until, "it goes on");
            thread::yield_now();
        }
    }
    stop_vcpus(shared, &running, soon()).expect("it rests");
    shared.stop.store(true, Ordering::SeqCst);
    shared.park.look();
    let [thread] = running;
    thread.join().expect("no panic");
}

#[test]
fn a_vcpu_in_a_long_access_is_named_and_rests_when_that_is_over() {
    // mov [0xd0000010], eax; jmp back
    let code = [0xa3, 0x10, 0x00, 0x00, 0xd0, 0xeb, 0xf9];
    let Some(bench) = bench(&code) else { return };
    signals::install_kick().expect("a handler");
    let hold = bench.recorder.accesses.lock();
    let (sender, _events) = channel();
    let (shared, vcpu) = (Arc::clone(&bench.shared), bench.vcpu);
    let parkable = shared.park.enter();
    let running = [thread::spawn(move || {
        let vcpu = vcpu.run(&shared, &sender);
        drop(parkable);
        vcpu
    })];
    let shared = &bench.shared;
    let until = soon();
    while shared.at[0].target().is_none() {
        assert!(Instant::now() < until, "it makes the access");
        thread::yield_now();
    }
    let late = stop_vcpus(shared, &running, Instant::now()).expect_err("it is late");
    assert_eq!(
        (late.id, late.target),
        (0, Some(Target::Write(0xd000_0010)))
    );
    drop(hold);
    stop_vcpus(shared, &running, soon()).expect("it rests");
    shared.stop.store(true, Ordering::SeqCst);
    shared.park.look();
    let [thread] = running;
    thread.join().expect("no panic");
}
