//! kvm-clock, and the time stamp counters (TSC) of vCPUs: saved, and going on from there.
//!
//! Where the host's TSC drives kvm-clock, KVM tells what it was at a moment of that clock, and a
//! vCPU's TSC is the host's and an offset: both go on together, by as much
//! (Documentation/virt/kvm/devices/vcpu.rst, section 4.1). Elsewhere the first vCPU's counter is
//! written, and the others are put at the distances to it that they had: in step as a rule.

#![allow(unsafe_code)] // kvm-ioctls has no attributes of vCPUs on this architecture.

use std::fs;

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::msrs;

const KIND: &str = "clock";
const VERSION: u32 = 1;

/// `KVM_SET_DEVICE_ATTR` and `KVM_GET_DEVICE_ATTR`, `_IOW(KVMIO, 0xe1 and 0xe2, 24 bytes)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;

/// By how many parts in a million the frequency of a TSC may be another one without being scaled,
/// where KVM does not say it.
const TOLERANCE: u32 = 250;

/// A value that is more than a second from any that it is added to, as long as a TSC makes fewer
/// than 2^40 steps a second.
const FAR: u64 = 1 << 41;

/// The clocks of a machine.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockState {
    /// kvm-clock, in nanoseconds.
    kvm_clock: u64,
    /// How fast the TSCs are, in kHz, if KVM knows.
    tsc_khz: Option<u32>,
    /// The vCPUs' TSCs, read one after another and before `kvm_clock`.
    tscs: Vec<Tsc>,
    /// What they were at the moment of `kvm_clock`, where the host tells.
    moment: Option<Moment>,
}

/// The TSC of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tsc {
    value: u64,
    /// IA32_TSC_ADJUST: by how much the guest has changed it.
    adjust: u64,
}

/// The TSCs at a moment: the host's with an offset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Moment {
    host_tsc: u64,
    offsets: Vec<u64>,
}

/// What the clocks of the machine `vm` and of all its vCPUs show.
pub(crate) fn save(vm: &VmFd, vcpus: &[&VcpuFd]) -> Result<Section, SaveError> {
    let failed = |what: &'static str| {
        move |error| SaveError::new(format_args!("{what} cannot be read ({error})"))
    };
    let tscs = read_tscs(vcpus)?;
    let clock = vm.get_clock().map_err(failed("kvm-clock"))?;
    let after = read_tscs(vcpus)?;
    let offsets: Option<Vec<u64>> = vcpus.iter().map(|vcpu| tsc_offset(vcpu).ok()).collect();
    let moment = host_tsc(&clock)
        .zip(offsets)
        .map(|(host_tsc, offsets)| Moment { host_tsc, offsets })
        .filter(|moment| moment.is_between(&tscs, &after));
    let state = ClockState {
        kvm_clock: clock.clock,
        tsc_khz: frequency(vcpus),
        tscs,
        moment,
    };
    Section::new(KIND, VERSION, &state)
}

/// Lets the clocks of the machine `vm` go on where those of a saved one were, which has as many
/// vCPUs. None has run yet. Timers that count in steps of the TSC are set afterwards.
pub(crate) fn restore(vm: &VmFd, vcpus: &[&VcpuFd], section: &Section) -> Result<(), RestoreError> {
    let state: ClockState = section.read(KIND, VERSION)?;
    RestoreError::unless_equal("the number of vCPUs", state.tscs.len(), vcpus.len())?;
    let scaled = restore_frequency(vcpus, state.tsc_khz)?;
    let clock = kvm_clock_data {
        clock: state.kvm_clock,
        ..Default::default()
    };
    vm.set_clock(&clock)
        .map_err(|error| RestoreError::host("kvm-clock", error))?;
    let now = vm.get_clock().ok().filter(|_| !scaled);
    let khz = state.tsc_khz.unwrap_or(0);
    let offsets = now.zip(state.moment.as_ref()).and_then(|(now, moment)| {
        let elapsed = now.clock.checked_sub(state.kvm_clock)?;
        moment.offsets_after(cycles(elapsed, khz), host_tsc(&now)?)
    });
    match offsets {
        Some(offsets) if offsets.len() == vcpus.len() => {
            let mut each = vcpus.iter().zip(offsets);
            each.try_for_each(|(vcpu, offset)| set_offset(vcpu, offset))?;
        }
        _ => set_values(vcpus, &state.tscs)?,
    }
    check_none_went_back(vcpus, &state.tscs)
}

impl Moment {
    /// Whether the TSCs were so between two readings of them. They were not if KVM scales them.
    fn is_between(&self, before: &[Tsc], after: &[Tsc]) -> bool {
        let readings = before.iter().zip(after);
        readings
            .zip(&self.offsets)
            .all(|((before, after), offset)| {
                let value = self.host_tsc.wrapping_add(*offset);
                !is_before(value, before.value) && !is_before(after.value, value)
            })
    }

    /// The offsets with which the TSCs show `cycles` more than in this moment while the host's
    /// shows `host_tsc`.
    fn offsets_after(&self, cycles: Option<u64>, host_tsc: u64) -> Option<Vec<u64>> {
        let passed = self.host_tsc.wrapping_add(cycles?).wrapping_sub(host_tsc);
        let offsets = self.offsets.iter();
        Some(offsets.map(|offset| offset.wrapping_add(passed)).collect())
    }
}

/// Whether a counter has to go on to get from `value` to `other`. It wraps.
fn is_before(value: u64, other: u64) -> bool {
    other.wrapping_sub(value).wrapping_sub(1) < 1 << 63
}

/// Steps of a TSC in a time.
fn cycles(nanoseconds: u64, khz: u32) -> Option<u64> {
    let cycles = u128::from(nanoseconds) * u128::from(khz) / 1_000_000;
    u64::try_from(cycles).ok()
}

/// The latest of all TSCs without what their guest has added. They are in step, but were read one
/// after another.
fn latest(tscs: &[Tsc]) -> u64 {
    let plain = tscs.iter().map(|tsc| tsc.value.wrapping_sub(tsc.adjust));
    plain
        .reduce(|one, other| if is_before(one, other) { other } else { one })
        .unwrap_or(0)
}

fn host_tsc(clock: &kvm_clock_data) -> Option<u64> {
    (clock.flags & KVM_CLOCK_HOST_TSC != 0).then_some(clock.host_tsc)
}

fn frequency(vcpus: &[&VcpuFd]) -> Option<u32> {
    vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok())
}

fn read_tscs(vcpus: &[&VcpuFd]) -> Result<Vec<Tsc>, SaveError> {
    let read = |vcpu: &&VcpuFd| {
        let value = msrs::get(vcpu, msrs::TSC)?;
        // A vCPU without this register has not changed its TSC.
        let adjust = msrs::get(vcpu, msrs::TSC_ADJUST).unwrap_or(0);
        Some(Tsc { value, adjust })
    };
    let tscs: Option<Vec<Tsc>> = vcpus.iter().map(read).collect();
    tscs.ok_or_else(|| SaveError::new("the time stamp counter of a vCPU cannot be read"))
}

/// Gives the vCPUs the saved frequency. Returns whether KVM scales the TSC now.
fn restore_frequency(vcpus: &[&VcpuFd], saved: Option<u32>) -> Result<bool, RestoreError> {
    let here = frequency(vcpus);
    let Some(saved) = saved.filter(|saved| Some(*saved) != here) else {
        return Ok(false);
    };
    let scales = Kvm::new().is_ok_and(|kvm| kvm.check_extension(Cap::TscControl));
    let close = is_close(saved, here.unwrap_or(0), tolerance());
    if !scales && !close {
        let khz = |khz: Option<u32>| khz.map_or("unknown".to_owned(), |khz| format!("{khz} kHz"));
        return RestoreError::unless_equal(
            "the frequency of the time stamp counter, which this host's CPU cannot scale,",
            khz(Some(saved)),
            khz(here),
        )
        .map(|()| false);
    }
    for vcpu in vcpus {
        vcpu.set_tsc_khz(saved).map_err(|error| {
            RestoreError::host(format_args!("a time stamp counter of {saved} kHz"), error)
        })?;
    }
    Ok(true)
}

/// Whether two frequencies differ by no more than `tolerance` parts in a million.
fn is_close(saved: u32, here: u32, tolerance: u32) -> bool {
    let difference = u64::from(saved.abs_diff(here));
    difference * 1_000_000 <= u64::from(here) * u64::from(tolerance)
}

/// The difference up to which KVM takes the host's frequency for another one.
fn tolerance() -> u32 {
    let parameter = fs::read_to_string("/sys/module/kvm/parameters/tsc_tolerance_ppm");
    let parameter = parameter.ok().and_then(|text| text.trim().parse().ok());
    parameter.unwrap_or(TOLERANCE)
}

fn set_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), RestoreError> {
    set_tsc_offset(vcpu, offset)
        .map_err(|error| RestoreError::host("the offset of a time stamp counter", error))
}

/// Writes the first vCPU's TSC, and puts the others at the distances to it that they had.
fn set_values(vcpus: &[&VcpuFd], tscs: &[Tsc]) -> Result<(), RestoreError> {
    let (Some(first), Some(first_tsc)) = (vcpus.first(), tscs.first()) else {
        return Ok(());
    };
    let value = latest(tscs).wrapping_add(first_tsc.adjust);
    set_exactly(first, value)?;
    let others = vcpus.iter().zip(tscs).skip(1);
    let apart = |tsc: &Tsc| tsc.adjust.wrapping_sub(first_tsc.adjust);
    if let Ok(offset) = tsc_offset(first) {
        for (vcpu, tsc) in others {
            set_offset(vcpu, offset.wrapping_add(apart(tsc)))?;
        }
        return Ok(());
    }
    // KVM takes a TSC that is written less than a second from what the last one written shows for
    // one in step with it, and makes it so.
    for (vcpu, _) in others.clone().filter(|(_, tsc)| apart(tsc) == 0) {
        set_tsc(vcpu, value)?;
    }
    for (vcpu, tsc) in others.filter(|(_, tsc)| apart(tsc) != 0) {
        let now = msrs::get(first, msrs::TSC).unwrap_or(value);
        set_exactly(vcpu, now.wrapping_add(apart(tsc)))?;
    }
    Ok(())
}

/// Writes a TSC in a way that KVM does not take for one in step with another.
fn set_exactly(vcpu: &VcpuFd, value: u64) -> Result<(), RestoreError> {
    set_tsc(vcpu, value.wrapping_add(FAR))?;
    set_tsc(vcpu, value)
}

fn set_tsc(vcpu: &VcpuFd, value: u64) -> Result<(), RestoreError> {
    msrs::set(vcpu, msrs::TSC, value)
        .map_err(|error| RestoreError::host("the time stamp counter", error))
}

/// A guest that saw a TSC go back could wait for ever.
fn check_none_went_back(vcpus: &[&VcpuFd], saved: &[Tsc]) -> Result<(), RestoreError> {
    for (vcpu, saved) in vcpus.iter().zip(saved) {
        let here = msrs::get(vcpu, msrs::TSC);
        if here.is_none_or(|here| is_before(here, saved.value)) {
            return Err(RestoreError::host(
                "the time stamp counter",
                format_args!("it was {:#x}, and KVM set it to {here:#x?}", saved.value),
            ));
        }
    }
    Ok(())
}

/// What KVM adds to the host's TSC for this vCPU. Linux 5.16 and later tell.
fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let mut offset = 0_u64;
    let attribute = tsc_offset_at(std::ptr::from_mut(&mut offset).expose_provenance());
    // SAFETY: KVM reads the attribute, and writes the 8 bytes of `offset`, whose address it has,
    // and which nothing else refers to meanwhile.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR, &attribute) };
    match result {
        0 => Ok(offset),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), kvm_ioctls::Error> {
    let attribute = tsc_offset_at(std::ptr::from_ref(&offset).expose_provenance());
    // SAFETY: KVM reads the attribute and the 8 bytes of `offset`, whose address it has.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR, &attribute) };
    match result {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// The attribute, with the address of its value.
fn tsc_offset_at(address: usize) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: address as u64,
        ..Default::default()
    }
}

#[cfg(test)]
mod clock_test;
