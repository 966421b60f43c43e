//! The guests of `cargo xtask bench nested`.

use super::levels::{GUEST, HOST};
use super::{Exchange, FIRST_STAGE, SECOND_STAGE, Scenario};

/// What runs in level 1. `{rounds}` becomes a number, and `limit` is that of a round.
pub const NESTED: Scenario = Scenario {
    name: "bench-nested",
    description: "the host of the guests of `cargo xtask bench nested`",
    plan: "scalable,translation=first-stage,level3-bench={rounds},nofaults>poweroff",
    look: &[Exchange {
        request: "stats",
        line_with: &[&["queue_errors: 0"], &["faults_recorded: 0"]],
        positive: &["table_walks", "waits"],
    }],
    ..HOST
};

/// A disk, and edu as the device that is only mapped for.
const MEASURED_DEVICES: &[&str] = &[
    "--object",
    "iommufd,id=iommufd0",
    "--device",
    "vfio-pci,host={disk1},iommufd=iommufd0",
    "--device",
    "vfio-pci,host={edu0},iommufd=iommufd0",
];

/// The guests that it measures in turn.
pub const MEASURED: &[Scenario] = &[
    Scenario {
        name: "no-unit",
        unit: None,
        arguments: MEASURED_DEVICES,
        command_line: "quiet",
        plan: "no-unit,disk-speed=vda,map-speed=1/256,look,nofaults>poweroff",
        look: &[Exchange {
            request: "assigned",
            line_with: &[&["00:01.0"], &["00:02.0"]],
            positive: &[],
        }],
        ..GUEST
    },
    Scenario {
        name: "nested",
        unit: Some(FIRST_STAGE),
        arguments: MEASURED_DEVICES,
        plan: "groups=DMA-FQ,translation=first-stage,disk-speed=vda,map-speed=1/256,map-count=100,look,nofaults\
               >poweroff",
        look: MEASURED_NESTED,
        ..GUEST
    },
    Scenario {
        name: "strict",
        unit: Some(FIRST_STAGE),
        arguments: MEASURED_DEVICES,
        command_line: "intel_iommu=on,sm_on iommu.strict=1 quiet",
        plan: "groups=DMA,translation=first-stage,disk-speed=vda,map-speed=1/256,look,nofaults>poweroff",
        look: MEASURED_NESTED,
        ..GUEST
    },
    Scenario {
        name: "shadow",
        unit: Some(SECOND_STAGE),
        arguments: MEASURED_DEVICES,
        plan: "groups=DMA,translation=second-stage,disk-speed=vda,map-speed=1/256,map-count=100,look,nofaults\
               >poweroff",
        look: &[Exchange {
            request: "assigned",
            line_with: &[&["00:01.0", "shadow of"]],
            positive: &["maps", "shadows_made"],
        }],
        ..GUEST
    },
];

const MEASURED_NESTED: &[Exchange] = &[Exchange {
    request: "assigned",
    line_with: &[
        &["00:01.0", "nested"],
        &["shadows: 0 KiB in 0 areas"],
        &["maps: 0"],
        &["shadows_made: 0"],
    ],
    positive: &["nested page tables", "invalidations"],
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::assert_plan_is_known;

    #[test]
    fn the_plans_of_what_is_measured_parse_with_known_checks() {
        for guest in MEASURED {
            assert_plan_is_known(guest, guest.plan);
        }
        assert_plan_is_known(&NESTED, &NESTED.plan.replace("{rounds}", "3"));
    }
}
