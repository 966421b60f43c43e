//! The uAPI as the kernel's header has it, and what can be seen of the calls without an iommufd.

use std::mem::{offset_of, size_of as bytes};
use std::path::Path;

use super::calls::map_flags;
use super::*;
use crate::host_iommu::{
    HostDeviceId, HostIommu as _, HwptOptions, NestedInvalidation, Rights, SharedMapping,
};

/// Asserts the size of a structure and the offsets of its fields.
macro_rules! layout {
    ($structure:ident, $size:literal, $($field:ident at $offset:literal),*) => {
        assert_eq!(bytes::<uapi::$structure>(), $size, stringify!($structure));
        $(assert_eq!(
            offset_of!(uapi::$structure, $field),
            $offset,
            concat!(stringify!($structure), ".", stringify!($field))
        );)*
    };
}

#[test]
fn structures_have_the_sizes_and_offsets_of_the_uapi() {
    layout!(iommu_destroy, 8, size at 0, id at 4);
    layout!(iommu_ioas_alloc, 12, flags at 4, out_ioas_id at 8);
    layout!(iommu_ioas_copy, 40, flags at 4, dst_ioas_id at 8, src_ioas_id at 12, length at 16, dst_iova at 24,
        src_iova at 32);
    layout!(iommu_ioas_iova_ranges, 32, ioas_id at 4, num_iovas at 8, allowed_iovas at 16, out_iova_alignment at 24);
    layout!(iommu_iova_range, 16, start at 0, last at 8);
    layout!(iommu_ioas_map, 40, flags at 4, ioas_id at 8, user_va at 16, length at 24, iova at 32);
    layout!(iommu_ioas_unmap, 24, ioas_id at 4, iova at 8, length at 16);
    layout!(iommu_option, 24, option_id at 4, op at 8, object_id at 12, val64 at 16);
    layout!(iommu_hwpt_alloc, 48, flags at 4, dev_id at 8, pt_id at 12, out_hwpt_id at 16, data_type at 24,
        data_len at 28, data_uptr at 32, fault_id at 40);
    layout!(iommu_hwpt_vtd_s1, 24, flags at 0, pgtbl_addr at 8, addr_width at 16);
    layout!(iommu_hw_info, 40, flags at 4, dev_id at 8, data_len at 12, data_uptr at 16, __bindgen_anon_1 at 24,
        out_max_pasid_log2 at 28, out_capabilities at 32);
    layout!(iommu_hw_info_vtd, 24, flags at 0, cap_reg at 8, ecap_reg at 16);
    layout!(iommu_hwpt_set_dirty_tracking, 16, flags at 4, hwpt_id at 8);
    layout!(iommu_hwpt_get_dirty_bitmap, 48, hwpt_id at 4, flags at 8, iova at 16, length at 24, page_size at 32,
        data at 40);
    layout!(iommu_hwpt_invalidate, 32, hwpt_id at 4, data_uptr at 8, data_type at 16, entry_len at 20,
        entry_num at 24);
    layout!(iommu_hwpt_vtd_s1_invalidate, 24, addr at 0, npages at 8, flags at 16);
    layout!(iommu_fault_alloc, 16, flags at 4, out_fault_id at 8, out_fault_fd at 12);
    layout!(iommu_hwpt_pgfault, 40, flags at 0, dev_id at 4, pasid at 8, grpid at 12, perm at 16, addr at 24, length at 32,
        cookie at 36);
    layout!(iommu_hwpt_page_response, 8, cookie at 0, code at 4);
    layout!(iommu_ioas_map_file, 40, flags at 4, ioas_id at 8, fd at 12, start at 16, length at 24, iova at 32);
}

#[test]
fn commands_have_the_numbers_of_the_uapi() {
    let numbers: Vec<_> = IOCTL_KINDS
        .iter()
        .map(|kind| (kind.name(), kind.command()))
        .collect();
    assert_eq!(
        numbers,
        [
            ("DESTROY", 0x3B80),
            ("IOAS_ALLOC", 0x3B81),
            ("IOAS_COPY", 0x3B83),
            ("IOAS_IOVA_RANGES", 0x3B84),
            ("IOAS_MAP", 0x3B85),
            ("IOAS_UNMAP", 0x3B86),
            ("OPTION", 0x3B87),
            ("HWPT_ALLOC", 0x3B89),
            ("GET_HW_INFO", 0x3B8A),
            ("HWPT_SET_DIRTY_TRACKING", 0x3B8B),
            ("HWPT_GET_DIRTY_BITMAP", 0x3B8C),
            ("HWPT_INVALIDATE", 0x3B8D),
            ("FAULT_QUEUE_ALLOC", 0x3B8E),
            ("IOAS_MAP_FILE", 0x3B8F),
        ]
    );
}

#[test]
fn rights_are_the_uapis_flags_with_a_fixed_address() {
    let flags = |read, write| map_flags(Rights { read, write });
    assert_eq!(flags(true, true), 7);
    assert_eq!(flags(true, false), 5);
    assert_eq!(flags(false, true), 3);
}

#[test]
fn what_is_no_iommufd_is_refused() {
    let errno = |path: &str| {
        Iommufd::open(Path::new(path))
            .expect_err("no iommufd")
            .raw_os_error()
    };
    assert_eq!(errno("/dev/null"), Some(libc::ENOTTY));
    assert_eq!(errno("/nonexistent/iommu"), Some(libc::ENOENT));
}

/// An object whose every ioctl says ENOTTY, as a kernel says of a command that it does not know.
fn deaf() -> Iommufd {
    let options = OpenOptions::new().read(true).write(true).open("/dev/null");
    Iommufd::unchecked(options.expect("/dev/null"))
}

#[test]
fn a_kernel_that_maps_no_files_is_asked_once() {
    let iommufd = deaf();
    let memory = HostMemory {
        file: (iommufd.as_fd(), 0),
        address: 0x1000,
        length: 0x1000,
    };
    for _ in 0..2 {
        let outcome = iommufd.map(IoasId(1), 0, &memory, Rights::ALL);
        assert_eq!(
            outcome.expect_err("deaf").raw_os_error(),
            Some(libc::ENOTTY)
        );
    }
    let counts = iommufd.ioctl_counts();
    assert_eq!(counts.of(IoctlKind::MapFile), 1);
    assert_eq!(counts.of(IoctlKind::Map), 2);
    assert_eq!(counts.failed, 3);
}

#[test]
fn every_call_is_counted_by_its_kind() {
    let iommufd = deaf();
    let (ioas, hwpt, device) = (IoasId(1), HwptId(2), HostDeviceId(3));
    assert!(iommufd.allocate_ioas().is_err());
    assert!(iommufd.destroy(ioas.into()).is_err());
    assert!(iommufd.address_ranges(ioas).is_err());
    assert!(iommufd.unmap(ioas, 0, 0x1000).is_err());
    let shared = SharedMapping {
        source: ioas,
        source_address: 0,
        target: ioas,
        target_address: 0,
        length: 0x1000,
        rights: Rights::ALL,
    };
    assert!(iommufd.share(&shared).is_err());
    assert!(iommufd.hardware_info(device).is_err());
    assert!(iommufd.set_dirty_tracking(hwpt, true).is_err());
    assert!(iommufd.allocate_fault_queue().is_err());
    assert!(
        iommufd
            .allocate_hwpt(device, ioas, HwptOptions::default())
            .is_err()
    );
    let all = NestedInvalidation {
        address: 0,
        pages: u64::MAX,
        leaf_only: false,
    };
    let (done, outcome) = iommufd.invalidate(hwpt, &[all; 3]);
    assert!(outcome.is_err() && done == 0);
    assert!(
        iommufd
            .dirty_pages(hwpt, 0, 0x4_0000, 0x1000, &mut [0])
            .is_err()
    );
    let counts: Vec<u64> = iommufd
        .ioctl_counts()
        .entries()
        .map(|(_, count)| count)
        .collect();
    assert_eq!(counts, [1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(iommufd.ioctl_counts().failed, 11);
}

#[test]
fn a_bitmap_that_is_too_small_never_reaches_the_kernel() {
    let iommufd = deaf();
    for (length, page_size) in [
        (0x4_1000, 0x1000),
        (0x1000, 0),
        (0x1800, 0x1000),
        (0x3000, 0x3000),
    ] {
        let outcome = iommufd.dirty_pages(HwptId(1), 0, length, page_size, &mut [0]);
        assert_eq!(
            outcome.expect_err("refused").kind(),
            io::ErrorKind::InvalidInput,
            "{length:#x}/{page_size:#x}"
        );
    }
    assert_eq!(iommufd.ioctl_counts().of(IoctlKind::DirtyBitmap), 0);
}
