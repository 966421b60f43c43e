//! Assigning on a host without devices: what goes wrong before there is one.

use std::io;

use devices::vfio::HostAddress;
use kvm_ioctls::Kvm;

use super::claim::claim;
use super::*;
use crate::config::{FileSource, IommufdConfig};
use crate::kvm::KvmVfio;
use crate::limits;

fn iommufd(id: &str, source: FileSource) -> String {
    let config = IommufdConfig {
        id: id.to_owned(),
        source,
        huge_pages: true,
    };
    files::iommufd(&config)
        .err()
        .expect("no iommufd")
        .to_string()
}

#[test]
fn an_iommufd_that_cannot_be_opened_is_named_with_the_remedy() {
    assert_eq!(
        iommufd("a", FileSource::Path("/nonexistent/iommu".into())),
        "--object iommufd,id=a: /nonexistent/iommu cannot be opened (No such file or directory (os error 2)); the host's kernel \
         needs CONFIG_IOMMUFD (`modprobe iommufd`), Linux 6.6 or later"
    );
    let other = iommufd("b", FileSource::Path("/dev/null".into()));
    assert!(
        other.ends_with("it is no iommufd, so write another path, or leave it out"),
        "{other}"
    );
    assert_eq!(
        iommufd("c", FileSource::Descriptor(99_999)),
        "--object iommufd,id=c,fd=99999: nido was not started with this file descriptor; open it beforehand, in a shell with \
         `99999<>/dev/iommu`"
    );
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let number = std::os::fd::AsRawFd::as_raw_fd(&null);
    assert_eq!(
        iommufd("d", FileSource::Descriptor(number)),
        format!("--object iommufd,id=d,fd={number}: the file descriptor is not of /dev/iommu")
    );
}

#[test]
fn a_device_without_its_iommufd_is_refused() {
    let Ok(vm) = Kvm::new().and_then(|kvm| kvm.create_vm()) else {
        eprintln!("skipped: this host has no usable /dev/kvm");
        return;
    };
    let host = Host::open(&[], Arc::new(KvmVfio::new(Arc::new(vm)))).expect("nothing to open");
    let config = VfioConfig {
        device: HostDevice::Descriptor(9),
        iommufd: "a".to_owned(),
        needs_reset: true,
        pasid: None,
        ats: None,
        pri: None,
    };
    let error = host.bind(&config).err().expect("no iommufd").to_string();
    assert!(
        error.starts_with("--device vfio-pci,fd=9,iommufd=a: there is no iommufd with this id"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_vfio_device_is_told_from_a_kernel_without_support() {
    let text = |errno| error::Why::Kvm(io::Error::from_raw_os_error(errno)).to_string();
    assert!(text(libc::ENODEV).contains("the host's kernel needs CONFIG_KVM_VFIO"));
    let other = text(libc::EINVAL);
    assert!(
        other.ends_with("open a node of /dev/vfio/devices"),
        "{other}"
    );
    assert!(!other.contains("CONFIG"), "{other}");
    assert!(text(libc::EEXIST).ends_with("give it once"));
}

#[test]
fn a_device_is_claimed_once_until_it_is_given_back() {
    let claimed = Arc::default();
    let address: HostAddress = "0000:01:00.0".parse().expect("an address");
    let claim = |address| claim(&claimed, address);
    let first = claim(Some(address)).expect("free");
    assert!(matches!(claim(Some(address)), Err(error::Why::Taken)));
    // What has no known address is told apart by the kernel.
    drop((claim(None).expect("free"), claim(None).expect("free")));
    drop(first);
    assert!(claim(Some(address)).is_ok());
}

#[test]
fn a_shortage_of_lockable_memory_is_told_with_both_numbers() {
    let failure = |errno| intel_vtd_host::AddError::Map {
        name: "device".to_owned(),
        start: 0,
        length: 0x1000,
        cause: io::Error::from_raw_os_error(errno),
    };
    let error = AssignError::add(failure(libc::ENOMEM), u64::MAX);
    match limits::lock_limit() {
        Some(limit) => {
            let text = error.to_string();
            let numbers = format!(
                "this process may lock {} MiB, and the guest has {} MiB",
                limit >> 20,
                u64::MAX >> 20
            );
            assert!(text.contains(&numbers), "{text}");
        }
        None => assert!(matches!(error, AssignError::Add(_))),
    }
    let other = AssignError::add(failure(libc::EINVAL), u64::MAX);
    assert!(matches!(other, AssignError::Add(_)));
}
