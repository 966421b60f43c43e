//! The iommufds of a machine, and binding devices of the host to them.

use std::os::fd::AsFd;
use std::sync::Arc;

use devices::vfio::{Shown, VfioIommufd, VfioNode};
use intel_vtd_host::HostCapabilities;
use intel_vtd_host::Iommufd;

use super::bound::BoundDevice;
use super::claim::{Claimed, claim};
use super::error::{AssignError, Why};
use super::files;
use crate::config::{FunctionConfig, FunctionKind, HostDevice, IommufdConfig, VfioConfig};
use crate::kvm::KvmVfio;

/// The iommufds of a machine.
pub(crate) struct Host {
    /// By their names on the command line; the second form is for binding devices.
    pub(super) iommufds: Vec<(String, Arc<Iommufd>, Arc<VfioIommufd>)>,
    kvm: Arc<KvmVfio>,
    /// Devices in use. Leaf lock.
    claimed: Claimed,
}

impl Host {
    /// Opens the iommufds of a machine whose VFIO files are told to `kvm`.
    pub(crate) fn open(configs: &[IommufdConfig], kvm: Arc<KvmVfio>) -> Result<Self, AssignError> {
        let iommufds = configs.iter().map(|config| {
            let (iommufd, shared) = files::iommufd(config)?;
            Ok((config.id.clone(), Arc::new(iommufd), shared))
        });
        Ok(Self {
            iommufds: iommufds.collect::<Result<_, AssignError>>()?,
            kvm,
            claimed: Arc::default(),
        })
    }

    /// Binds all devices among `functions`.
    pub(crate) fn bind_all(
        &self,
        functions: &[FunctionConfig],
    ) -> Result<Vec<BoundDevice>, AssignError> {
        let devices = functions
            .iter()
            .filter_map(|function| match &function.kind {
                FunctionKind::Vfio(device) => Some(device),
                _ => None,
            });
        devices.map(|device| self.bind(device)).collect()
    }

    /// Opens a device and binds it.
    pub(super) fn bind(&self, config: &VfioConfig) -> Result<BoundDevice, AssignError> {
        let failed = |why| AssignError::device(config, why);
        let (_, iommufd, shared) = self
            .iommufds
            .iter()
            .find(|(name, ..)| *name == config.iommufd)
            .ok_or_else(|| failed(Why::NoIommufd))?;
        let node = match config.device {
            HostDevice::Address(address) => VfioNode::open(address).map_err(Why::from),
            HostDevice::Descriptor(fd) => files::duplicate(fd)
                .map_err(|cause| Why::Descriptor(fd, cause))
                .and_then(|file| Ok(VfioNode::from_file(file)?)),
        };
        let node = node.map_err(failed)?;
        let group = node.group().ok_or_else(|| failed(Why::NoGroup))?;
        let claim = claim(&self.claimed, node.address()).map_err(failed)?;
        // VFIO looks for the virtual machine when the device is bound.
        let known_to_kvm = self
            .kvm
            .add(node.as_fd())
            .map_err(|cause| failed(Why::Kvm(cause)))?;
        let (cdev, id) = node.bind(shared).map_err(|cause| failed(cause.into()))?;
        let can_reset = cdev
            .has_reset()
            .map_err(|cause| failed(Why::Asking(cause)))?;
        if config.needs_reset && !can_reset {
            return Err(failed(Why::NoReset));
        }
        let capabilities = HostCapabilities::probe(iommufd.as_ref(), id)
            .map_err(|cause| failed(Why::Asking(cause)))?;
        log::info!("{config}: {capabilities}");
        let services = cdev
            .services()
            .map_err(|cause| failed(Why::Asking(cause)))?;
        Ok(BoundDevice {
            config: config.clone(),
            capabilities,
            services,
            shown: Shown::default(),
            iommufd: Arc::clone(iommufd),
            id,
            group,
            cdev: Arc::new(cdev),
            _known_to_kvm: known_to_kvm,
            _claim: claim,
        })
    }
}
