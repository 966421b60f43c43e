//! A vCPU: its registers at power-on, and the loop that runs it and serves its exits.

mod accesses;
mod brake;
mod lapic;
pub(crate) mod saved;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use devices::park::Park;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use crate::boot::CpuState;
use crate::bus::Bus;
use crate::cpuid::Template;
use crate::event::Event;
use crate::kvm::{KvmError, failed, msrs};
use crate::signals::Kickable;
use accesses::Accesses;
pub(crate) use accesses::{AccessTimes, Current, Target};
pub(crate) use brake::Brake;
pub(crate) use lapic::unfinished;
pub(crate) use saved::{restore_clock, save_clock};
use state::PowerOn;

/// IA32_MISC_ENABLE, and its bit for fast string operations.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs on, write-back unless one says otherwise, as firmware leaves it.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// More exits than KVM makes before it looks at `immediate_exit`: a repeated string instruction is
/// 1024 elements at most, each of which is read and written in two parts each.
const PARTS: usize = 8192;

/// A virtual CPU that does not run at the moment.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    id: u8,
    power_on: Box<PowerOn>,
}

/// What vCPU threads share.
pub(crate) struct Shared {
    /// Where accesses go.
    pub(crate) bus: Bus,
    /// How long they took.
    pub(crate) accesses: Arc<AccessTimes>,
    /// Set before the threads are kicked to stop.
    pub(crate) stop: AtomicBool,
    /// Has the threads stop where they are, when they are kicked.
    pub(crate) park: Arc<Park>,
    /// Slows them down.
    pub(crate) brake: Arc<Brake>,
    /// What each vCPU does.
    pub(crate) at: Box<[Current]>,
}

impl Vcpu {
    /// Creates vCPU `id` in its power-on state.
    pub(crate) fn new(vm: &VmFd, id: u8, cpuid: &Template) -> Result<Self, KvmError> {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(failed("creating a vCPU"))?;
        synchronize_tsc(&fd)?;
        let table = cpuid
            .for_vcpu(id, fd.get_tsc_khz().ok())
            .map_err(failed("completing the CPUID table"))?;
        fd.set_cpuid2(&table).map_err(failed("setting CPUID"))?;
        let power_on = Box::new(PowerOn::capture(&fd).map_err(failed("reading a vCPU's state"))?);
        let vcpu = Self { fd, id, power_on };
        vcpu.set_firmware_msrs()?;
        Ok(vcpu)
    }

    /// Back to the power-on state, after it has run.
    pub(crate) fn reset(&mut self) -> Result<(), KvmError> {
        self.power_on.restore(&self.fd)?;
        self.set_firmware_msrs()
    }

    /// Lets the vCPU begin where a kernel was loaded; the others wait for it to start them.
    pub(crate) fn set_entry(&self, state: &CpuState) -> Result<(), KvmError> {
        let mut sregs = self
            .fd
            .get_sregs()
            .map_err(failed("reading segment registers"))?;
        state.apply(&mut sregs);
        self.fd
            .set_sregs(&sregs)
            .map_err(failed("setting segment registers"))?;
        self.fd
            .set_regs(&state.regs())
            .map_err(failed("setting registers"))
    }

    /// The state in which it stopped, for whoever has to find out why a guest hangs.
    pub(crate) fn describe(&self) -> String {
        format!(
            "vCPU {}:\n{}\n{}",
            self.id,
            registers(&self.fd),
            state::interrupts(&self.fd)
        )
    }

    fn set_firmware_msrs(&self) -> Result<(), KvmError> {
        msrs::set(&self.fd, MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING)?;
        msrs::set(&self.fd, MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)
    }

    /// Runs until `shared.stop` is set, or the vCPU can go no further; rests while `shared.park` wants
    /// it.
    pub(crate) fn run(mut self, shared: &Arc<Shared>, events: &Sender<Event>) -> Self {
        let mut kickable = Kickable::new(&mut self.fd);
        let rests = |rests| {
            let current = shared.at.get(usize::from(self.id));
            current
                .into_iter()
                .for_each(|current| current.set_rests(rests));
        };
        loop {
            rests(false);
            let end = run_on(kickable.vcpu(), self.id, shared);
            rests(true);
            if let Some(event) = end {
                // The receiver lives as long as any vCPU thread.
                let _ = events.send(event);
                break;
            }
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
            shared.park.stay(&shared.stop);
            // Its watchdogs are not to take the time for a hang. A guest without kvm-clock has
            // nowhere to be told.
            let _ = kickable.vcpu().kvmclock_ctrl();
        }
        drop(kickable);
        self
    }
}

/// Runs the vCPU until it is to stop, for a while or for good, and has its last access be whole.
/// Returns an event if it can go no further.
fn run_on(vcpu: &mut VcpuFd, id: u8, shared: &Shared) -> Option<Event> {
    let mut end = None;
    let is_wanted = || shared.stop.load(Ordering::SeqCst) || shared.park.is_wanted();
    while end.is_none() && !is_wanted() {
        end = match step(vcpu, id, shared) {
            Step::Continue => None,
            Step::Interrupted => {
                shared.brake.stay(is_wanted);
                None
            }
            Step::Report(event) => Some(event),
        };
    }
    let late = complete(vcpu, id, shared);
    end.or(late)
}

/// Gives the vCPU the host's TSC frequency, and starts its TSC together with the others'.
///
/// KVM by itself takes the frequency that the host had when KVM was initialized. A host without an
/// invariant TSC may have measured it again since; KVM then wants to scale, cannot, and leaves the
/// vCPU with a TSC that it believes to stand still: deadline timers fire seconds late, or never.
/// Zero stands for the frequency as the host knows it now.
fn synchronize_tsc(vcpu: &VcpuFd) -> Result<(), KvmError> {
    if let Err(error) = vcpu.set_tsc_khz(0) {
        log::debug!("KVM keeps its own TSC frequency: {error}");
    }
    msrs::set(vcpu, msrs::TSC, 0)
}

/// What comes after an exit.
enum Step {
    Continue,
    /// The vCPU was kicked; KVM has nothing of the guest's at hand.
    Interrupted,
    /// This vCPU is done, and the machine has to deal with it.
    Report(Event),
}

fn step(vcpu: &mut VcpuFd, id: u8, shared: &Shared) -> Step {
    let bus = &shared.bus;
    let accesses = Accesses {
        times: &shared.accesses,
        current: shared.at.get(usize::from(id)),
    };
    let failure = match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            accesses.take(Target::Port(port), || bus.pio_read(port, data));
            return Step::Continue;
        }
        Ok(VcpuExit::IoOut(port, &[byte])) => {
            accesses.take(Target::Port(port), || bus.pio_write(port, &[byte]));
            return Step::Continue;
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            // `rep outs` comes as one exit, and stands for as many accesses as it has elements.
            let data = data.to_vec();
            let width = state::port_width(vcpu.get_kvm_run());
            for element in data.chunks(width) {
                accesses.take(Target::Port(port), || bus.pio_write(port, element));
            }
            return Step::Continue;
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            accesses.take(Target::Read(address), || bus.mmio_read(address, data));
            return Step::Continue;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            accesses.take(Target::Write(address), || bus.mmio_write(address, data));
            return Step::Continue;
        }
        Ok(VcpuExit::IoapicEoi(vector)) => {
            accesses.take(Target::EndOfInterrupt(vector), || {
                bus.end_of_interrupt(vector);
            });
            return Step::Continue;
        }
        Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => return Step::Continue,
        Ok(VcpuExit::Shutdown) => return Step::Report(Event::TripleFault { vcpu: id }),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
            return Step::Report(Event::PowerOff);
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Step::Report(Event::Reset),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
            return Step::Report(Event::TripleFault { vcpu: id });
        }
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            format!("the host CPU refused to enter the guest (reason {reason:#x}, host CPU {cpu})")
        }
        Ok(VcpuExit::InternalError) => "KVM cannot emulate what the guest does".to_owned(),
        Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
            format!("guest memory at {gpa:#x} ({size:#x} bytes) cannot be accessed")
        }
        Ok(other) => format!("exit that nido does not know ({other:?})"),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            vcpu.set_kvm_immediate_exit(0);
            return Step::Interrupted;
        }
        Err(error) => format!("running it failed ({error})"),
    };
    let detail = internal_error(vcpu);
    Step::Report(Event::Failed(format!(
        "vCPU {id}: {failure}{detail}\n{}",
        registers(vcpu)
    )))
}

/// KVM finishes what it exited for when the vCPU is entered again: do that, without running the
/// guest. An access that crosses a page, or has more than 8 bytes, is an exit for each part: all of
/// them are served, so that none is lost if the vCPU never runs on. Returns what one of them brought
/// about, if that concerns the machine.
fn complete(vcpu: &mut VcpuFd, id: u8, shared: &Shared) -> Option<Event> {
    let mut event = None;
    for _ in 0..PARTS {
        vcpu.set_kvm_immediate_exit(1);
        event = match step(vcpu, id, shared) {
            Step::Continue => continue,
            Step::Interrupted => None,
            Step::Report(event) => Some(event),
        };
        break;
    }
    vcpu.set_kvm_immediate_exit(0);
    event
}

/// What KVM adds to KVM_EXIT_INTERNAL_ERROR.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return String::new();
    }
    state::internal_error(run)
}

/// The registers that tell where a guest went wrong.
fn registers(vcpu: &VcpuFd) -> String {
    let (Ok(r), Ok(s)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return "  its registers cannot be read".to_owned();
    };
    format!(
        "  rip {:016x} rsp {:016x} rflags {:08x} cs {:04x}:{:x}\n  \
           rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n  \
           rsi {:016x} rdi {:016x} rbp {:016x}\n  \
           cr0 {:08x} cr2 {:016x} cr3 {:016x} cr4 {:08x} efer {:x}",
        r.rip,
        r.rsp,
        r.rflags,
        s.cs.selector,
        s.cs.base,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer
    )
}

#[cfg(test)]
mod vcpu_test;
