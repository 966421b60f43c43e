use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

const DEVICE: &str = "0000:01:00.0";

/// A `/sys` with the device and its group, and the error for `number` there.
fn error(number: i32, neighbours: &[(&str, Option<&str>)], allowed: &str) -> BindError {
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
    assert!(matches!(
        error(libc::EINVAL, &[], "N"),
        BindError::Refused { .. }
    ));
    let text = error(libc::ENOMEM, &[], "N").to_string();
    assert!(text.contains("os error 12"), "{text}");
}

#[test]
fn a_file_that_is_no_device_is_refused() {
    let file = TempFile::new().expect("file").into_file();
    assert!(matches!(
        VfioCdev::from_file(file),
        Err(FileError::NotADevice)
    ));
    let null = File::open("/dev/null").expect("null");
    let device = VfioCdev::from_file(null).expect("a character device");
    assert_eq!(device.address(), None);
    let iommufd = File::open("/dev/null").expect("null");
    let error = device.bind(iommufd.as_fd()).expect_err("not VFIO");
    assert!(matches!(error, BindError::Refused { .. }), "{error}");
}

#[test]
fn regions_lie_where_vfio_pci_puts_them() {
    assert_eq!(position(0, 0x10).expect("BAR 0"), 0x10);
    assert_eq!(position(7, 4).expect("configuration"), 0x0700_0000_0004);
    assert!(position(0, 1 << 40).is_err(), "it would be the next region");
}

#[test]
fn a_busy_device_is_tried_again_and_a_broken_one_is_not() {
    let busy = || io::Error::from_raw_os_error(libc::EBUSY);
    let mut waited = Waited::new();
    let mut tries = 0;
    let result = retry(
        || waited.may_wait(),
        &[libc::EBUSY],
        || {
            tries += 1;
            if tries < 3 { Err(busy()) } else { Ok(tries) }
        },
    );
    assert_eq!(result.expect("in the end"), 3);
    let mut tries = 0;
    let result: io::Result<()> = retry(
        || waited.may_wait(),
        &[libc::EAGAIN],
        || {
            tries += 1;
            Err(busy())
        },
    );
    assert!(result.is_err());
    assert_eq!(tries, 1);
}

#[test]
fn who_has_waited_much_of_late_does_not_wait_again() {
    let mut waited = Waited {
        since: Instant::now(),
        time: BUSY_LIMIT,
    };
    let mut tries = 0;
    let mut busy = || -> io::Result<()> {
        tries += 1;
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    };
    assert!(retry(|| waited.may_wait(), &[libc::EBUSY], &mut busy).is_err());
    assert!(retry(|| waited.may_wait(), &[libc::EBUSY], &mut busy).is_err());
    assert_eq!(tries, 2);
    let long_ago = Instant::now().checked_sub(Waited::FORGOTTEN + BUSY_PAUSE);
    let mut waited = Waited {
        since: long_ago.expect("the host is up for longer"),
        time: BUSY_LIMIT,
    };
    assert!(waited.may_wait());
}

#[test]
fn requests_with_a_pasid_are_named_by_flag_and_number() {
    let attach = |pasid| {
        let to = sys::attachment(pasid, 7);
        [to.argsz, to.flags, to.pt_id, to.pasid]
    };
    assert_eq!(attach(None), [16, 0, 7, 0]);
    assert_eq!(attach(Some(0xf_ffff)), [16, 1, 7, 0xf_ffff]);
    let detach = |pasid| {
        let from = sys::detachment(pasid);
        [from.argsz, from.flags, from.pasid]
    };
    assert_eq!(detach(None), [12, 0, 0]);
    assert_eq!(detach(Some(5)), [12, 1, 5]);
}
