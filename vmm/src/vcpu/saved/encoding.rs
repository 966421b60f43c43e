//! KVM's structures as a state has them, and back.

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_xcrs};
use kvm_ioctls::{KvmNestedStateBuffer, VcpuFd};
use state::{Bytes, RestoreError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::registers::XSAVE;

/// Hosts without XSAVE have no such registers.
pub(super) fn read_xcrs(vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, kvm_ioctls::Error> {
    let xcrs = there_is(vcpu.get_xcrs())?.unwrap_or_default();
    let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(0);
    let xcrs = xcrs.xcrs.iter().take(count);
    Ok(xcrs.map(|xcr| (xcr.xcr, xcr.value)).collect())
}

/// What KVM has read, unless it does not know such a thing at all.
fn there_is<T>(read: Result<T, kvm_ioctls::Error>) -> Result<Option<T>, kvm_ioctls::Error> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if [libc::EINVAL, libc::ENOTTY].contains(&error.errno()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The registers of which numbers and values are given.
pub(super) fn xcrs(saved: &[(u32, u64)]) -> Result<kvm_xcrs, RestoreError> {
    let mut xcrs = kvm_xcrs::default();
    if saved.len() > xcrs.xcrs.len() {
        return Err(RestoreError::damaged(
            "extended control registers",
            format_args!("{} of them", saved.len()),
        ));
    }
    for (place, (xcr, value)) in xcrs.xcrs.iter_mut().zip(saved) {
        (place.xcr, place.value) = (*xcr, *value);
        xcrs.nr_xcrs += 1;
    }
    Ok(xcrs)
}

/// Hosts without nested virtualization have no such state. With it, there is some also while no
/// nested guest runs.
pub(super) fn read_nested(vcpu: &VcpuFd) -> Result<Option<Bytes>, kvm_ioctls::Error> {
    let mut nested = KvmNestedStateBuffer::empty();
    if there_is(vcpu.nested_state(&mut nested))?.is_none() {
        return Ok(None);
    }
    let size = usize::try_from(nested.size).unwrap_or(usize::MAX);
    let state = nested.as_bytes().get(..size).map(Bytes::new);
    state.map(Some).ok_or(kvm_ioctls::Error::new(libc::E2BIG))
}

/// The state that the bytes are, which say themselves how many they are.
pub(super) fn nested(saved: &[u8]) -> Result<KvmNestedStateBuffer, RestoreError> {
    let damaged = |why| RestoreError::damaged("the state of a nested guest", why);
    let mut nested = KvmNestedStateBuffer::empty();
    let place = nested.as_mut_bytes().get_mut(..saved.len());
    let place = place.ok_or_else(|| damaged("it is too long"))?;
    place.copy_from_slice(saved);
    if usize::try_from(nested.size) != Ok(saved.len()) {
        return Err(damaged("it has another length than it says"));
    }
    Ok(nested)
}

/// Function, index, flags, EAX, EBX, ECX and EDX of each leaf.
pub(super) fn leaves(table: &CpuId) -> Vec<[u32; 7]> {
    let leaf = |entry: &kvm_cpuid_entry2| {
        let kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..
        } = *entry;
        [function, index, flags, eax, ebx, ecx, edx]
    };
    table.as_slice().iter().map(leaf).collect()
}

/// The leaf that the numbers are.
pub(super) fn entry(leaf: &[u32; 7]) -> kvm_cpuid_entry2 {
    let [function, index, flags, eax, ebx, ecx, edx] = *leaf;
    kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// Without the zeros behind what each host has.
pub(super) fn without_zeros(mut xsave: Vec<u8>) -> Bytes {
    let last = xsave.iter().rposition(|byte| *byte != 0);
    let end = last.map_or(0, |last| last + 1);
    xsave.truncate(end.max(XSAVE));
    Bytes::from(xsave)
}

/// The bytes of a structure.
pub(super) fn bytes<T: IntoBytes + Immutable>(structure: &T) -> Bytes {
    Bytes::new(structure.as_bytes())
}

/// The structure that the bytes are.
pub(super) fn structure<T: FromBytes>(what: &str, saved: &Bytes) -> Result<T, RestoreError> {
    let bytes = saved.exactly(what, size_of::<T>())?;
    T::read_from_bytes(bytes).map_err(|_| RestoreError::damaged(what, "its length"))
}
