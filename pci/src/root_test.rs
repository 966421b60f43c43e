use std::sync::Arc;

use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::probe::Probe;
use crate::{
    AddError, Apertures, AssignError, BarKind, BarWindow, Bdf, ConfigChange, PciFunction,
    RootComplex,
};

const WIDE: BarKind = BarKind::Memory64 {
    prefetchable: false,
};

fn slot(device: u8) -> Bdf {
    Bdf::new(0, device, 0).expect("in range")
}

fn root() -> RootComplex {
    RootComplex::new(Apertures {
        ecam_base: 0xe000_0000,
        buses: 1,
        mmio32: 0xc000_0000..0xc010_0000,
        mmio64: 0x80_0000_0000..0x80_0010_0000,
    })
}

fn add(root: &RootComplex, device: u8, bars: &[(usize, BarKind, u64)]) -> Arc<Probe> {
    let probe = Probe::new(device, bars);
    root.add(slot(device), Arc::<Probe>::clone(&probe))
        .expect("free");
    probe
}

fn ecam(root: &RootComplex, device: u64, register: u64, data: &[u8]) {
    root.write_ecam(device << 15 | register, data);
}

fn read_ecam(root: &RootComplex, offset: u64) -> u32 {
    let mut data = [0; 4];
    root.read_ecam(offset, &mut data);
    u32::from_le_bytes(data)
}

fn read(root: &RootComplex, address: u64) -> Option<u8> {
    let mut data = [0; 4];
    let answered = root.read_mmio(address, &mut data);
    assert!(answered || data == [0xff; 4]);
    answered.then_some(data[0])
}

#[test]
fn a_host_bridge_is_there_and_everything_else_is_absent() {
    let root = root();
    assert_eq!(read_ecam(&root, 0), 0x0d57_8086);
    assert_eq!(read_ecam(&root, 8), 0x0600_0000);
    assert_eq!(read_ecam(&root, 0x1000), 0xffff_ffff);
    assert_eq!(read_ecam(&root, 0x8000), 0xffff_ffff);
    assert_eq!(read_ecam(&root, 0x10_0000), 0xffff_ffff);
    assert_eq!(read_ecam(&root, u64::MAX), 0xffff_ffff);
    assert_eq!(
        read_ecam(&root, 0xffe),
        0xffff_ffff,
        "across the end of a function"
    );
    root.write_ecam(0x8004, &[0xff; 4]);
    root.write_ecam(u64::MAX - 1, &[0xff; 4]);
    root.write_ecam(0, &[0xff; 4]);
    assert_eq!(read_ecam(&root, 0), 0x0d57_8086);
    assert_eq!(root.ecam_size(), 1 << 20);
}

#[test]
fn a_slot_is_taken_once_and_must_exist() {
    let root = root();
    add(&root, 1, &[]);
    assert_eq!(
        root.add(slot(1), Probe::new(9, &[])),
        Err(AddError::Taken(slot(1)))
    );
    assert_eq!(
        root.add(slot(0), Probe::new(9, &[])),
        Err(AddError::Taken(slot(0)))
    );
    let far = Bdf::new(1, 0, 0).expect("in range");
    assert_eq!(
        root.add(far, Probe::new(9, &[])),
        Err(AddError::NoSuchBus(far, 1))
    );
    assert_eq!(root.addresses(), [slot(0), slot(1)]);
    assert_eq!(read_ecam(&root, 0x8000), 0x0001_1234);
}

#[test]
fn the_owner_of_an_address_is_the_function_whose_bar_decodes_it() {
    let root = root();
    for device in 1..=2 {
        add(&root, device, &[(0, BarKind::Memory32, 0x1000)]);
        ecam(&root, device.into(), 4, &[2, 0]);
    }
    root.assign_bars().expect("room");
    let owners = [0xc000_0000, 0xc000_1fff, 0xc000_2000].map(|address| root.owner_of(address));
    let mut found: Vec<_> = owners.into_iter().flatten().collect();
    found.sort();
    assert_eq!(found, [slot(1), slot(2)]);
    assert_eq!(owners[2], None);
}

#[test]
fn firmware_assigns_naturally_aligned_addresses_largest_first() {
    let root = root();
    let one = add(
        &root,
        1,
        &[(0, BarKind::Memory32, 0x1000), (2, WIDE, 0x4000)],
    );
    let two = add(
        &root,
        2,
        &[
            (0, BarKind::Memory32, 0x8_0000),
            (1, BarKind::Memory32, 0x10),
            (2, WIDE, 0x8_0000),
        ],
    );
    root.assign_bars().expect("room");
    assert_eq!(
        (one.address(0), one.address(2)),
        (Some(0xc008_0000), Some(0x80_0008_0000))
    );
    assert_eq!(
        (two.address(0), two.address(1), two.address(2)),
        (Some(0xc000_0000), Some(0xc008_1000), Some(0x80_0000_0000))
    );
    assert_eq!(read(&root, 0xc000_0000), None, "firmware enables nothing");
}

#[test]
fn what_alignment_leaves_before_a_large_bar_goes_to_a_smaller_one() {
    let root = RootComplex::new(Apertures {
        mmio32: 0xc010_0000..0xc040_0000,
        ..root().apertures().clone()
    });
    let large = add(&root, 1, &[(0, BarKind::Memory32, 0x20_0000)]);
    let small = add(&root, 2, &[(0, BarKind::Memory32, 0x10_0000)]);
    root.assign_bars().expect("room");
    assert_eq!(large.address(0), Some(0xc020_0000));
    assert_eq!(small.address(0), Some(0xc010_0000));
}

#[test]
fn a_full_aperture_is_an_error_that_names_the_bar() {
    let root = root();
    add(&root, 1, &[(0, BarKind::Memory32, 0x10_0000)]);
    let small = add(&root, 2, &[(3, BarKind::Memory32, 0x1000)]);
    let error = AssignError::Bar {
        function: slot(2),
        bar: 3,
        size: 0x1000,
        aperture: "32-bit",
    };
    assert_eq!(root.assign_bars(), Err(error));
    assert_eq!(small.address(3), None);
}

#[test]
fn wide_bars_fall_back_to_the_lower_aperture() {
    let root = root();
    add(&root, 1, &[(0, WIDE, 0x10_0000)]);
    let second = add(&root, 2, &[(0, WIDE, 0x4000)]);
    root.assign_bars().expect("room");
    assert_eq!(second.address(0), Some(0xc000_0000));
}

#[test]
fn accesses_reach_the_bar_that_decodes_them() {
    let root = root();
    let probe = add(
        &root,
        3,
        &[(0, BarKind::Memory32, 0x1000), (2, WIDE, 0x4000)],
    );
    root.assign_bars().expect("room");
    ecam(&root, 3, 4, &[2, 0]);
    assert_eq!(read(&root, 0xc000_0ffc), Some(3));
    assert_eq!(read(&root, 0xc000_0ffe), None, "across the end");
    assert_eq!(read(&root, 0xc000_1000), None);
    assert_eq!(read(&root, 0xbfff_fffc), None);
    assert_eq!(read(&root, u64::MAX), None);
    assert!(root.write_mmio(0x80_0000_1008, &[1, 2]));
    assert!(!root.write_mmio(0x80_0000_4000, &[1, 2]));
    assert_eq!(*probe.writes.lock(), [(2, 0x1008, vec![1, 2])]);
    ecam(&root, 3, 4, &[0, 0]);
    assert_eq!(read(&root, 0xc000_0000), None);
}

#[test]
fn a_bar_moves_at_run_time_and_its_function_is_told() {
    let root = root();
    let probe = add(&root, 1, &[(0, BarKind::Memory32, 0x1000)]);
    root.assign_bars().expect("room");
    let window = |base| BarWindow {
        bar: 0,
        base,
        size: 0x1000,
    };
    ecam(&root, 1, 4, &[2, 0]);
    assert_eq!(probe.told(), [vec![window(0xc000_0000)]]);
    ecam(&root, 1, 0x10, &0xc000_8000_u32.to_le_bytes());
    assert_eq!(probe.told(), [vec![], vec![window(0xc000_8000)]]);
    assert_eq!(
        (read(&root, 0xc000_0000), read(&root, 0xc000_8000)),
        (None, Some(1))
    );
    // Out of every aperture: on RAM, on the ECAM region.
    ecam(&root, 1, 0x10, &0x0010_0000_u32.to_le_bytes());
    assert_eq!(read(&root, 0x0010_0000), None);
    assert_eq!(probe.told(), [vec![]]);
    ecam(&root, 1, 0x10, &0xc000_8000_u32.to_le_bytes());
    probe.told();
    // PCI Express at 0x40: function-level reset.
    ecam(&root, 1, 0x48, &[0, 0x80]);
    assert_eq!(probe.told(), [vec![]]);
    assert_eq!(read(&root, 0xc000_8000), None);
}

#[test]
fn the_lower_slot_wins_where_windows_overlap() {
    let root = root();
    let low = add(&root, 1, &[(0, BarKind::Memory32, 0x1000)]);
    let high = add(&root, 2, &[(0, BarKind::Memory32, 0x4000)]);
    ecam(&root, 2, 0x10, &0xc000_0000_u32.to_le_bytes());
    ecam(&root, 2, 4, &[2, 0]);
    ecam(&root, 1, 0x10, &0xc000_1000_u32.to_le_bytes());
    ecam(&root, 1, 4, &[2, 0]);
    let seen = [
        0xc000_0000,
        0xc000_1000,
        0xc000_1ffc,
        0xc000_2000,
        0xc000_3ffc,
        0xc000_4000,
    ];
    assert_eq!(
        seen.map(|address| read(&root, address)),
        [Some(2), Some(1), Some(1), Some(2), Some(2), None]
    );
    assert_eq!(read(&root, 0xc000_0ffe), None, "across two functions");
    root.write_mmio(0xc000_2010, &[7]);
    assert_eq!(*high.writes.lock(), [(0, 0x2010, vec![7])]);
    let whole = BarWindow {
        bar: 0,
        base: 0xc000_0000,
        size: 0x4000,
    };
    assert_eq!(
        high.told(),
        [vec![whole], vec![]],
        "a window with a hole is not announced"
    );
    assert_eq!(low.told().len(), 1);
}

#[test]
fn reset_takes_every_window_away() {
    let root = root();
    let probe = add(&root, 1, &[(0, BarKind::Memory32, 0x1000)]);
    root.assign_bars().expect("room");
    ecam(&root, 1, 4, &[2, 0]);
    probe.told();
    root.reset();
    assert_eq!(probe.told(), [vec![]]);
    assert_eq!((read(&root, 0xc000_0000), probe.address(0)), (None, None));
    root.assign_bars().expect("room");
    assert_eq!(probe.address(0), Some(0xc000_0000));
}

proptest! {
    /// Against a plain search through all windows in slot order.
    #[test]
    fn dispatch_finds_the_first_window_in_slot_order(
        bases in vec(0_u32..0x140, 6),
        probes in vec(0_u64..0x140_000, 64),
    ) {
        let root = root();
        let sizes = [0x1000, 0x10_000, 0x2000, 0x8_0000, 0x1000, 0x4000_u32];
        let mut windows = Vec::new();
        for (device, (base, size)) in (1_u8..).zip(bases.iter().zip(sizes)) {
            add(&root, device, &[(0, BarKind::Memory32, size.into())]);
            let base = (0xbff0_0000 + base * 0x1000) & !(size - 1);
            ecam(&root, device.into(), 0x10, &base.to_le_bytes());
            ecam(&root, device.into(), 4, &[2, 0]);
            let (first, end) = (u64::from(base), u64::from(base) + u64::from(size));
            if first >= 0xc000_0000 && end <= 0xc010_0000 {
                windows.push((device, first, end));
            }
        }
        for probe in probes {
            let address = 0xbff0_0000 + (probe & !3);
            let expected = windows.iter().find(|(_, first, end)| (*first..*end).contains(&address));
            prop_assert_eq!(read(&root, address), expected.map(|(device, _, _)| *device));
        }
    }

    #[test]
    fn no_access_panics(accesses in vec((any::<u64>(), 0_u64..0x20_0000, vec(any::<u8>(), 0..9)), 1..60)) {
        let root = root();
        add(&root, 1, &[(0, BarKind::Memory32, 0x1000), (2, WIDE, 0x4000)]);
        root.assign_bars().expect("room");
        for (far, near, data) in accesses {
            let mut out = vec![0; data.len()];
            for offset in [far, near, near & 0xfff | 0x8000] {
                root.write_ecam(offset, &data);
                root.read_ecam(offset, &mut out);
                root.write_mmio(offset, &data);
                root.read_mmio(0xc000_0000 + (offset & 0xf_ffff), &mut out);
            }
        }
    }
}

/// Writes down its name when it is told to stop (low bit clear) and when it is reset (low bit set).
struct Witness(u8, Arc<Mutex<Vec<u8>>>);

impl PciFunction for Witness {
    fn read_config(&self, _offset: u16, _data: &mut [u8]) {}

    fn write_config(&self, _offset: u16, _data: &[u8]) -> ConfigChange {
        ConfigChange::default()
    }

    fn quiesce(&self) {
        self.1.lock().push(self.0);
    }

    fn reset(&self) {
        self.1.lock().push(self.0 | 1);
    }
}

#[test]
fn reset_tells_every_function_to_stop_before_it_waits_for_one() {
    let root = root();
    let order = Arc::new(Mutex::new(Vec::new()));
    for (device, name) in [(1, 0x10), (2, 0x20)] {
        let bdf = Bdf::new(0, device, 0).expect("in range");
        let witness = Arc::new(Witness(name, Arc::clone(&order)));
        root.add(bdf, witness).expect("free");
    }
    root.reset();
    assert_eq!(*order.lock(), [0x10, 0x20, 0x11, 0x21]);
}
