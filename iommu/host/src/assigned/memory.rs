//! An IOAS that maps all guest memory, for the devices of one iommufd. Making it pins the memory,
//! and giving it back unpins it, which take some tenths of a second for each GiB: that is done
//! under no lock that the guest's invalidations take.

use std::sync::Arc;

use super::backing::hwpts::make_memory_hwpt;
use super::device::Device;
use super::error::AddError;
use crate::host_iommu::{HostIommu, Rights};
use crate::ioas::Ioas;
use crate::ram::Ram;

/// An IOAS on `iommu` that maps all of `ram`, with an HWPT for `device`. After an error, what there
/// is of it is put into `left`, to be given back.
pub(super) fn map_all(
    iommu: &Arc<dyn HostIommu>,
    device: &Device,
    ram: &Ram,
    left: &mut Vec<Ioas>,
) -> Result<Ioas, AddError> {
    let name = || device.name.to_string();
    let mut ioas = Ioas::allocate(iommu).map_err(|cause| AddError::Ioas {
        name: name(),
        cause,
    })?;
    // The page table first: it tells how far the host's addresses go.
    let made = make_memory_hwpt(&mut ioas, &device.client(None));
    let made = made.map_err(|cause| AddError::Hwpt {
        name: name(),
        cause,
    });
    match made.and_then(|_| map(&ioas, &device.name, ram)) {
        Ok(()) => Ok(ioas),
        Err(error) => {
            left.push(ioas);
            Err(error)
        }
    }
}

fn map(ioas: &Ioas, name: &str, ram: &Ram) -> Result<(), AddError> {
    for (range, memory) in ram.parts() {
        if !ioas.mappable(range.clone()).eq([range.clone()]) {
            return Err(AddError::OutOfReach {
                name: name.to_owned(),
                start: range.start,
                last: range.end - 1,
            });
        }
        ioas.host
            .map(ioas.id, range.start, &memory, Rights::ALL)
            .map_err(|cause| AddError::Map {
                name: name.to_owned(),
                start: range.start,
                length: range.end - range.start,
                cause,
            })?;
    }
    Ok(())
}
