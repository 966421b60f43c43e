//! The power-on state of a vCPU: what KVM creates it with, kept so that a reset can put it back.

#![allow(unsafe_code)] // `kvm_run` is a union whose member the exit reason names.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, KvmNestedStateBuffer, VcpuFd};

use crate::kvm::{KvmError, failed};

type Result<T> = std::result::Result<T, kvm_ioctls::Error>;

/// MSRs that a reset leaves alone: the time stamp counter keeps counting, so that all vCPUs stay in
/// step.
const KEPT: [u32; 2] = [0x10, 0x3b];

/// Everything that running a guest changes.
pub(super) struct PowerOn {
    nested: Option<KvmNestedStateBuffer>,
    sregs: kvm_sregs,
    regs: kvm_regs,
    fpu: kvm_fpu,
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
        Ok(Self {
            // Hosts without nested virtualization have no such state.
            nested: vcpu.nested_state(&mut nested).is_ok().then_some(nested),
            sregs: vcpu.get_sregs()?,
            regs: vcpu.get_regs()?,
            fpu: vcpu.get_fpu()?,
            // Hosts without XSAVE have no such registers, and report none.
            xcrs: vcpu.get_xcrs().ok().filter(|xcrs| xcrs.nr_xcrs > 0),
            msrs: read_msrs(vcpu)?,
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
        vcpu.set_fpu(&self.fpu)
            .map_err(failed("resetting the FPU"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)
                .map_err(failed("resetting extended control registers"))?;
        }
        write_msrs(vcpu, &self.msrs).map_err(failed("resetting MSRs"))?;
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

/// All MSRs that KVM would save, with their values. Those that it lists but cannot read are left
/// out.
fn read_msrs(vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>> {
    let indices: Vec<u32> = Kvm::new()?
        .get_msr_index_list()?
        .as_slice()
        .iter()
        .copied()
        .filter(|index| !KEPT.contains(index))
        .collect();
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices.as_slice();
    while !rest.is_empty() {
        let chunk: Vec<kvm_msr_entry> = rest
            .iter()
            .take(kvm_bindings::KVM_MAX_MSR_ENTRIES)
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs =
            Msrs::from_entries(&chunk).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let read = vcpu.get_msrs(&mut msrs)?;
        values.extend(msrs.as_slice().iter().take(read));
        // KVM stops at the first that it cannot read.
        let done = if read < chunk.len() { read + 1 } else { read };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(values)
}

/// Writes MSRs, passing over those that may only be read.
fn write_msrs(vcpu: &VcpuFd, values: &[kvm_msr_entry]) -> Result<()> {
    let mut rest = values;
    while !rest.is_empty() {
        let chunk = rest
            .get(..kvm_bindings::KVM_MAX_MSR_ENTRIES)
            .unwrap_or(rest);
        let msrs = Msrs::from_entries(chunk).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let written = vcpu.set_msrs(&msrs)?;
        let done = if written < chunk.len() {
            written + 1
        } else {
            written
        };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// What the local APIC and the timer are about to do.
pub(super) fn interrupts(vcpu: &VcpuFd) -> String {
    const TSC: u32 = 0x10;
    const TSC_DEADLINE: u32 = 0x6e0;

    let (Ok(lapic), Ok(mp)) = (vcpu.get_lapic(), vcpu.get_mp_state()) else {
        return "  its local APIC cannot be read".to_owned();
    };
    let register = |offset: usize| {
        let bytes = lapic.regs.get(offset..offset + 4).unwrap_or_default();
        bytes.iter().rev().fold(0, |value: u32, byte| {
            value << 8 | u32::from(byte.to_le_bytes()[0])
        })
    };
    // SDM volume 3, table 10-1: vector bitmaps of eight registers, 16 bytes apart.
    let vectors = |offset: usize| -> Vec<String> {
        let set = |vector: &usize| register(offset + vector / 32 * 16) >> (vector % 32) & 1 != 0;
        (0..256)
            .filter(set)
            .map(|vector| format!("{vector:x}"))
            .collect()
    };
    let msr = |index| {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).ok()?;
        vcpu.get_msrs(&mut msrs).ok()?;
        msrs.as_slice().first().map(|entry| entry.data)
    };
    format!(
        "  mp state {}, task priority {:x}, in service [{}], requested [{}], spurious {:x}\n  \
           timer {:x}, initial {:x}, current {:x}, TSC {:x?}, deadline {:x?}",
        mp.mp_state,
        register(0x80),
        vectors(0x100).join(" "),
        vectors(0x200).join(" "),
        register(0xf0),
        register(0x320),
        register(0x380),
        register(0x390),
        msr(TSC),
        msr(TSC_DEADLINE),
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
