//! Model-specific registers of a vCPU, as KVM reads and writes them for its user.

use std::ops::RangeInclusive;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{KvmError, failed};

type Result<T> = std::result::Result<T, kvm_ioctls::Error>;

/// IA32_TIME_STAMP_COUNTER.
pub(crate) const TSC: u32 = 0x10;
/// IA32_TSC_ADJUST.
pub(crate) const TSC_ADJUST: u32 = 0x3b;
/// IA32_TSC_DEADLINE.
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;

/// Registers that a guest can change and that KVM does not have in its list on all hosts: memory
/// types (SDM volume 4, table 2-2: variable and fixed ranges, the default type), and the 32 banks
/// of machine checks, which have no further registers as long as nobody asks KVM for them.
const NOT_IN_THE_LIST: [RangeInclusive<u32>; 6] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
    0x400..=0x47f,
];

/// All registers that make up the state of a vCPU, in the order in which KVM names them.
pub(crate) fn indices() -> Result<Vec<u32>> {
    let list = Kvm::new()?.get_msr_index_list()?;
    let mut indices = list.as_slice().to_vec();
    let more = NOT_IN_THE_LIST.into_iter().flatten();
    let more: Vec<u32> = more.filter(|index| !indices.contains(index)).collect();
    indices.extend(more);
    Ok(indices)
}

/// Their values. Those that this vCPU does not have are left out.
pub(crate) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk: Vec<kvm_msr_entry> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|index| entry(*index, 0))
            .collect();
        let mut msrs = list(&chunk)?;
        let read = vcpu.get_msrs(&mut msrs)?;
        values.extend(msrs.as_slice().iter().take(read));
        // KVM stops at the first that it cannot read.
        let done = if read < chunk.len() { read + 1 } else { read };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(values)
}

/// Writes those that have other values, in their order; those of them that KVM refuses are
/// returned.
pub(crate) fn change(vcpu: &VcpuFd, values: &[kvm_msr_entry]) -> Result<Vec<kvm_msr_entry>> {
    let indices: Vec<u32> = values.iter().map(|msr| msr.index).collect();
    let here = read(vcpu, &indices)?;
    let differ = values.iter().filter(|msr| !here.contains(msr));
    write(vcpu, &differ.copied().collect::<Vec<_>>())
}

/// Writes them in their order; those that KVM refuses are returned.
fn write(vcpu: &VcpuFd, values: &[kvm_msr_entry]) -> Result<Vec<kvm_msr_entry>> {
    let mut refused = Vec::new();
    let mut rest = values;
    while !rest.is_empty() {
        let chunk = rest.get(..KVM_MAX_MSR_ENTRIES).unwrap_or(rest);
        let written = vcpu.set_msrs(&list(chunk)?)?;
        // KVM stops at the first that it cannot write.
        let stopped = chunk.get(written);
        refused.extend(stopped);
        let done = written + usize::from(stopped.is_some());
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(refused)
}

/// The value of one, if this vCPU has it.
pub(crate) fn get(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let values = read(vcpu, &[index]).ok()?;
    values.first().map(|entry| entry.data)
}

/// Writes one.
pub(crate) fn set(vcpu: &VcpuFd, index: u32, data: u64) -> std::result::Result<(), KvmError> {
    let refused = write(vcpu, &[entry(index, data)]);
    let done = refused.and_then(|refused| match refused.is_empty() {
        true => Ok(()),
        false => Err(kvm_ioctls::Error::new(libc::EINVAL)),
    });
    done.map_err(failed("setting an MSR"))
}

/// One as KVM has it in its lists.
pub(crate) fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}
