//! Commands of iommufd with the structures that they take.

use std::fmt::Debug;

use iommufd_bindings as uapi;

use super::counts::IoctlKind;

/// The structure that a command takes.
///
/// # Safety
/// The kernel takes `KIND.command()` with a pointer to this type, and touches no memory but this
/// and what its address fields and lengths say.
pub(super) unsafe trait Argument: Copy + Debug {
    const KIND: IoctlKind;
    /// Whether a call that a signal interrupted is to be issued again as it was.
    const REPEATABLE: bool = true;
}

macro_rules! arguments {
    ($($structure:ident => $kind:ident $(, repeatable = $repeatable:literal)?;)*) => {
        $(
            // SAFETY: as the uAPI header says, of which the structures were generated.
            unsafe impl Argument for uapi::$structure {
                const KIND: IoctlKind = IoctlKind::$kind;
                $(const REPEATABLE: bool = $repeatable;)?
            }
        )*
    };
}

arguments! {
    iommu_destroy => Destroy;
    iommu_ioas_alloc => IoasAlloc;
    iommu_ioas_copy => Copy;
    iommu_ioas_iova_ranges => AddressRanges;
    iommu_ioas_map => Map;
    iommu_ioas_map_file => MapFile;
    iommu_ioas_unmap => Unmap;
    iommu_option => Option;
    iommu_hwpt_alloc => HwptAlloc;
    iommu_fault_alloc => FaultQueueAlloc;
    iommu_hw_info => HardwareInfo;
    iommu_hwpt_set_dirty_tracking => SetDirtyTracking;
    iommu_hwpt_get_dirty_bitmap => DirtyBitmap;
    // What was carried out before the signal is not to be repeated.
    iommu_hwpt_invalidate => Invalidate, repeatable = false;
}

/// The value of a structure's size field.
#[allow(clippy::cast_possible_truncation)] // Checked.
pub(super) const fn size_of<T>() -> u32 {
    let size = std::mem::size_of::<T>();
    assert!(size <= 0xFFF);
    size as u32
}

/// Which IOMMU has answered.
pub(super) fn data_type(info: &uapi::iommu_hw_info) -> u32 {
    // SAFETY: both fields of the union are the same integer.
    unsafe { info.__bindgen_anon_1.out_data_type }
}
