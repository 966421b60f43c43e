//! What is found out about hosts, and which units go with them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Mutex;

use super::reach::address_bits;
use super::*;
use crate::host_iommu::{
    HardwareInfo, HostMemory, HwptId, IoasId, NestedInvalidation, NestedOptions, NestedTable,
    ObjectId, Rights, SharedMapping,
};
use intel_vtd::spec::registers::{Capability, Caps, ExtendedCapability};
use intel_vtd::{AddressWidth, Scalable, Stages};

/// A host that has page tables of some kinds, and keeps account of its objects.
struct Host {
    info: HardwareInfo,
    /// The last address of each kind of table: plain, with dirty tracking, nesting parent.
    last: [Option<u64>; 3],
    /// Objects, and for spaces the last address that a table left it.
    objects: Mutex<BTreeMap<u32, Option<u64>>>,
}

/// Of a unit with ECAP.SC.
const SNOOPING: u64 = 0x80;

impl Host {
    fn new(last: [Option<u64>; 3]) -> Self {
        Self {
            info: HardwareInfo {
                intel: Some(IntelInfo {
                    caps: Caps {
                        cap: Capability::new(),
                        ecap: ExtendedCapability::from_bits(SNOOPING),
                    },
                    no_read_only_parent: true,
                }),
                pasid_bits: 20,
                privileged_pasids: true,
                dirty_tracking: true,
                ats: true,
            },
            last,
            objects: Mutex::default(),
        }
    }

    fn capabilities(&self) -> HostCapabilities {
        let capabilities = HostCapabilities::probe(self, HostDeviceId(7)).unwrap();
        assert!(self.objects.lock().unwrap().is_empty(), "nothing is left");
        capabilities
    }

    fn add(&self) -> u32 {
        let mut objects = self.objects.lock().unwrap();
        let id = objects.last_key_value().map_or(1, |(id, _)| id + 1);
        objects.insert(id, None);
        id
    }
}

fn not_asked<T>() -> io::Result<T> {
    panic!("a probe asks no such thing")
}

impl HostIommu for Host {
    fn allocate_ioas(&self) -> io::Result<IoasId> {
        Ok(IoasId(self.add()))
    }
    fn destroy(&self, object: ObjectId) -> io::Result<()> {
        let (ObjectId::Ioas(IoasId(id)) | ObjectId::Hwpt(HwptId(id))) = object;
        let mut objects = self.objects.lock().unwrap();
        // Tables come after their spaces here.
        assert_eq!(objects.last_key_value().map(|(id, _)| *id), Some(id));
        objects.remove(&id);
        Ok(())
    }
    fn address_ranges(&self, ioas: IoasId) -> io::Result<(Vec<RangeInclusive<u64>>, u64)> {
        let last = self.objects.lock().unwrap()[&ioas.0].expect("a table");
        Ok((vec![0..=0xFEDF_FFFF, 0xFEF0_0000..=last], 0x1000))
    }
    fn allocate_hwpt(
        &self,
        device: HostDeviceId,
        ioas: IoasId,
        options: HwptOptions,
    ) -> io::Result<HwptId> {
        assert_eq!(device, HostDeviceId(7));
        let [plain, dirty, parent] = self.last;
        let last = match (options.nesting_parent, options.dirty_tracking) {
            (false, false) => plain,
            (false, true) => dirty,
            (true, false) => parent,
            (true, true) => None,
        };
        // EOPNOTSUPP
        let last = last.ok_or_else(|| io::Error::from_raw_os_error(95))?;
        self.objects.lock().unwrap().insert(ioas.0, Some(last));
        Ok(HwptId(self.add()))
    }
    fn hardware_info(&self, _: HostDeviceId) -> io::Result<HardwareInfo> {
        Ok(self.info)
    }
    fn map(&self, _: IoasId, _: u64, _: &HostMemory<'_>, _: Rights) -> io::Result<()> {
        not_asked()
    }
    fn share(&self, _: &SharedMapping) -> io::Result<()> {
        not_asked()
    }
    fn unmap(&self, _: IoasId, _: u64, _: u64) -> io::Result<u64> {
        not_asked()
    }
    fn allocate_nested(
        &self,
        _: HostDeviceId,
        _: HwptId,
        _: &NestedTable,
        _: NestedOptions,
    ) -> io::Result<HwptId> {
        not_asked()
    }
    fn invalidate(&self, _: HwptId, _: &[NestedInvalidation]) -> (usize, io::Result<()>) {
        (0, not_asked())
    }
    fn set_dirty_tracking(&self, _: HwptId, _: bool) -> io::Result<()> {
        not_asked()
    }
    fn dirty_pages(&self, _: HwptId, _: u64, _: u64, _: u64, _: &mut [u64]) -> io::Result<()> {
        not_asked()
    }
}

const LAST_39: u64 = 0x7F_FFFF_FFFF;
const LAST_47: u64 = 0x7FFF_FFFF_FFFF;
const LAST_48: u64 = 0xFFFF_FFFF_FFFF;
const LAST_57: u64 = 0x1FF_FFFF_FFFF_FFFF;

/// A unit that shadows.
fn unit(aw_bits: u8) -> UnitConfig {
    UnitConfig::legacy(46)
        .with_address_width(AddressWidth::from_bits(aw_bits).unwrap())
        .with_scalable(Scalable::new(Stages::Second))
        .with_caching_mode(true)
        .with_snoop_control(true)
}

#[test]
fn what_each_kind_of_table_translates_is_found_by_trying() {
    let capabilities = Host::new([Some(LAST_47), Some(LAST_48), Some(LAST_48)]).capabilities();
    let reach = |address_bits| TableReach {
        address_bits,
        page_size: 0x1000,
    };
    assert_eq!(capabilities.plain, reach(47));
    assert_eq!(capabilities.dirty_tracking, Some(reach(48)));
    assert_eq!(capabilities.nesting_parent, Some(reach(48)));
    assert_eq!(capabilities.pasid_bits, 20);
    assert!(capabilities.privileged_pasids);
    assert!(capabilities.can_nest());
    assert_eq!(
        capabilities.to_string(),
        "Intel VT-d, 48-bit addresses, dirty tracking, nesting, snoop control, nothing read-only below first-stage tables (erratum \
         772415), 20-bit PASIDs"
    );

    let mut host = Host::new([Some(LAST_47), Some(LAST_48), Some(LAST_48)]);
    host.info.ats = false;
    if let Some(intel) = &mut host.info.intel {
        intel.no_read_only_parent = false;
    }
    assert_eq!(
        host.capabilities().to_string(),
        "Intel VT-d, 48-bit addresses, dirty tracking, nesting, snoop control, no ATS, 20-bit PASIDs"
    );

    let mut host = Host::new([Some(LAST_48), None, None]);
    host.info.intel = None;
    host.info.pasid_bits = 0;
    let capabilities = host.capabilities();
    assert!(!capabilities.can_nest());
    assert_eq!(
        capabilities.to_string(),
        "not VT-d, 48-bit addresses, no dirty tracking, no nesting, no snoop control, no PASIDs"
    );
}

#[test]
fn a_host_without_any_table_is_an_error_and_leaves_nothing() {
    let host = Host::new([None, None, None]);
    let error = HostCapabilities::probe(&host, HostDeviceId(7)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(95));
    assert!(host.objects.lock().unwrap().is_empty());
}

#[test]
fn a_unit_wider_than_the_host_is_refused_with_both_widths() {
    let check = |last, aw_bits| {
        let capabilities = Host::new([Some(last), None, None]).capabilities();
        capabilities.check(&unit(aw_bits))
    };
    for (last, host, asked) in [
        (LAST_39, 39, 48),
        (LAST_47, 47, 48),
        (LAST_48, 48, 57),
        (0xFFFF_FFFF, 32, 39),
    ] {
        assert_eq!(
            check(last, asked),
            Err(Incompatible::AddressWidth { host, asked })
        );
    }
    assert_eq!(
        check(LAST_39, 48).unwrap_err().to_string(),
        "the host's IOMMU translates 39 bits of address for this device (IOMMU_IOAS_IOVA_RANGES), and the unit 48 (CAP.MGAW)"
    );
    for (last, aw_bits) in [(LAST_39, 39), (LAST_47, 39), (LAST_48, 48), (LAST_57, 57)] {
        assert_eq!(check(last, aw_bits), Ok(()));
    }
}

#[test]
fn a_unit_that_is_not_made_yet_is_as_narrow_as_the_host_if_its_tables_are_as_deep() {
    let limited = |last, aw_bits| {
        let capabilities = Host::new(last).capabilities();
        let limited = capabilities.limit(unit(aw_bits));
        (limited.input_width(), capabilities.check(&limited).is_ok())
    };
    for (host, aw_bits, width) in [
        (LAST_47, 48, 47),
        (LAST_39 * 2 + 1, 48, 40),
        (LAST_57 >> 1, 57, 56),
        (0xFFFF_FFFF, 39, 32),
        (LAST_48, 48, 48),
        (LAST_48, 39, 39),
    ] {
        assert_eq!(limited([Some(host), None, None], aw_bits), (width, true));
    }
    assert_eq!(limited([Some(LAST_39), None, None], 48), (48, false));
    assert_eq!(limited([Some(LAST_48), None, None], 57), (57, false));
    // With dirty tracking they are second-stage tables.
    let tracking = [Some(LAST_47), Some(LAST_48), None];
    assert_eq!(limited(tracking, 48), (48, true));
    // Of several devices, the narrowest counts.
    let [narrow, wide] = [LAST_47, LAST_48].map(|last| {
        let host = Host::new([Some(last), None, None]);
        host.capabilities()
    });
    for [first, second] in [[&narrow, &wide], [&wide, &narrow]] {
        let config = second.limit(first.limit(unit(48)));
        assert_eq!(config.input_width(), 47);
        assert_eq!(
            (first.check(&config), second.check(&config)),
            (Ok(()), Ok(()))
        );
    }
}

#[test]
fn nested_tables_need_no_dirty_tracking() {
    let mut host = Host::new([Some(LAST_47), None, Some(LAST_48)]);
    host.info.intel = host.info.intel.map(|intel| IntelInfo {
        caps: Caps {
            // But neither SMPWCS nor SSADS.
            ecap: ExtendedCapability::new()
                .with_nest(true)
                .with_smts(true)
                .with_ssts(true)
                .with_fsts(true),
            ..intel.caps
        },
        ..intel
    });
    let host = host.capabilities();
    let asked = UnitConfig::scalable(46).with_caching_mode(true);
    let limited = host.limit(asked);
    assert_eq!(host.check(&limited), Ok(()));
    let caps = limited.capabilities().unwrap();
    assert_eq!(caps.guest_address_width(), 47);
    assert!(caps.ecap.fsts() && caps.ecap.nest());
    assert!(!caps.ecap.smpwcs() && !caps.ecap.ssads());
}

#[test]
fn second_stage_tables_of_a_host_with_first_stage_ones_reach_further() {
    let host = Host::new([Some(LAST_47), Some(LAST_48), Some(LAST_57)]).capabilities();
    assert_eq!(host.check(&unit(48)), Ok(()));
    assert_eq!(host.widest_address(), Some(48));
    assert_eq!(host.check_memory(LAST_57 + 1), Ok(()));
    let host = Host::new([Some(LAST_39), None, None]).capabilities();
    assert_eq!(host.widest_address(), Some(39));
}

#[test]
fn what_cannot_be_mirrored_is_refused_with_what_is_missing() {
    let capabilities = Host::new([Some(LAST_48), None, Some(LAST_48)]).capabilities();
    let silent = unit(48).with_caching_mode(false);
    assert_eq!(capabilities.check(&silent), Err(Incompatible::CachingMode));
    assert!(
        Incompatible::CachingMode
            .to_string()
            .contains("(CAP.CM is clear)")
    );
}

#[test]
fn guest_memory_must_be_within_the_hosts_reach() {
    let capabilities = Host::new([Some(LAST_39), None, None]).capabilities();
    assert_eq!(capabilities.check_memory(0x80_0000_0000), Ok(()));
    assert_eq!(
        capabilities.check_memory(0x80_0000_1000),
        Err(Incompatible::Memory {
            end: 0x80_0000_1000,
            host: 39
        })
    );
    assert_eq!(capabilities.check_memory(0), Ok(()));
}

#[test]
fn a_unit_snoops_only_where_the_host_does() {
    let host = |ecap| {
        let mut host = Host::new([Some(LAST_48), None, None]);
        host.info.intel = host.info.intel.map(|intel| IntelInfo {
            caps: Caps {
                ecap: ExtendedCapability::from_bits(ecap),
                ..intel.caps
            },
            ..intel
        });
        host.capabilities()
    };
    assert_eq!(host(SNOOPING).limit(unit(48)), unit(48));
    let limited = host(!SNOOPING).limit(unit(48));
    assert!(!limited.snoop_control);
    // A unit that was made before is not limited any more.
    assert_eq!(
        host(!SNOOPING).check(&unit(48)),
        Err(Incompatible::SnoopControl)
    );
    assert_eq!(host(!SNOOPING).check(&limited), Ok(()));
    let unasked = unit(48).with_snoop_control(false);
    assert_eq!(host(SNOOPING).limit(unasked.clone()), unasked);
}

#[test]
fn gaps_other_than_the_interrupts_end_what_can_be_mapped() {
    assert_eq!(address_bits(&[]), 0);
    assert_eq!(address_bits(&[0..=u64::MAX]), 64);
    assert_eq!(address_bits(&[0..=LAST_48]), 48);
    // Not sorted, and touching.
    assert_eq!(
        address_bits(&[0x1_0000_0000..=LAST_48, 0..=0xFFFF_FFFF]),
        48
    );
    // A hole at 1 GiB.
    assert_eq!(address_bits(&[0..=0x3FFF_FFFF, 0x4000_1000..=LAST_48]), 30);
    // All but the last page.
    assert_eq!(address_bits(&[0..=0xFFFF_FFFF_EFFF]), 47);
    assert_eq!(address_bits(&[0x1000..=LAST_48]), 0);
}

/// A unit that shows first-stage tables.
fn nesting(aw_bits: u8) -> UnitConfig {
    unit(aw_bits).with_scalable(Scalable::new(Stages::Nested))
}

fn with_registers(last: [Option<u64>; 3], cap: u64, ecap: u64) -> HostCapabilities {
    let mut host = Host::new(last);
    host.info.intel = host.info.intel.map(|intel| IntelInfo {
        caps: Caps {
            cap: Capability::from_bits(cap),
            ecap: ExtendedCapability::from_bits(ecap),
        },
        ..intel
    });
    host.capabilities()
}

const NEST: u64 = 1 << 26;
/// FS1GP.
const CAP: u64 = 1 << 56;
/// SC, NEST and SMPWCS.
const ECAP: u64 = 1 << 7 | NEST | 1 << 48;

#[test]
fn first_stage_needs_a_host_that_nests_and_the_reason_is_named() {
    let no_parent = [Some(LAST_48), Some(LAST_48), None];
    let refusal = |capabilities: HostCapabilities| {
        let error = capabilities.check(&nesting(48)).unwrap_err().to_string();
        assert!(
            error.starts_with("first-stage translation (ECAP.FSTS)"),
            "{error}"
        );
        error
    };
    let error = refusal(with_registers(no_parent, CAP, ECAP & !NEST));
    assert!(error.ends_with("(ECAP.NEST is clear)"), "{error}");
    let error = refusal(with_registers(no_parent, CAP, ECAP));
    assert!(
        error.ends_with("boot the host with intel_iommu=on,sm_on"),
        "{error}"
    );
    let mut other = Host::new(no_parent);
    other.info.intel = None;
    let error = refusal(other.capabilities());
    assert!(error.ends_with("is not Intel VT-d"), "{error}");
    let all = [Some(LAST_47), Some(LAST_48), Some(LAST_48)];
    assert_eq!(with_registers(all, CAP, ECAP).check(&nesting(48)), Ok(()));
}

#[test]
fn first_stage_tables_are_no_deeper_than_the_host_walks() {
    let wide = [Some(LAST_57); 3];
    let error = with_registers(wide, CAP, ECAP).check(&nesting(57));
    assert_eq!(error, Err(Incompatible::FiveLevels));
    let deep = with_registers(wide, CAP | 1 << 60, ECAP);
    assert_eq!(deep.check(&nesting(57)), Ok(()));
}

#[test]
fn shadows_below_first_stage_tables_must_be_as_wide() {
    let narrow = [Some(LAST_48), Some(LAST_48), Some(LAST_39)];
    assert_eq!(
        with_registers(narrow, CAP, ECAP).check(&nesting(48)),
        Err(Incompatible::AddressWidth {
            host: 39,
            asked: 48
        })
    );
}

#[test]
fn walks_promise_no_more_than_the_host_has_and_it_is_too_late_afterwards() {
    let all = [Some(LAST_48); 3];
    let asked = nesting(48).with_scalable(Scalable::new(Stages::Nested).with_pasid_bits(20));
    for (cap, ecap, what) in [
        (0, 0x5_8400_0080 | 1 << 48, "1 GiB"),
        (CAP, 0x5_0400_0080 | 1 << 48, "supervisors"),
        (CAP, 0x1_8400_0080 | 1 << 48, "extended accessed"),
        (CAP, 0x5_8400_0080, "snooped walks"),
    ] {
        let host = with_registers(all, cap, ecap);
        let error = host.check(&asked).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        let limited = host.limit(asked.clone());
        assert_eq!(host.check(&limited), Ok(()));
        let caps = limited.capabilities().unwrap();
        let promised = [
            caps.cap.fs1gp() && cap == 0,
            caps.ecap.srs() && ecap >> 31 & 1 == 0,
            caps.ecap.eafs() && ecap >> 34 & 1 == 0,
            caps.ecap.smpwcs() && ecap >> 48 & 1 == 0,
        ];
        assert_eq!(promised, [false; 4], "{what}");
    }
    // Without first-stage tables only the unit walks.
    assert_eq!(with_registers(all, 0, 1 << 7).limit(unit(48)), unit(48));
}
