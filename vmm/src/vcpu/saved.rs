//! The state of a vCPU that a snapshot has: everything that its guest can tell apart, but for the
//! time stamp counter, which goes on together with the machine's other clocks.

mod encoding;

use std::ops::RangeInclusive;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError, SaveError, Section};

use super::{Vcpu, lapic, state as registers};
use crate::cpuid::features;
use crate::kvm::{clock, msrs};
use encoding::{bytes, structure};

const KIND: &str = "vcpu";
const VERSION: u32 = 1;

/// Registers that say what the vCPU can do. KVM takes those of VMX only as long as it is off:
/// IA32_FEATURE_CONTROL, IA32_ARCH_CAPABILITIES, IA32_PERF_CAPABILITIES, and VMX's own.
const ABILITIES: [RangeInclusive<u32>; 4] =
    [0x3a..=0x3a, 0x10a..=0x10a, 0x345..=0x345, 0x480..=0x493];

/// Registers that are not written with the others.
const APART: [u32; 4] = [
    // With the machine's clocks.
    msrs::TSC,
    // Behind the local APIC, whose timer it sets.
    msrs::TSC_DEADLINE,
    // Writing MSR_KVM_WALL_CLOCK, old and new, has KVM write to guest memory, which may be
    // something else by now: the guest has got its answer when it wrote it.
    0x11,
    0x4b56_4d00,
];

/// Registers that may stay as they are where KVM refuses them: the last branches that a vCPU took
/// before an exception, for debuggers, which KVM shows on AMD's processors and did not always take.
const MAY_STAY: RangeInclusive<u32> = 0x1db..=0x1de;

/// A vCPU. Structures of KVM are as they are in memory, which is a part of the kernel's interface.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VcpuState {
    id: u8,
    /// Function, index, flags, EAX, EBX, ECX and EDX of each leaf.
    cpuid: Vec<[u32; 7]>,
    mp_state: u32,
    regs: Bytes,
    sregs: Bytes,
    /// 4096 bytes, and further ones that are not zero.
    xsave: Bytes,
    /// Numbers and values.
    xcrs: Vec<(u32, u64)>,
    debug: Bytes,
    /// Numbers and values.
    msrs: Vec<(u32, u64)>,
    lapic: Bytes,
    events: Bytes,
    /// The pointer of the shadow stack, where the guest can have one.
    ssp: Option<u64>,
    /// As long as KVM says; hosts without nested virtualization have none.
    nested: Option<Bytes>,
}

impl Vcpu {
    /// The vCPU's state. An access that it was in is complete.
    ///
    /// # Errors
    /// KVM does not give a part of it.
    pub(crate) fn save(&self) -> Result<Section, SaveError> {
        let failed = |error| {
            let id = self.id;
            SaveError::new(format_args!(
                "the state of vCPU {id} cannot be read ({error})"
            ))
        };
        let state = VcpuState::capture(self.id, &self.fd).map_err(failed)?;
        Section::new(KIND, VERSION, &state)
    }

    /// Makes a vCPU that has not run yet what the saved one was. The machine's clocks are set
    /// already, since local APICs' timers follow them. What a [`reset`](Self::reset) goes back to
    /// stays as it is.
    ///
    /// # Errors
    /// The state cannot be, or is none that this host's KVM can go on with. The vCPU is of no use
    /// afterwards.
    pub(crate) fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let state: VcpuState = section.read(KIND, VERSION)?;
        RestoreError::unless_equal("the number of the vCPU", state.id, self.id)?;
        state.apply(&self.fd)?;
        // Its watchdogs are not to take the time for a hang. A guest without kvm-clock has nowhere
        // to be told.
        let _ = self.fd.kvmclock_ctrl();
        Ok(())
    }
}

/// The clocks of the machine that has `vcpus`, all of which are saved already.
///
/// # Errors
/// KVM does not tell the time.
pub(crate) fn save_clock(vm: &VmFd, vcpus: &[Vcpu]) -> Result<Section, SaveError> {
    clock::save(vm, &descriptors(vcpus))
}

/// Lets the clocks of a fresh machine go on where those of the saved one were. The states of vCPUs
/// come afterwards.
///
/// # Errors
/// The host's TSC has another frequency, or KVM refuses.
pub(crate) fn restore_clock(
    vm: &VmFd,
    vcpus: &[Vcpu],
    section: &Section,
) -> Result<(), RestoreError> {
    clock::restore(vm, &descriptors(vcpus), section)
}

fn descriptors(vcpus: &[Vcpu]) -> Vec<&VcpuFd> {
    vcpus.iter().map(|vcpu| &vcpu.fd).collect()
}

impl VcpuState {
    fn capture(id: u8, vcpu: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        // Has KVM take in what other vCPUs have sent (INIT, SIPI).
        let mp_state = vcpu.get_mp_state()?.mp_state;
        // Has it put what belongs to an exception that waits into CR2 and DR6.
        vcpu.get_vcpu_events()?;
        let mut indices = msrs::indices()?;
        indices.retain(|index| *index != msrs::TSC);
        let msrs = msrs::read(vcpu, &indices)?;
        Ok(Self {
            id,
            cpuid: encoding::leaves(&vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?),
            mp_state,
            regs: bytes(&vcpu.get_regs()?),
            sregs: bytes(&vcpu.get_sregs()?),
            xsave: encoding::without_zeros(registers::read_xsave(vcpu)?),
            xcrs: encoding::read_xcrs(vcpu)?,
            debug: bytes(&vcpu.get_debug_regs()?),
            msrs: msrs.iter().map(|msr| (msr.index, msr.data)).collect(),
            lapic: bytes(&vcpu.get_lapic()?),
            events: bytes(&vcpu.get_vcpu_events()?),
            ssp: registers::read_ssp(vcpu),
            nested: encoding::read_nested(vcpu)?,
        })
    }

    /// Registers that others depend on come first, and what lets time go on last.
    fn apply(&self, vcpu: &VcpuFd) -> Result<(), RestoreError> {
        self.apply_cpuid(vcpu)?;
        let (abilities, others) = self.msrs()?;
        write_msrs(vcpu, &abilities)?;
        let sregs: kvm_sregs = structure("segment registers", &self.sregs)?;
        vcpu.set_sregs(&sregs).map_err(host("segment registers"))?;
        self.apply_nested(vcpu)?;
        let regs: kvm_regs = structure("registers", &self.regs)?;
        vcpu.set_regs(&regs).map_err(host("registers"))?;
        self.apply_extended(vcpu)?;
        let debug: kvm_debugregs = structure("debug registers", &self.debug)?;
        vcpu.set_debug_regs(&debug)
            .map_err(host("debug registers"))?;
        write_msrs(vcpu, &others)?;
        if let Some(ssp) = self.ssp {
            registers::write_ssp(vcpu, ssp).map_err(host("the pointer of the shadow stack"))?;
        }
        self.apply_lapic(vcpu)?;
        let events: kvm_vcpu_events = structure("pending events", &self.events)?;
        vcpu.set_vcpu_events(&events)
            .map_err(host("pending events"))?;
        let mp_state = kvm_mp_state {
            mp_state: self.mp_state,
        };
        vcpu.set_mp_state(mp_state).map_err(host("the run state"))
    }

    /// The guest keeps the table that it knows, if all of it can be kept.
    fn apply_cpuid(&self, vcpu: &VcpuFd) -> Result<(), RestoreError> {
        let saved: Vec<kvm_cpuid_entry2> = self.cpuid.iter().map(encoding::entry).collect();
        let table = CpuId::from_entries(&saved)
            .map_err(|_| RestoreError::damaged("CPUID", format_args!("{} leaves", saved.len())))?;
        let here = vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(host("CPUID"))?;
        features::check(&saved, here.as_slice())?;
        vcpu.set_cpuid2(&table).map_err(host("CPUID"))
    }

    /// The registers that say what the vCPU can do, and the others.
    fn msrs(&self) -> Result<(Vec<kvm_msr_entry>, Vec<kvm_msr_entry>), RestoreError> {
        let known = msrs::indices().map_err(host("the list of MSRs"))?;
        let saved = self.msrs.iter();
        if let Some((index, _)) = saved.clone().find(|(index, _)| !known.contains(index)) {
            return Err(RestoreError::host(
                format_args!("MSR {index:#x}"),
                "this host's KVM does not know it",
            ));
        }
        let is_ability = |msr: &kvm_msr_entry| {
            let mut abilities = ABILITIES.iter();
            abilities.any(|range| range.contains(&msr.index))
        };
        Ok(saved
            .filter(|(index, _)| !APART.contains(index))
            .map(|(index, data)| msrs::entry(*index, *data))
            .partition(is_ability))
    }

    fn apply_extended(&self, vcpu: &VcpuFd) -> Result<(), RestoreError> {
        let what = "FPU and vector registers";
        let xsave = self.xsave.as_slice();
        if xsave.len() < registers::XSAVE {
            let why = format_args!("{} bytes", xsave.len());
            return Err(RestoreError::damaged(what, why));
        }
        registers::write_xsave(vcpu, xsave).map_err(host(what))?;
        if self.xcrs.is_empty() {
            return Ok(());
        }
        let xcrs = encoding::xcrs(&self.xcrs)?;
        vcpu.set_xcrs(&xcrs)
            .map_err(host("extended control registers"))
    }

    fn apply_nested(&self, vcpu: &VcpuFd) -> Result<(), RestoreError> {
        let Some(saved) = &self.nested else {
            return Ok(());
        };
        let nested = encoding::nested(saved.as_slice())?;
        vcpu.set_nested_state(&nested)
            .map_err(host("the state of a nested guest"))
    }

    /// The local APIC and its timer.
    fn apply_lapic(&self, vcpu: &VcpuFd) -> Result<(), RestoreError> {
        let lapic: kvm_lapic_state = structure("the local APIC", &self.lapic)?;
        vcpu.set_lapic(&lapic).map_err(host("the local APIC"))?;
        let mut saved = self.msrs.iter();
        let Some((index, deadline)) = saved.find(|(index, _)| *index == msrs::TSC_DEADLINE) else {
            return Ok(());
        };
        let mut deadline = *deadline;
        if deadline == 0 && lapic::has_deadline(&lapic) {
            // KVM takes a deadline that has passed for none before the guest gets the interrupt:
            // one too many does no harm, one that is lost lets the guest wait for ever. KVM does
            // the same for a timer that has counted to zero.
            deadline = msrs::get(vcpu, msrs::TSC).unwrap_or(0);
        }
        write_msrs(vcpu, &[msrs::entry(*index, deadline)])
    }
}

/// Writes the MSRs that have other values here.
fn write_msrs(vcpu: &VcpuFd, saved: &[kvm_msr_entry]) -> Result<(), RestoreError> {
    let refused = msrs::change(vcpu, saved).map_err(host("MSRs"))?;
    let mut refused = refused.iter();
    let Some(msr) = refused.find(|msr| !MAY_STAY.contains(&msr.index)) else {
        return Ok(());
    };
    let here = msrs::get(vcpu, msr.index);
    RestoreError::unless_equal(
        format_args!("MSR {:#x}, which KVM does not let change,", msr.index),
        format!("{:#x}", msr.data),
        here.map_or("not there".to_owned(), |here| format!("{here:#x}")),
    )
}

fn host(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RestoreError {
    move |error| RestoreError::host(what, error)
}

#[cfg(test)]
pub(crate) mod machine;
#[cfg(test)]
mod moves_test;
#[cfg(test)]
mod saved_test;
