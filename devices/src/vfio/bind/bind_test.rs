use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use vmm_sys_util::errno;
use vmm_sys_util::tempdir::TempDir;

use super::*;

const DEVICE: &str = "0000:01:00.0";

/// The error for `number` in a `/sys` with the device and its group, for which nothing is reserved
/// but what an interrupt is.
fn error(number: i32, neighbours: &[(&str, Option<&str>)], allowed: &str) -> BindError {
    error_with("", number, neighbours, allowed)
}

/// As [`error`], with this reserved for the group besides.
fn error_with(
    reserved: &str,
    number: i32,
    neighbours: &[(&str, Option<&str>)],
    allowed: &str,
) -> BindError {
    let directory = TempDir::new().expect("directory");
    let sys = directory.as_path();
    let group = sys.join("group");
    let device = |name: &str, driver: Option<&str>| {
        fs::create_dir_all(group.join("devices").join(name)).expect("member");
        let device = sys.join("bus/pci/devices").join(name);
        fs::create_dir_all(&device).expect("device");
        symlink(&group, device.join("iommu_group")).expect("group");
        if let Some(driver) = driver {
            symlink(format!("drivers/{driver}"), device.join("driver")).expect("driver");
        }
    };
    device(DEVICE, Some("vfio-pci"));
    for (name, driver) in neighbours {
        device(name, *driver);
    }
    let interrupts = "0x00000000fee00000 0x00000000feefffff msi\n";
    fs::write(
        group.join("reserved_regions"),
        format!("{reserved}{interrupts}"),
    )
    .expect("regions");
    let parameters = sys.join("module/iommufd/parameters");
    fs::create_dir_all(&parameters).expect("parameters");
    fs::write(parameters.join("allow_unsafe_interrupts"), allowed).expect("parameter");
    let sysfs = Sysfs {
        sys: sys.to_owned(),
        dev: sys.join("dev"),
    };
    let address = DEVICE.parse().expect("address");
    let source = io::Error::from_raw_os_error(number);
    bind_error("the device".to_owned(), Some(address), source, &sysfs)
}

#[test]
fn a_device_alone_in_its_group_lacks_isolated_interrupts() {
    let error = error(libc::EPERM, &[], "N\n");
    assert!(matches!(error, BindError::UnsafeInterrupts { .. }));
    assert!(error.to_string().contains("allow_unsafe_interrupts=1"));
}

#[test]
fn where_unsafe_interrupts_are_allowed_somebody_else_has_the_group() {
    let error = error(libc::EPERM, &[], "Y\n");
    assert!(matches!(error, BindError::GroupOwned { .. }));
}

#[test]
fn neighbours_are_named_with_their_drivers() {
    let used = [("0000:01:00.1", Some("nvme")), ("0000:01:00.2", None)];
    let text = error(libc::EPERM, &used, "N\n").to_string();
    assert!(text.contains("0000:01:00.1 (nvme);"), "{text}");
    let owned = [("0000:01:00.1", Some("vfio-pci"))];
    let text = error(libc::EPERM, &owned, "N\n").to_string();
    assert!(
        text.contains("another iommufd, with 0000:01:00.1;"),
        "{text}"
    );
}

#[test]
fn other_errors_say_what_they_are() {
    assert!(matches!(
        error(libc::EBUSY, &[], "N"),
        BindError::Busy { .. }
    ));
    // Bound already, or no VFIO device at all.
    for number in [libc::EINVAL, libc::ENOTTY] {
        assert!(matches!(error(number, &[], "N"), BindError::Refused { .. }));
    }
    let text = error(libc::ENOMEM, &[], "N").to_string();
    assert!(text.contains("os error 12"), "{text}");
}

#[test]
fn memory_that_the_firmware_reserves_for_the_device_is_named_with_a_remedy() {
    const RMRR: &str = "0x000000007a000000 0x000000007a7fffff direct\n";
    let text = error_with(RMRR, libc::EINVAL, &[], "N").to_string();
    for part in [
        "the device cannot be assigned",
        "for it to use",
        "RMRR or IVMD: 0x7a000000 to 0x7a7fffff)",
        "switch the function that needs it off in the firmware's settings",
        "reserved_regions",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The region may be the neighbour's.
    let others = [("0000:01:00.1", Some("vfio-pci"))];
    let text = error_with(RMRR, libc::EINVAL, &others, "N").to_string();
    assert!(
        text.contains("others of its IOMMU group (0000:01:00.1)"),
        "{text}"
    );
}

#[test]
fn what_the_kernel_gives_up_for_a_user_is_in_nobody_s_way() {
    // As graphics and USB controllers have them.
    let relaxable = "0x000000007a000000 0x000000007a7fffff direct-relaxable\n";
    let error = error_with(relaxable, libc::EINVAL, &[], "N");
    assert!(matches!(error, BindError::Refused { .. }), "{error}");
    // Another error means something else.
    let direct = "0x000000007a000000 0x000000007a7fffff direct\n";
    let error = error_with(direct, libc::EBUSY, &[], "N");
    assert!(matches!(error, BindError::Busy { .. }), "{error}");
}

#[test]
fn what_the_kernel_said_comes_through_the_crate() {
    let busy = || errno::Error::new(libc::EBUSY);
    for error in [
        VfioError::VfioDeviceBindIommufd(busy()),
        VfioError::VfioDeviceAttachIommufdPt(busy()),
        VfioError::VfioDeviceDetachIommufdPt(busy()),
        VfioError::NewVfioIommufd(IommufdError::IommuIoasAlloc(busy())),
        VfioError::OpenDeviceCdev(io::Error::from_raw_os_error(libc::EBUSY)),
    ] {
        assert_eq!(io_error(error).raw_os_error(), Some(libc::EBUSY));
    }
    let text = io_error(VfioError::VfioDeviceDisableIrq).to_string();
    assert!(text.contains("disable"), "{text}");
}

#[test]
fn a_file_that_is_no_iommufd_is_not_shared() {
    let null = File::open("/dev/null").expect("null");
    let error = share_iommufd(null.as_fd()).err().expect("not an iommufd");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
}
