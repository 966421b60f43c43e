//! Remedies, word by word, for each obstacle.

use intel_vtd_host::NoNesting;

use super::*;

fn text(why: Incompatible) -> String {
    let first_stage = true;
    Remedied { why, first_stage }.to_string()
}

#[test]
fn a_narrow_host_is_told_with_the_widest_unit_that_it_can_be_behind() {
    let later = "assign it when the machine is started, and the unit will be as narrow";
    for (host, asked, first_stage, expected) in [
        (56, 57, true, later),
        (48, 57, true, "write aw-bits=48"),
        (47, 57, true, "write aw-bits=48"),
        (47, 48, true, later),
        (40, 47, false, later),
        (39, 48, false, "write aw-bits=39"),
        (39, 48, true, "write aw-bits=39,x-flts=off"),
        (32, 57, false, "write aw-bits=39"),
        (38, 39, false, later),
        (30, 39, false, "drop intel-iommu, as no unit is as narrow"),
    ] {
        let found = narrower(host, asked, first_stage);
        assert_eq!(found, expected, "{host} {asked}");
    }
}

#[test]
fn memory_out_of_reach_is_told_with_both_numbers() {
    let why = Incompatible::Memory {
        end: 0x80_0000_0000,
        host: 38,
    };
    assert_eq!(
        text(why),
        "guest memory ends at 0x8000000000, and the host's IOMMU translates 38 bits of address for this device; write a smaller \
         --memory"
    );
}

#[test]
fn an_obstacle_to_first_stage_names_the_option_that_asks_for_it_and_the_one_that_does_not() {
    for (why, reason) in [
        (
            NoNesting::OtherIommu,
            "the host's IOMMU is not Intel VT-d; write x-flts=off",
        ),
        (
            NoNesting::NoCapability,
            "(ECAP.NEST is clear); write x-flts=off",
        ),
        (
            NoNesting::Unused,
            "boot the host with intel_iommu=on,sm_on; write x-flts=off",
        ),
    ] {
        let text = text(Incompatible::NoNesting(why));
        assert!(text.starts_with("x-flts=on gives the guest"), "{text}");
        assert!(text.ends_with(reason), "{text}");
    }
    let text = text(Incompatible::FiveLevels);
    assert!(
        text.starts_with("aw-bits=57 gives") && text.ends_with("write aw-bits=48, or x-flts=off"),
        "{text}"
    );
}

#[test]
fn caching_mode_that_was_turned_off_is_told_with_the_way_to_have_it() {
    let text = text(Incompatible::CachingMode);
    assert!(text.contains("(caching-mode=off)"), "{text}");
    assert!(text.ends_with("write caching-mode=auto"), "{text}");
}

#[test]
fn a_promise_that_was_made_too_early_is_told_with_when_it_would_not_have_been_made() {
    for why in [
        Incompatible::Walks("pages of 1 GiB"),
        Incompatible::SnoopControl,
    ] {
        let text = text(why);
        assert!(
            text.ends_with(
                "assign it when the machine is started, and the unit will not promise it"
            ),
            "{text}"
        );
    }
}
