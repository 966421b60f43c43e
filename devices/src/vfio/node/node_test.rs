use vmm_sys_util::tempfile::TempFile;

use super::*;

#[test]
fn a_file_that_is_no_device_is_refused() {
    let file = TempFile::new().expect("file").into_file();
    assert!(matches!(
        VfioNode::from_file(file),
        Err(FileError::NotADevice)
    ));
    let null = File::open("/dev/null").expect("null");
    let device = VfioNode::from_file(null).expect("a character device");
    assert_eq!(device.address(), None);
    assert_eq!(device.group(), None);
}
