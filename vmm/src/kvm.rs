//! The host's KVM: opening it, checking that it can do what the machine needs, and creating the
//! virtual machine.

#![allow(unsafe_code)] // What kvm-ioctls does not offer.

pub(crate) mod clock;
pub(crate) mod dirty;
pub(crate) mod msrs;
mod slots;
mod vfio;

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::layout;
use crate::memory::Memory;
pub(crate) use slots::KvmSlots;
pub(crate) use vfio::{AssignedFile, KvmVfio};

/// Why there is no virtual machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    /// No device node.
    #[error(
        "/dev/kvm does not exist; switch on virtualization in the firmware and load the module \
         (`modprobe kvm_intel` or `modprobe kvm_amd`)"
    )]
    Missing,
    /// No permission.
    #[error("/dev/kvm: permission denied; run nido as root or as a member of the group `kvm`")]
    Permission,
    /// Something else is wrong with it.
    #[error(
        "/dev/kvm cannot be used ({0}); check that no other hypervisor holds the CPU and see `dmesg`"
    )]
    Open(kvm_ioctls::Error),
    /// An old or cut-down KVM.
    #[error("/dev/kvm lacks {0}, which nido needs; use Linux 4.12 or later on x86-64")]
    Capability(&'static str),
    /// More vCPUs than KVM can have.
    #[error("--cpus {wanted}: KVM on this host offers {most} at most; write a smaller number")]
    TooManyCpus {
        /// Requested number.
        wanted: u8,
        /// KVM_CAP_MAX_VCPUS.
        most: usize,
    },
    /// An ioctl failed.
    #[error("KVM: {what} failed ({cause})")]
    Ioctl {
        /// What was tried.
        what: &'static str,
        /// The error.
        cause: kvm_ioctls::Error,
    },
}

/// Names the operation in an error.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |cause| KvmError::Ioctl { what, cause }
}

/// Opens /dev/kvm and checks it.
pub(crate) fn open(cpus: u8) -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        _ => KvmError::Open(error),
    })?;
    let needed = [
        (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
        (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        (Cap::MpState, "KVM_CAP_MP_STATE"),
        (
            Cap::SplitIrqchip,
            "a split interrupt controller (KVM_CAP_SPLIT_IRQCHIP)",
        ),
        (
            Cap::X2ApicApi,
            "32-bit interrupt destinations (KVM_CAP_X2APIC_API)",
        ),
        (
            Cap::SignalMsi,
            "message-signalled interrupts (KVM_CAP_SIGNAL_MSI)",
        ),
        (
            Cap::IoeventfdNoLength,
            "doorbells of any length (KVM_CAP_IOEVENTFD_NO_LENGTH)",
        ),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    for (capability, name) in needed {
        if !kvm.check_extension(capability) {
            return Err(KvmError::Capability(name));
        }
    }
    let most = kvm.get_max_vcpus();
    if usize::from(cpus) > most {
        return Err(KvmError::TooManyCpus { wanted: cpus, most });
    }
    Ok(kvm)
}

/// A virtual machine with local APICs in the kernel, an IOAPIC in user space, and guest memory in
/// place.
pub(crate) fn create_vm(kvm: &Kvm, memory: &Memory) -> Result<Arc<VmFd>, KvmError> {
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => break result.map_err(failed("creating a virtual machine"))?,
        }
    };
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(failed("setting the identity map"))?;
    vm.set_tss_address(usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX))
        .map_err(failed("setting the task segment"))?;
    enable(&vm, KVM_CAP_SPLIT_IRQCHIP, u64::from(layout::IOAPIC_PINS))
        .map_err(failed("creating the interrupt controllers"))?;
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(&vm, KVM_CAP_X2APIC_API, u64::from(x2apic))
        .map_err(failed("widening interrupt destinations"))?;
    use_current_tsc_frequency(&vm);
    keep_what_stays_mapped(&vm);
    dirty::set_slots(&vm, memory, 0).map_err(failed("adding guest memory"))?;
    Ok(Arc::new(vm))
}

/// `KVM_SET_TSC_KHZ`, `_IO(KVMIO, 0xa2)`, which kvm-ioctls has for vCPUs only.
const KVM_SET_TSC_KHZ: libc::c_ulong = 0xaea2;

/// Has vCPUs start with the TSC frequency that the host knows now, instead of the one it knew when
/// KVM was initialized.
///
/// Where the two differ by more than KVM tolerates and the CPU cannot scale, a vCPU created with
/// the old one either believes that its TSC stands still or is corrected at every entry. Linux 5.16
/// and later take this for the whole machine; on others `Vcpu::new` does what can be done
/// afterwards.
fn use_current_tsc_frequency(vm: &VmFd) {
    // SAFETY: the ioctl takes a number and no pointer; zero stands for the host's frequency.
    let result = unsafe { vmm_sys_util::ioctl::ioctl_with_val(vm, KVM_SET_TSC_KHZ, 0) };
    if result < 0 {
        log::debug!(
            "KVM takes no TSC frequency for the machine: {}",
            io::Error::last_os_error()
        );
    }
}

/// Has KVM forget nothing but what has gone when a part of the guest's memory goes, as the BARs of
/// an assigned device do each time the guest stops decoding them. Otherwise the guest's next access
/// to each of its pages is an exit. KVM of Linux 6.12 and later can do that.
fn keep_what_stays_mapped(vm: &VmFd) {
    let quirks = vm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into());
    let wanted = KVM_X86_QUIRK_SLOT_ZAP_ALL;
    if u32::try_from(quirks).unwrap_or(0) & wanted == 0 {
        return;
    }
    if let Err(error) = enable(vm, KVM_CAP_DISABLE_QUIRKS2, wanted.into()) {
        log::debug!("KVM forgets all of the guest's memory whenever a part of it goes: {error}");
    }
}

fn enable(vm: &VmFd, capability: u32, argument: u64) -> Result<(), kvm_ioctls::Error> {
    let mut request = kvm_enable_cap {
        cap: capability,
        ..Default::default()
    };
    request.args[0] = argument;
    vm.enable_cap(&request)
}

/// An `io::Error` with the same number.
pub(crate) fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
