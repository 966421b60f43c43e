//! What it costs to follow the guest's tables, without what the host's calls cost, in processor
//! time of one thread.
//!
//! Not run by default: `cargo test --release -p intel-vtd-host -- --ignored --nocapture speed`.

use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::testing::*;
use super::*;
use crate::host_iommu::{
    Attachment, HardwareInfo, HostDeviceId, HostIommu, HostMemory, HwptId, HwptOptions, IoasId,
    NestedInvalidation, NestedOptions, NestedTable, ObjectId, Rights, SharedMapping,
};
use intel_vtd::Pasid;

/// Does nothing, and that successfully.
struct Nothing;

impl HostIommu for Nothing {
    fn allocate_ioas(&self) -> io::Result<IoasId> {
        Ok(IoasId(1))
    }
    fn destroy(&self, _: ObjectId) -> io::Result<()> {
        Ok(())
    }
    fn address_ranges(&self, _: IoasId) -> io::Result<(Vec<RangeInclusive<u64>>, u64)> {
        Ok((vec![0..=0xffff_ffff_ffff], 4096))
    }
    fn map(&self, _: IoasId, _: u64, _: &HostMemory<'_>, _: Rights) -> io::Result<()> {
        Ok(())
    }
    fn share(&self, _: &SharedMapping) -> io::Result<()> {
        Ok(())
    }
    fn unmap(&self, _: IoasId, _: u64, length: u64) -> io::Result<u64> {
        Ok(length)
    }
    fn allocate_hwpt(&self, _: HostDeviceId, _: IoasId, _: HwptOptions) -> io::Result<HwptId> {
        Ok(HwptId(2))
    }
    fn allocate_nested(
        &self,
        _: HostDeviceId,
        _: HwptId,
        _: &NestedTable,
        _: NestedOptions,
    ) -> io::Result<HwptId> {
        Ok(HwptId(3))
    }
    fn invalidate(&self, _: HwptId, list: &[NestedInvalidation]) -> (usize, io::Result<()>) {
        (list.len(), Ok(()))
    }
    fn hardware_info(&self, _: HostDeviceId) -> io::Result<HardwareInfo> {
        Ok(HardwareInfo {
            intel: None,
            pasid_bits: 0,
            privileged_pasids: false,
            ats: true,
            dirty_tracking: false,
        })
    }
    fn set_dirty_tracking(&self, _: HwptId, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn dirty_pages(&self, _: HwptId, _: u64, _: u64, _: u64, _: &mut [u64]) -> io::Result<()> {
        Ok(())
    }
}

impl Attachment for Nothing {
    fn attach(&self, _: Option<Pasid>, _: HwptId) -> io::Result<()> {
        Ok(())
    }
    fn detach(&self, _: Option<Pasid>) -> io::Result<()> {
        Ok(())
    }
}

/// Time that this thread has spent on a processor.
fn spent() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

fn measure(what: &str, rounds: u32, mut run: impl FnMut()) {
    let before = spent();
    for _ in 0..rounds {
        run();
    }
    println!("{what:44} {:?}", (spent() - before) / rounds);
}

#[test]
#[ignore = "a measurement"]
fn speed_of_following_the_guests_tables() {
    let guest = Guest::new(Limits::default());
    let device = AssignedDevice {
        source: SOURCES[0],
        name: "nothing".to_owned(),
        host: Arc::new(Nothing),
        id: HostDeviceId(1),
        attachment: Arc::new(Nothing),
        pasids: false,
        ats: false,
        page_requests: None,
    };
    guest.devices.add(device).unwrap();
    let paging = guest.world.second_stage(4);
    guest.shadow(SOURCES[0], &paging, 5);
    // Some mappings that stay.
    for page in 0..10_000 {
        guest.map(&paging, 0x1_0000_0000 + page * 0x2000, 0x100_0000, 1, 3);
    }
    guest.devices.run_begins();
    guest.devices.invalidated(&[pages(5, 0x1_0000_0000, 18)]);
    assert_eq!(guest.devices.mapped().0, 10_000);

    for (count, mask) in [(1, 0), (256, 8)] {
        let address = 0x1_2000_0000;
        let slots: Vec<u64> = (0..count)
            .map(|page| guest.world.slot(&paging, address + page * 0x1000, 1))
            .collect();
        let write = |flags: u64| {
            for (slot, page) in slots.iter().zip(0..) {
                let output = 0x100_0000 + page * 0x1000;
                guest
                    .world
                    .set(*slot, if flags == 0 { 0 } else { output | flags });
            }
        };
        measure(
            &format!("{count} pages: written and cleared"),
            100_000,
            || {
                write(3);
                write(0);
            },
        );
        measure(
            &format!("{count} pages: the same, mapped and unmapped"),
            100_000,
            || {
                for flags in [3, 0] {
                    write(flags);
                    guest.devices.run_begins();
                    guest.devices.invalidated(&[pages(5, address, mask)]);
                }
            },
        );
    }
    measure("10000 areas in 40 tables: compared", 1000, || {
        guest.devices.run_begins();
        guest.devices.invalidated(&[pages(5, 0x1_0000_0000, 18)]);
    });

    // The worst that a guest can do within one exit: tables that are full, and hold themselves.
    for (what, leaves) in [("one run", 0x1000), ("runs of one page", 0)] {
        let hostile = guest.world.second_stage(4);
        let leaf = guest.world.page();
        for index in 0..512 {
            guest.world.set(hostile.top + index * 8, hostile.top | 3);
            guest
                .world
                .set(leaf + index * 8, (0x100_0000 + index * leaves) | 3);
        }
        let hostile_top = guest.world.page();
        for index in 0..512 {
            guest.world.set(hostile_top + index * 8, leaf | 3);
            guest.world.set(hostile.top + index * 8, hostile_top | 3);
        }
        guest.enter_second_stage(SOURCES[0], &hostile, 6);
        let before = Instant::now();
        guest.announce_entry(6);
        println!(
            "{:44} {:?}, {}",
            format!("an exit with full tables, {what}"),
            before.elapsed(),
            guest.devices
        );
    }
}
