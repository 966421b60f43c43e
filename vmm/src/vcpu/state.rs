//! The power-on state of a vCPU: what KVM creates it with, kept so that a reset can put it back.

// `kvm_run` is a union whose member the exit reason names, and kvm-ioctls does not have all ioctls.
#![allow(unsafe_code)]

use kvm_bindings::{
    Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_one_reg, kvm_regs,
    kvm_run, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use zerocopy::IntoBytes;

use super::lapic;
use crate::kvm::{KvmError, failed, msrs};

type Result<T> = std::result::Result<T, kvm_ioctls::Error>;

/// MSRs that a reset leaves alone: the time stamp counter keeps counting, so that all vCPUs stay in
/// step.
const KEPT: [u32; 2] = [msrs::TSC, msrs::TSC_ADJUST];

/// Bytes of the area that XSAVE writes in its oldest form (`struct kvm_xsave`).
pub(super) const XSAVE: usize = 4096;

/// Everything that running a guest changes.
pub(super) struct PowerOn {
    nested: Option<KvmNestedStateBuffer>,
    sregs: kvm_sregs,
    regs: kvm_regs,
    xsave: Vec<u8>,
    xcrs: Option<kvm_xcrs>,
    msrs: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    mp: kvm_mp_state,
}

impl PowerOn {
    /// Reads the state of a vCPU that has not run yet.
    pub(super) fn capture(vcpu: &VcpuFd) -> Result<Self> {
        let mut nested = KvmNestedStateBuffer::empty();
        let mut indices = msrs::indices()?;
        indices.retain(|index| !KEPT.contains(index));
        Ok(Self {
            // Hosts without nested virtualization have no such state.
            nested: vcpu.nested_state(&mut nested).is_ok().then_some(nested),
            sregs: vcpu.get_sregs()?,
            regs: vcpu.get_regs()?,
            xsave: read_xsave(vcpu)?,
            // Hosts without XSAVE have no such registers, and report none.
            xcrs: vcpu.get_xcrs().ok().filter(|xcrs| xcrs.nr_xcrs > 0),
            msrs: msrs::read(vcpu, &indices)?,
            lapic: vcpu.get_lapic()?,
            events: vcpu.get_vcpu_events()?,
            debug: vcpu.get_debug_regs()?,
            mp: vcpu.get_mp_state()?,
        })
    }

    /// Puts the state back. A nested guest is left first, and the APIC's base is set before its
    /// registers.
    pub(super) fn restore(&self, vcpu: &VcpuFd) -> std::result::Result<(), KvmError> {
        if let Some(nested) = &self.nested {
            // Refused where the vCPU has no nested virtualization, and then not needed.
            let _ = vcpu.set_nested_state(nested);
        }
        vcpu.set_sregs(&self.sregs)
            .map_err(failed("resetting segment registers"))?;
        vcpu.set_regs(&self.regs)
            .map_err(failed("resetting registers"))?;
        write_xsave(vcpu, &self.xsave).map_err(failed("resetting the FPU"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)
                .map_err(failed("resetting extended control registers"))?;
        }
        // Those that KVM refuses may only be read.
        let _ = msrs::change(vcpu, &self.msrs).map_err(failed("resetting MSRs"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(failed("resetting a local APIC"))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("resetting pending events"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(failed("resetting debug registers"))?;
        vcpu.set_mp_state(self.mp)
            .map_err(failed("resetting a vCPU's run state"))
    }
}

/// x87, SSE and further registers, as XSAVE lays them out (SDM volume 1, 13.4) without compaction:
/// 4096 bytes, or more where the guest can have more.
pub(super) fn read_xsave(vcpu: &VcpuFd) -> Result<Vec<u8>> {
    let size = xsave_size()?;
    if size == 0 {
        return vcpu
            .get_xsave()
            .map(|xsave| xsave.region.as_bytes().to_vec());
    }
    let mut area = xsave_area(size)?;
    // SAFETY: the area has as many bytes as KVM says that it writes.
    unsafe { vcpu.get_xsave2(&mut area) }?;
    let mut bytes = area.as_fam_struct_ref().xsave.region.as_bytes().to_vec();
    bytes.extend_from_slice(area.as_slice().as_bytes());
    Ok(bytes)
}

/// Puts such registers back; E2BIG if there are more than this host has.
pub(super) fn write_xsave(vcpu: &VcpuFd, bytes: &[u8]) -> Result<()> {
    let size = xsave_size()?;
    let mut area = xsave_area(size)?;
    let (legacy, further) = bytes.split_at_checked(XSAVE).unwrap_or((bytes, &[]));
    let mut region = [0; XSAVE / size_of::<u32>()];
    fill(&mut region, legacy)?;
    fill(area.as_mut_slice(), further)?;
    // SAFETY: the number of entries stays as it is.
    unsafe { area.as_mut_fam_struct() }.xsave.region = region;
    // SAFETY: the area has as many bytes as KVM says that it reads.
    unsafe { vcpu.set_xsave2(&area) }
}

/// Bytes that KVM exchanges, 0 if it always is [`XSAVE`].
fn xsave_size() -> Result<usize> {
    let size = Kvm::new()?.check_extension_int(Cap::Xsave2);
    Ok(usize::try_from(size).unwrap_or(0))
}

/// Room for `size` bytes, and for [`XSAVE`] at least.
fn xsave_area(size: usize) -> Result<Xsave> {
    let further = size.saturating_sub(XSAVE).div_ceil(size_of::<u32>());
    Xsave::new(further).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// Puts `bytes` at the beginning of `words`.
fn fill(words: &mut [u32], bytes: &[u8]) -> Result<()> {
    let room = words.as_mut_bytes().get_mut(..bytes.len());
    let room = room.ok_or(kvm_ioctls::Error::new(libc::E2BIG))?;
    room.copy_from_slice(bytes);
    Ok(())
}

/// KVM_REG_GUEST_SSP, and `KVM_GET_ONE_REG` and `KVM_SET_ONE_REG`, `_IOW(KVMIO, 0xab and 0xac, 16
/// bytes)`, which kvm-ioctls has for other architectures only.
const SHADOW_STACK_POINTER: u64 = 0x2030_0003_0000_0000;
const KVM_GET_ONE_REG: libc::c_ulong = 0x4010_aeab;
const KVM_SET_ONE_REG: libc::c_ulong = 0x4010_aeac;

/// SSP, if the vCPU has shadow stacks (Linux 6.18 and later).
pub(super) fn read_ssp(vcpu: &VcpuFd) -> Option<u64> {
    let mut value = 0_u64;
    let register = kvm_one_reg {
        id: SHADOW_STACK_POINTER,
        addr: std::ptr::from_mut(&mut value).expose_provenance() as u64,
    };
    // SAFETY: KVM reads the structure and writes the 8 bytes of `value`, whose address it has, and
    // which nothing else refers to meanwhile.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_ONE_REG, &register) };
    (result == 0).then_some(value)
}

/// Sets SSP.
pub(super) fn write_ssp(vcpu: &VcpuFd, value: u64) -> Result<()> {
    let register = kvm_one_reg {
        id: SHADOW_STACK_POINTER,
        addr: std::ptr::from_ref(&value).expose_provenance() as u64,
    };
    // SAFETY: KVM reads the structure and the 8 bytes of `value`, whose address it has.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_ONE_REG, &register) };
    match result {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// What the local APIC and the timer are about to do.
pub(super) fn interrupts(vcpu: &VcpuFd) -> String {
    let (Ok(lapic), Ok(mp)) = (vcpu.get_lapic(), vcpu.get_mp_state()) else {
        return "  its local APIC cannot be read".to_owned();
    };
    let register = |offset| lapic::register(&lapic, offset);
    let vectors = |offset| {
        let vectors: Vec<String> = lapic::bitmap(&lapic, offset)
            .iter()
            .map(|vector| format!("{vector:x}"))
            .collect();
        vectors.join(" ")
    };
    format!(
        "  mp state {}, task priority {:x}, in service [{}], requested [{}], spurious {:x}\n  \
           timer {:x}, initial {:x}, current {:x}, TSC {:x?}, deadline {:x?}",
        mp.mp_state,
        register(0x80),
        vectors(lapic::IN_SERVICE),
        vectors(lapic::REQUESTED),
        register(0xf0),
        register(lapic::TIMER),
        register(lapic::INITIAL_COUNT),
        register(lapic::CURRENT_COUNT),
        msrs::get(vcpu, msrs::TSC),
        msrs::get(vcpu, msrs::TSC_DEADLINE),
    )
}

/// Bytes of one element of a port access: 1, 2 or 4.
pub(super) fn port_width(run: &kvm_run) -> usize {
    // SAFETY: the caller has seen KVM_EXIT_IO, for which KVM fills this member; any bit pattern is
    // valid in it.
    let io = unsafe { run.__bindgen_anon_1.io };
    usize::from(io.size).max(1)
}

/// The details of KVM_EXIT_INTERNAL_ERROR.
pub(super) fn internal_error(run: &kvm_run) -> String {
    // SAFETY: the caller has seen KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member; any bit
    // pattern is valid in it.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata)
        .unwrap_or(0)
        .min(internal.data.len());
    let data: Vec<String> = internal
        .data
        .iter()
        .take(count)
        .map(|word| format!("{word:x}"))
        .collect();
    let name = match internal.suberror {
        1 => "emulation",
        2 => "exception while another was delivered",
        3 => "unexpected exit",
        _ => "unknown kind",
    };
    format!(
        " (suberror {}, {name}; data [{}])",
        internal.suberror,
        data.join(", ")
    )
}
