//! `--device`: what it means, and every way in which one is refused.

use intel_vtd::AddressWidth;

use super::*;

fn error(argument: &str) -> String {
    parse(argument).expect_err(argument).to_string()
}

#[test]
fn every_alias_of_first_stage_means_the_same() {
    let off = parse("intel-iommu,x-flts=off").expect("valid");
    assert_eq!(parse("intel-iommu,flts=off").expect("valid"), off);
    assert_eq!(parse("intel-iommu,fsts=off").expect("valid"), off);
    assert!(matches!(
        off,
        Parsed::Device(Device::Iommu(IommuConfig {
            first_stage: Some(false),
            ..
        }))
    ));
}

#[test]
fn defaults_are_those_that_help_prints() {
    let expected = IommuConfig {
        address_width: AddressWidth::Bits48,
        scalable: true,
        first_stage: None,
        intremap: true,
        caching_mode: None,
        device_iotlb: false,
        pasid_bits: 0,
        page_requests: false,
        snoop_control: true,
        page_walk_coherency: true,
        keep_translations: false,
        shadow_memory: None,
        bound_pasids: None,
        settled: None,
    };
    assert_eq!(
        parse("intel-iommu").expect("valid"),
        Parsed::Device(Device::Iommu(expected))
    );
}

#[test]
fn a_unit_can_be_one_that_does_not_snoop() {
    let Ok(Parsed::Device(Device::Iommu(unit))) =
        parse("intel-iommu,x-snoop-control=off,x-page-walk-coherency=off")
    else {
        panic!("a unit");
    };
    let caps = crate::machine::unit::unit_config(&unit, false, 46).capabilities();
    let ecap = caps.expect("a unit").ecap;
    assert!(!ecap.sc() && !ecap.c() && !ecap.smpwcs());
    let Ok(Parsed::Device(Device::Iommu(unit))) = parse("intel-iommu") else {
        panic!("a unit");
    };
    let caps = crate::machine::unit::unit_config(&unit, false, 46).capabilities();
    let ecap = caps.expect("a unit").ecap;
    assert!(ecap.sc() && ecap.c() && ecap.smpwcs());
}

#[test]
fn an_unknown_type_lists_the_valid_ones() {
    assert_eq!(
        error("intel-vtd"),
        "--device: unknown type `intel-vtd`; valid types: intel-iommu, edu, pcie-root-port, virtio-blk-pci, virtio-net-pci, \
         vhost-vsock-pci, virtio-rng-pci, virtio-balloon-pci, virtio-mem-pci, virtio-console, vfio-pci (`--device help` describes them)"
    );
}

#[test]
fn disks_and_nets_are_devices_as_well_and_errors_name_the_option_that_was_used() {
    let Ok(Parsed::Device(Device::Function(disk))) = parse("virtio-blk-pci,path=d.img,id=d,bus=p")
    else {
        panic!("a disk");
    };
    assert_eq!(
        disk,
        virtio::disk("path=d.img,id=d,bus=p").expect("the same")
    );
    let Ok(Parsed::Device(Device::Function(net))) = parse("virtio-net,tap=t0") else {
        panic!("a network device");
    };
    assert_eq!(net, virtio::net("tap=t0").expect("the same"));
    assert_eq!(
        error("virtio-blk-pci,readonly=on"),
        "--device virtio-blk-pci: key `path` is missing; add `path=FILE`"
    );
    assert_eq!(
        error("virtio-net-pci,tap=0123456789abcdef"),
        "--device virtio-net-pci: tap=`0123456789abcdef` is no interface name: at most 15 bytes without `/`"
    );
}

#[test]
fn the_kernel_moves_packets_where_it_is_asked_to() {
    for (argument, wanted) in [
        ("virtio-net-pci,tap=t0", false),
        ("virtio-net-pci,tap=t0,vhost=off", false),
        ("virtio-net-pci,tap=t0,vhost=on", true),
    ] {
        let Ok(Parsed::Device(Device::Function(function))) = parse(argument) else {
            panic!("{argument}");
        };
        assert!(
            matches!(function.kind, FunctionKind::Net(net) if net.vhost == wanted),
            "{argument}"
        );
    }
}

#[test]
fn sockets_need_an_address_that_a_guest_can_have() {
    for (argument, wanted) in [
        ("vhost-vsock,cid=3", 3),
        ("vhost-vsock-pci,guest-cid=0xfffffffe", 0xffff_fffe),
    ] {
        let Ok(Parsed::Device(Device::Function(function))) = parse(argument) else {
            panic!("{argument}");
        };
        assert_eq!(function.kind, FunctionKind::Vsock(wanted), "{argument}");
    }
    assert_eq!(
        error("vhost-vsock-pci"),
        "--device vhost-vsock-pci: key `cid` is missing; add `cid=NUMBER`"
    );
    for reserved in ["0", "1", "2", "4294967295", "4294967299"] {
        assert_eq!(
            error(&format!("vhost-vsock-pci,cid={reserved}")),
            format!(
                "--device vhost-vsock-pci: cid={reserved} is no address of a guest: 0, 1 and 2 are not for guests; \
                 write a number from 3 to 4294967294"
            )
        );
    }
}

#[test]
fn an_unknown_key_lists_the_valid_ones() {
    assert_eq!(
        error("intel-iommu,awbits=48"),
        "--device intel-iommu: unknown key `awbits`; valid keys: x-flts, aw-bits, intremap, caching-mode, x-scalable-mode, device-iotlb, pasid-bits, svm, shadow-memory, bound-pasids, x-snoop-control, x-page-walk-coherency, x-keep-translations, x-settled"
    );
}

#[test]
fn a_key_given_twice_is_refused_under_any_name() {
    assert_eq!(
        error("edu,addr=3,addr=4"),
        "--device edu: key `addr` is given twice; keep one of them"
    );
    assert_eq!(
        error("intel-iommu,x-flts=on,flts=on"),
        "--device intel-iommu: key `flts` is given twice (it is another name of `x-flts`); keep one of them"
    );
}

#[test]
fn a_bad_value_says_what_is_expected() {
    assert_eq!(
        error("intel-iommu,aw-bits=40"),
        "--device intel-iommu: aw-bits=`40` is not valid: expected one of 39|48|57"
    );
    assert_eq!(
        error("intel-iommu,caching-mode=yes"),
        "--device intel-iommu: caching-mode=`yes` is not valid: expected `on`, `off` or `auto`"
    );
}

#[test]
fn a_key_without_value_says_how_to_write_it() {
    assert_eq!(
        error("edu,dma_mask"),
        "--device edu: `dma_mask` has no value; write `dma_mask=VALUE` (valid keys: dma_mask, msi-vectors, ats, pasid, pri, migration, id, bus, addr)"
    );
}

#[test]
fn first_stage_without_scalable_mode_is_a_conflict_only_when_asked_for() {
    assert!(error("intel-iommu,x-flts=on,scalable-mode=off").contains("needs scalable mode"));
    let legacy = parse("intel-iommu,scalable-mode=off").expect("valid");
    assert!(matches!(
        legacy,
        Parsed::Device(Device::Iommu(IommuConfig {
            first_stage: Some(false),
            scalable: false,
            ..
        }))
    ));
}

#[test]
fn first_stage_tables_need_more_than_39_bits() {
    assert!(error("intel-iommu,x-flts=on,aw-bits=39").contains("needs 48 or 57 address bits"));
    let narrow = parse("intel-iommu,aw-bits=39").expect("valid");
    assert!(matches!(
        narrow,
        Parsed::Device(Device::Iommu(IommuConfig {
            first_stage: Some(false),
            ..
        }))
    ));
}

#[test]
fn help_of_a_type_names_every_key_with_its_default() {
    let Parsed::Help(text) = parse("intel-iommu,help").expect("valid") else {
        panic!("not help")
    };
    for fragment in [
        "x-flts=on|off|auto",
        "aw-bits=39|48|57",
        "[default: 48]",
        "(also: flts, fsts)",
        "(also: scalable-mode)",
    ] {
        assert!(text.contains(fragment), "{fragment} in {text}");
    }
    let Parsed::Help(text) = parse("help").expect("valid") else {
        panic!("not help")
    };
    assert!(text.contains("virtio-rng-pci (also: virtio-rng, rng): entropy source"));
}

#[test]
fn what_a_device_asks_of_the_unit_needs_what_that_is_built_on() {
    assert_eq!(
        error("intel-iommu,svm=on,pasid-bits=20"),
        "--device intel-iommu: svm=on needs device-iotlb=on; add that, or drop svm=on"
    );
    assert_eq!(
        error("intel-iommu,svm=on,device-iotlb=on"),
        "--device intel-iommu: svm=on needs pasid-bits=20; add that, or drop svm=on"
    );
    assert_eq!(
        error("intel-iommu,pasid-bits=8,x-scalable-mode=off"),
        "--device intel-iommu: pasid-bits needs x-scalable-mode=on; add that, or drop pasid-bits"
    );
    assert_eq!(
        error("intel-iommu,pasid-bits=21"),
        "--device intel-iommu: pasid-bits=21 is too wide: a PASID has at most 20 bits; write `pasid-bits=20` or less"
    );
    assert_eq!(
        error("edu,pri=on"),
        "--device edu: pri=on needs ats=on; add `ats=on` or drop `pri=on`"
    );
}

#[test]
fn another_process_serves_a_device_only_by_itself_and_without_a_unit() {
    for (device, words) in [
        ("virtio-blk-pci", "--disk vhost-user=s: "),
        ("virtio-net-pci", "--net vhost-user=s: "),
    ] {
        let parsed = parse(&format!("{device},vhost-user=s,id=d"));
        let Ok(Parsed::Device(Device::Function(function))) = parsed else {
            panic!("{device}");
        };
        assert!(matches!(function.kind, FunctionKind::VhostUser(_)));
        assert_eq!(function.id.as_deref(), Some("d"));
        let refused = virtio::check(&[function], true).unwrap_err().to_string();
        assert!(refused.starts_with(words), "{refused}");
        let remedy = "leave out --device intel-iommu";
        assert!(refused.contains(remedy), "{refused}");
    }
    for (both, key) in [
        ("virtio-net-pci,vhost-user=s,tap=t", "tap"),
        ("virtio-net-pci,vhost-user=s,queues=2", "queues"),
        ("virtio-net-pci,vhost-user=s,vhost=off", "vhost"),
        ("virtio-blk-pci,vhost-user=s,path=p", "path"),
        ("virtio-blk-pci,vhost-user=s,readonly=on", "readonly"),
    ] {
        let words = format!("{key} and vhost-user cannot be together");
        assert!(error(both).contains(&words), "{both}");
    }
}
