//! `--object iommufd` and `--device vfio-pci`: what they mean, and what is refused with them.

use super::super::testing::{self, printed};
use super::*;
use crate::config::Config;

fn config(line: &str) -> Config {
    testing::config(&format!("--kernel k {line}"))
}

fn error(line: &str) -> String {
    testing::error(&format!("--kernel k {line}"))
}

fn device(line: &str) -> VfioConfig {
    let config = config(&format!(
        "--object iommufd,id=a --device vfio-pci,iommufd=a,{line}"
    ));
    match config.functions.as_slice() {
        [
            FunctionConfig {
                kind: FunctionKind::Vfio(device),
                ..
            },
        ] => device.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_and_devices_become_typed_values() {
    let config = config(
        "--object iommufd,id=a --object iommufd,id=b,path=/tmp/iommu --object iommufd,id=c,fd=9,hugepages=off \
         --device vfio-pci,host=0000:01:00.0,iommufd=b,addr=4,id=disk",
    );
    let object = |id: &str, source| IommufdConfig {
        id: id.to_owned(),
        source,
        huge_pages: id != "c",
    };
    assert_eq!(
        config.iommufds,
        [
            object("a", FileSource::Path("/dev/iommu".into())),
            object("b", FileSource::Path("/tmp/iommu".into())),
            object("c", FileSource::Descriptor(9)),
        ]
    );
    let address = HostAddress {
        segment: 0,
        bus: 1,
        device: 0,
        function: 0,
    };
    assert_eq!(
        config.functions,
        [FunctionConfig {
            id: Some("disk".to_owned()),
            bus: None,
            device: Some(4),
            kind: FunctionKind::Vfio(VfioConfig {
                device: HostDevice::Address(address),
                iommufd: "b".to_owned(),
                needs_reset: true,
                pasid: None,
                ats: None,
                pri: None,
            }),
        }]
    );
}

#[test]
fn a_device_is_named_in_one_of_three_ways() {
    let address = HostDevice::Address("0000:3a:1f.7".parse().expect("an address"));
    assert_eq!(device("host=3a:1f.7").device, address);
    assert_eq!(
        device("sysfsdev=/sys/bus/pci/devices/0000:3a:1f.7").device,
        address
    );
    assert_eq!(device("fd=7").device, HostDevice::Descriptor(7));
    assert!(!device("fd=7,needs-reset=off").needs_reset);
    let shown = |line| {
        let device = device(line);
        (device.pasid, device.ats, device.pri)
    };
    let (on, off) = (Some(true), Some(false));
    assert_eq!(shown("fd=7,pasid=on,ats=off"), (on, off, None));
    assert_eq!(shown("fd=7,pasid=auto,ats=on,pri=off"), (None, on, off));
    let start = "--object iommufd,id=a --device vfio-pci,iommufd=a";
    assert_eq!(
        error(start),
        "--device vfio-pci: key `host` is missing; add `host=0000:01:00.0`"
    );
    assert_eq!(
        error(&format!("{start},host=1:0.0,fd=7")),
        "--device vfio-pci: host, sysfsdev and fd each name the device; keep one of them"
    );
    assert_eq!(
        error(&format!("{start},host=1:0")),
        "--device vfio-pci: \"1:0\" is not a PCI address; write it as SEGMENT:BUS:DEVICE.FUNCTION, for example 0000:01:00.0"
    );
    assert!(
        error(&format!("{start},sysfsdev=/sys/devices/pci0000:00"))
            .contains("is not a PCI address")
    );
    for fd in ["2", "2147483648"] {
        assert!(error(&format!("{start},fd={fd}")).contains("is no file descriptor for this"));
    }
}

#[test]
fn an_object_has_a_known_type_one_source_and_its_own_id() {
    assert_eq!(
        error("--object memory,id=a"),
        "--object memory,id=a: unknown type; write `--object iommufd,id=ID`"
    );
    assert_eq!(
        error("--object iommufd"),
        "--object iommufd: key `id` is missing; add `id=iommufd0`"
    );
    assert_eq!(
        error("--object iommufd,id=a,fd=5,path=/x"),
        "--object iommufd: path and fd are both given; keep one of them"
    );
    assert_eq!(
        error("--object iommufd,id=a --object iommufd,id=a"),
        "--object iommufd,id=a: two objects have this id; give one of them another"
    );
}

#[test]
fn a_device_needs_an_object_that_is_there() {
    assert_eq!(
        error("--device vfio-pci,host=1:0.0,iommufd=x"),
        "--device vfio-pci,host=0000:01:00.0,iommufd=x: there is no object with this id; add `--object iommufd,id=x`"
    );
    assert_eq!(
        error("--object iommufd,id=a --object iommufd,id=b --device vfio-pci,fd=8,iommufd=x"),
        "--device vfio-pci,fd=8,iommufd=x: there is no object with this id; add `--object iommufd,id=x`, or choose one of a, b"
    );
    assert_eq!(
        error("--object iommufd,id=a --device vfio-pci,host=1:0.0"),
        "--device vfio-pci: key `iommufd` is missing; add `iommufd=ID`"
    );
}

#[test]
fn nothing_of_the_host_is_given_twice() {
    let start = "--object iommufd,id=a";
    assert!(
        error(&format!(
            "{start} --device vfio-pci,host=1:0.0,iommufd=a --device vfio-pci,host=0000:01:00.0,iommufd=a"
        ))
        .contains("the device is given twice")
    );
    assert!(
        error("--object iommufd,id=a,fd=5 --device vfio-pci,fd=5,iommufd=a")
            .starts_with("fd=5: the file descriptor is given twice")
    );
}

#[test]
fn units_that_devices_cannot_be_behind_are_refused_with_reason_and_remedy() {
    let start = "--object iommufd,id=a --device vfio-pci,host=1:0.0,iommufd=a --device intel-iommu";
    let silent = error(&format!("{start},caching-mode=off"));
    assert!(
        silent.starts_with(
            "--device intel-iommu: caching-mode=off does not go with --device vfio-pci,host=0000:01:00.0,iommufd=a: "
        ),
        "{silent}"
    );
    assert!(
        silent.contains("does not announce what it maps"),
        "{silent}"
    );
    assert!(silent.contains("leave it out"), "{silent}");
    // What depends on the host is asked of the host.
    for keys in [
        "",
        ",x-flts=on",
        ",svm=on,device-iotlb=on,pasid-bits=20",
        ",x-flts=off",
        ",x-flts=auto",
        ",caching-mode=on",
        ",aw-bits=39",
    ] {
        assert!(config(&format!("{start}{keys}")).iommu.is_some());
    }
    // Without an assigned device all of that is fine.
    for keys in [
        ",x-flts=on",
        ",caching-mode=off",
        ",svm=on,device-iotlb=on,pasid-bits=20",
    ] {
        config(&format!("--object iommufd,id=a --device intel-iommu{keys}"));
    }
}

#[test]
fn help_lists_the_keys() {
    for (line, fragment) in [
        ("--object help", "id=NAME"),
        ("--object iommufd,help", "[default: /dev/iommu]"),
        ("--device vfio-pci,help", "host=ADDRESS"),
        ("--device help", "vfio-pci"),
    ] {
        let text = printed(line);
        assert!(text.contains(fragment), "{text}");
    }
}
