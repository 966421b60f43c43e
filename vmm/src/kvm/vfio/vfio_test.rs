//! The VFIO device of the host's KVM, where it has one.

use std::fs::File;

use kvm_ioctls::Kvm;

use super::*;

#[test]
fn a_file_that_is_not_vfio_s_is_refused_and_nothing_is_kept() {
    let Ok(vm) = Kvm::new().and_then(|kvm| kvm.create_vm()) else {
        eprintln!("skipped: this host has no usable /dev/kvm");
        return;
    };
    let vfio = KvmVfio::new(Arc::new(vm));
    let file = File::open("/dev/null").expect("it is there");
    for _ in 0..2 {
        let error = vfio.add(file.as_fd()).err().expect("no device");
        let number = error.raw_os_error();
        assert!(
            matches!(number, Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)),
            "{error}"
        );
    }
}
