//! KVM's VFIO device: through it KVM learns which host devices the guest has, which tells it
//! whether their DMA is coherent with the CPUs' caches, and lets the host's interrupts bypass it
//! where the CPU can do that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use parking_lot::Mutex;

use super::io_error;

/// The files of a machine's assigned devices, as KVM knows them.
pub(crate) struct KvmVfio {
    vm: Arc<VmFd>,
    /// Created for the first device.
    device: Mutex<Option<Arc<DeviceFd>>>,
}

impl KvmVfio {
    /// For the devices of `vm`; there are none yet.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            device: Mutex::default(),
        }
    }

    /// Tells KVM of the open VFIO device (or group) `file`, until the returned value is dropped. To
    /// be called before the device is bound to an iommufd, when VFIO looks for the virtual machine.
    ///
    /// # Errors
    /// When KVM refuses; ENODEV if the host's kernel was built without CONFIG_KVM_VFIO.
    pub(crate) fn add(&self, file: BorrowedFd<'_>) -> io::Result<AssignedFile> {
        let device = self.device()?;
        // A descriptor of its own, for taking the file away again when the other one is closed
        // already.
        let file = file.try_clone_to_owned()?;
        change(&device, KVM_DEV_VFIO_FILE_ADD, &file)?;
        Ok(AssignedFile { device, file })
    }

    fn device(&self) -> io::Result<Arc<DeviceFd>> {
        let mut device = self.device.lock();
        if let Some(device) = &*device {
            return Ok(Arc::clone(device));
        }
        let mut request = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            ..Default::default()
        };
        let created = Arc::new(self.vm.create_device(&mut request).map_err(io_error)?);
        *device = Some(Arc::clone(&created));
        Ok(created)
    }
}

/// A file that KVM knows. Dropping it makes KVM forget it.
pub(crate) struct AssignedFile {
    device: Arc<DeviceFd>,
    file: OwnedFd,
}

impl Drop for AssignedFile {
    fn drop(&mut self) {
        if let Err(error) = change(&self.device, KVM_DEV_VFIO_FILE_DEL, &self.file) {
            log::warn!("KVM does not forget a file of VFIO: {error}");
        }
    }
}

fn change(device: &DeviceFd, attribute: u32, file: &OwnedFd) -> io::Result<()> {
    let descriptor: i32 = file.as_fd().as_raw_fd();
    let request = kvm_device_attr {
        group: KVM_DEV_VFIO_FILE,
        attr: u64::from(attribute),
        // KVM reads four bytes there during the call.
        addr: std::ptr::from_ref(&descriptor).expose_provenance() as u64,
        flags: 0,
    };
    device.set_device_attr(&request).map_err(io_error)
}

#[cfg(test)]
mod vfio_test;
