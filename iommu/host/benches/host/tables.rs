//! What following the guest's tables costs.

use criterion::Criterion;

use super::guest::{Guest, PAGE, page, pasid_page};
use super::{group, measure};
use intel_vtd::testing::tables::Paging;

const GIB: u64 = 1 << 30;
/// An address that is mapped and unmapped, beyond all others.
const PROBE: u64 = 512 * GIB - 0x1000;

/// One page of a first stage is invalidated, by how many requests are behind nested tables of their
/// own; and of a domain that nobody uses.
pub(crate) fn bindings(criterion: &mut Criterion) {
    let mut group = group(criterion, "invalidate");
    for (devices, pasids) in [(1, 8), (1, 256), (8, 256)] {
        let guest = Guest::new();
        guest.add(devices);
        for source in 0..devices {
            for pasid in 0..pasids {
                let domain = 1 + u64::from(source);
                let top = guest.world.page();
                guest.enter(source, pasid, [1 << 6 | 1, domain, top]);
            }
        }
        guest.announce();
        let count = guest.placed();
        assert_eq!(
            count,
            usize::from(devices) * usize::try_from(pasids).unwrap()
        );
        let one = pasid_page(1, 5, 0x1000);
        measure(&mut group, &format!("bindings {count}"), |rounds| {
            for _ in 0..rounds {
                guest.invalidate(std::slice::from_ref(&one));
            }
        });
        let nobodys = pasid_page(1000, 5, 0x1000);
        measure(&mut group, &format!("bindings {count}, nobody"), |rounds| {
            for _ in 0..rounds {
                guest.invalidate(std::slice::from_ref(&nobodys));
            }
        });
    }
}

/// One page of a second stage is mapped and unmapped, by how many devices are in domains of their
/// own.
pub(crate) fn devices(criterion: &mut Criterion) {
    let mut group = group(criterion, "map");
    for devices in [1, 9, 32, 64] {
        let guest = Guest::new();
        guest.add(devices);
        let mut first = None;
        for source in 0..devices {
            let paging = guest.world.second_stage(4);
            guest.enter_second_stage(source, &paging, 5 + source);
            first.get_or_insert(paging);
        }
        guest.announce();
        assert_eq!(guest.placed(), usize::from(devices));
        let paging = first.unwrap();
        map_and_unmap(&mut group, &format!("devices {devices}"), &guest, &paging);
    }
}

/// One page is mapped and unmapped beside so many others.
pub(crate) fn areas(criterion: &mut Criterion) {
    let mut group = group(criterion, "areas");
    for areas in [1_u64, 1000, 100_000] {
        let guest = Guest::new();
        guest.add(1);
        let paging = guest.world.second_stage(4);
        for page in 0..areas {
            guest.world.map(&paging, page * 0x2000, 1, PAGE | 3);
        }
        guest.enter_second_stage(0, &paging, 5);
        guest.announce();
        assert_eq!(guest.devices.mapped().0, usize::try_from(areas).unwrap());
        map_and_unmap(&mut group, &format!("areas {areas}"), &guest, &paging);
    }
}

/// Translation is turned off and on with devices in one domain of 64 GiB in runs of 2 MiB.
pub(crate) fn toggle(criterion: &mut Criterion) {
    let mut group = group(criterion, "toggle");
    group.sample_size(10);
    for devices in [1, 2, 4] {
        let guest = Guest::new();
        guest.add(devices);
        let paging = guest.world.second_stage(4);
        for run in 0..64 * GIB / 0x20_0000 {
            guest
                .world
                .map(&paging, run * 0x20_0000, 2, PAGE | 1 << 7 | 3);
        }
        for source in 0..devices {
            guest.enter_second_stage(source, &paging, 5);
            guest.announce();
        }
        measure(&mut group, &format!("devices {devices}"), |rounds| {
            for _ in 0..rounds {
                guest.translate(false);
                guest.translate(true);
            }
        });
        println!(
            "{} of {devices} devices are placed, {} areas",
            guest.placed(),
            guest.devices.mapped().0
        );
    }
}

fn map_and_unmap(group: &mut super::Group<'_>, name: &str, guest: &Guest, paging: &Paging) {
    let slot = guest.world.slot(paging, PROBE, 1);
    let probe = page(5, PROBE);
    measure(group, name, |rounds| {
        for _ in 0..rounds {
            for entry in [PAGE | 3, 0] {
                guest.world.set(slot, entry);
                guest.invalidate(std::slice::from_ref(&probe));
            }
        }
    });
}
