//! What is taken from the host, as calls of iommufd.

use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use iommufd_bindings as uapi;

use super::commands::{data_type, size_of};
use super::{INVALIDATIONS_AT_ONCE, Iommufd, address_of, address_of_mut};
use crate::host_iommu::{
    HardwareInfo, HostDeviceId, HostIommu, HostMemory, HwptId, HwptOptions, IntelInfo, IoasId,
    NestedInvalidation, NestedOptions, NestedTable, ObjectId, Rights, SharedMapping,
};
use intel_vtd::spec::registers::{Capability, Caps, ExtendedCapability};

impl HostIommu for Iommufd {
    fn allocate_ioas(&self) -> io::Result<IoasId> {
        let mut request = uapi::iommu_ioas_alloc {
            size: size_of::<uapi::iommu_ioas_alloc>(),
            ..Default::default()
        };
        self.call(&mut request)?;
        let ioas = IoasId(request.out_ioas_id);
        if !self.huge_pages
            && let Err(error) = self.forbid_huge_pages(ioas)
        {
            // Nothing refers to it.
            let _ = self.destroy(ioas.into());
            return Err(error);
        }
        Ok(ioas)
    }

    fn destroy(&self, object: ObjectId) -> io::Result<()> {
        let (ObjectId::Ioas(IoasId(id)) | ObjectId::Hwpt(HwptId(id))) = object;
        self.call(&mut uapi::iommu_destroy {
            size: size_of::<uapi::iommu_destroy>(),
            id,
        })
    }

    fn address_ranges(&self, ioas: IoasId) -> io::Result<(Vec<RangeInclusive<u64>>, u64)> {
        let mut room = 16;
        loop {
            let mut ranges = vec![uapi::iommu_iova_range::default(); room];
            let mut request = uapi::iommu_ioas_iova_ranges {
                size: size_of::<uapi::iommu_ioas_iova_ranges>(),
                ioas_id: ioas.0,
                num_iovas: u32::try_from(room).map_err(io::Error::other)?,
                // Writable, with room for this many.
                allowed_iovas: address_of_mut(&mut ranges),
                ..Default::default()
            };
            let outcome = self.call(&mut request);
            let count = usize::try_from(request.num_iovas).map_err(io::Error::other)?;
            match outcome {
                // More than there was room for, and now we know how many. They may grow meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) && count > room => {
                    room = count;
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    ranges.truncate(count);
                    let ranges = ranges
                        .iter()
                        .map(|range| range.start..=range.last)
                        .collect();
                    return Ok((ranges, request.out_iova_alignment));
                }
            }
        }
    }

    fn map(
        &self,
        ioas: IoasId,
        address: u64,
        memory: &HostMemory<'_>,
        rights: Rights,
    ) -> io::Result<()> {
        let flags = map_flags(rights);
        if self.maps_files.load(Ordering::Relaxed) {
            match self.map_file(ioas, address, memory, flags) {
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP)) =>
                {
                    self.maps_files.store(false, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        self.map_address(ioas, address, memory, flags)
    }

    fn share(&self, mapping: &SharedMapping) -> io::Result<()> {
        self.call(&mut uapi::iommu_ioas_copy {
            size: size_of::<uapi::iommu_ioas_copy>(),
            flags: map_flags(mapping.rights),
            dst_ioas_id: mapping.target.0,
            src_ioas_id: mapping.source.0,
            length: mapping.length,
            dst_iova: mapping.target_address,
            src_iova: mapping.source_address,
        })
    }

    fn unmap(&self, ioas: IoasId, address: u64, length: u64) -> io::Result<u64> {
        let mut request = uapi::iommu_ioas_unmap {
            size: size_of::<uapi::iommu_ioas_unmap>(),
            ioas_id: ioas.0,
            iova: address,
            length,
        };
        self.call(&mut request)?;
        Ok(request.length)
    }

    fn allocate_hwpt(
        &self,
        device: HostDeviceId,
        ioas: IoasId,
        options: HwptOptions,
    ) -> io::Result<HwptId> {
        let flag = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
        self.allocate_table(uapi::iommu_hwpt_alloc {
            flags: flag(
                options.nesting_parent,
                uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
            ) | flag(
                options.dirty_tracking,
                uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
            ) | flag(
                options.pasid,
                uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID,
            ),
            dev_id: device.0,
            pt_id: ioas.0,
            data_type: uapi::iommu_hwpt_data_type_IOMMU_HWPT_DATA_NONE,
            ..Default::default()
        })
    }

    fn allocate_nested(
        &self,
        device: HostDeviceId,
        parent: HwptId,
        table: &NestedTable,
        options: NestedOptions,
    ) -> io::Result<HwptId> {
        let kind = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
        let flag = |wanted: bool, flag: u32| u64::from(kind(wanted, flag));
        let data = uapi::iommu_hwpt_vtd_s1 {
            flags: flag(
                table.supervisor_requests,
                uapi::iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_SRE,
            ) | flag(
                table.extended_accessed,
                uapi::iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_EAFE,
            ) | flag(
                table.write_protect,
                uapi::iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_WPE,
            ),
            pgtbl_addr: table.table,
            addr_width: u32::from(table.address_width),
            ..Default::default()
        };
        self.allocate_table(uapi::iommu_hwpt_alloc {
            flags: kind(
                options.pasid,
                uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID,
            ) | kind(
                options.page_requests.is_some(),
                uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID,
            ),
            fault_id: options.page_requests.map_or(0, |queue| queue.0),
            dev_id: device.0,
            pt_id: parent.0,
            data_type: uapi::iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1,
            data_len: size_of::<uapi::iommu_hwpt_vtd_s1>(),
            // Readable, of that length.
            data_uptr: address_of(std::slice::from_ref(&data)),
            ..Default::default()
        })
    }

    fn invalidate(
        &self,
        nested: HwptId,
        invalidations: &[NestedInvalidation],
    ) -> (usize, io::Result<()>) {
        let mut done = 0;
        for batch in invalidations.chunks(INVALIDATIONS_AT_ONCE) {
            let entries: Vec<_> = batch.iter().map(nested_entry).collect();
            let mut left = entries.as_slice();
            while !left.is_empty() {
                let (carried_out, outcome) = self.invalidate_some(nested, left);
                done += carried_out;
                left = left.get(carried_out..).unwrap_or_default();
                if outcome.is_err() {
                    return (done, outcome);
                }
            }
        }
        (done, Ok(()))
    }

    fn hardware_info(&self, device: HostDeviceId) -> io::Result<HardwareInfo> {
        let mut registers = [uapi::iommu_hw_info_vtd::default()];
        let mut request = uapi::iommu_hw_info {
            size: size_of::<uapi::iommu_hw_info>(),
            dev_id: device.0,
            data_len: size_of::<uapi::iommu_hw_info_vtd>(),
            // Writable, of that length. What another kind of IOMMU puts there are integers, too.
            data_uptr: address_of_mut(&mut registers),
            ..Default::default()
        };
        self.call(&mut request)?;
        let kind = data_type(&request);
        let [registers] = registers;
        let intel =
            (kind == uapi::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD).then(|| IntelInfo {
                caps: Caps {
                    cap: Capability::from_bits(registers.cap_reg),
                    ecap: ExtendedCapability::from_bits(registers.ecap_reg),
                },
                no_read_only_parent: registers.flags
                    & uapi::iommu_hw_info_vtd_flags_IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17
                    != 0,
            });
        let can =
            |bit: uapi::iommufd_hw_capabilities| request.out_capabilities & u64::from(bit) != 0;
        Ok(HardwareInfo {
            intel,
            pasid_bits: request.out_max_pasid_log2,
            privileged_pasids: can(uapi::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_PRIV),
            dirty_tracking: can(uapi::iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING),
            ats: !can(uapi::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED),
        })
    }

    fn set_dirty_tracking(&self, table: HwptId, on: bool) -> io::Result<()> {
        self.call(&mut uapi::iommu_hwpt_set_dirty_tracking {
            size: size_of::<uapi::iommu_hwpt_set_dirty_tracking>(),
            flags: u32::from(on),
            hwpt_id: table.0,
            ..Default::default()
        })
    }

    fn dirty_pages(
        &self,
        table: HwptId,
        address: u64,
        length: u64,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()> {
        let room = u64::try_from(bitmap.len())
            .unwrap_or(u64::MAX)
            .saturating_mul(64);
        if !page_size.is_power_of_two()
            || !length.is_multiple_of(page_size)
            || length / page_size > room
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.call(&mut uapi::iommu_hwpt_get_dirty_bitmap {
            size: size_of::<uapi::iommu_hwpt_get_dirty_bitmap>(),
            hwpt_id: table.0,
            iova: address,
            length,
            page_size,
            // Writable, with a bit for each page, as was just checked.
            data: address_of_mut(bitmap),
            ..Default::default()
        })
    }
}

pub(super) fn map_flags(rights: Rights) -> u32 {
    let mut flags = uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
    if rights.read {
        flags |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
    }
    if rights.write {
        flags |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
    }
    flags
}

fn nested_entry(invalidation: &NestedInvalidation) -> uapi::iommu_hwpt_vtd_s1_invalidate {
    uapi::iommu_hwpt_vtd_s1_invalidate {
        addr: invalidation.address,
        npages: invalidation.pages,
        flags: if invalidation.leaf_only {
            uapi::iommu_hwpt_vtd_s1_invalidate_flags_IOMMU_VTD_INV_FLAGS_LEAF
        } else {
            0
        },
        ..Default::default()
    }
}
