//! Level-triggered pins over a stand-in for KVM.

use pci::{Bdf, MsiSink};
use vm_device::DeviceMmio as _;
use vm_device::bus::MmioAddress;

use super::super::messages::messages_test::{Call, bench};
use super::*;

/// A remapped entry of the I/O APIC for pin 5: level-triggered, index 3 of the remapping table.
const ENTRY: u64 = 3 << 49 | 1 << 48 | 1 << 15 | 0x43;

fn write(ioapic: &IoApic, register: u32, value: u64) {
    let base = MmioAddress(0xfec0_0000);
    ioapic.mmio_write(base, 0x00, &register.to_le_bytes());
    ioapic.mmio_write(base, 0x10, &value.to_le_bytes()[..4]);
}

/// The status write of a wait can change an entry between two invalidations of it.
#[test]
fn an_entry_that_comes_and_goes_changes_kvms_table_once() {
    let bench = bench(true, 4096);
    let sink: Arc<dyn MsiSink> = Arc::<Remapper>::clone(&bench.remapper);
    let requester = Bdf::from_requester_id(IOAPIC_REQUESTER);
    let ioapic = IoApic::new(sink, requester);
    let (remapper, table) = (Arc::clone(&bench.remapper), Arc::clone(&bench.table));
    LevelRoutes::install(remapper, table, Arc::clone(&ioapic));
    // Level-triggered, as KVM has to tell of its end.
    bench.set_raw_entry(3, 0x0000_0007_0043_0011);
    write(&ioapic, 0x1b, ENTRY >> 32);
    write(&ioapic, 0x1a, ENTRY);
    let table = |vector: u32| Call::Routes(vec![(5, 0xFEE0_7000, 0xC000 | vector)]);
    assert_eq!(bench.calls(), [table(0x43)]);
    for flip in 0..1000 {
        let entry = if flip % 2 == 0 {
            0
        } else {
            0x0000_0007_0043_0011
        };
        bench.set_raw_entry(3, entry);
        bench.invalidate(Some((3, 0)));
    }
    assert_eq!(bench.calls(), []);
    bench.set_raw_entry(3, 0x0000_0007_0044_0011);
    bench.invalidate(Some((3, 0)));
    assert_eq!(bench.calls(), [table(0x44)]);
    // A pin without a route of its own.
    write(&ioapic, 0x1a, ENTRY & !(1 << 15));
    assert_eq!(bench.calls(), [Call::Routes(Vec::new())]);
}

#[test]
fn a_register_write_of_the_unit_changes_nothing_in_kvm() {
    let bench = bench(true, 4096);
    let sink: Arc<dyn MsiSink> = Arc::<Remapper>::clone(&bench.remapper);
    let ioapic = IoApic::new(sink, Bdf::from_requester_id(IOAPIC_REQUESTER));
    let (remapper, table) = (Arc::clone(&bench.remapper), Arc::clone(&bench.table));
    LevelRoutes::install(remapper, table, Arc::clone(&ioapic));
    bench.set_raw_entry(3, 0x0000_0007_0043_0011);
    write(&ioapic, 0x1b, ENTRY >> 32);
    write(&ioapic, 0x1a, ENTRY);
    bench.calls();
    bench.leave_to_background();
    bench.set_raw_entry(3, 0x0000_0007_0044_0011);
    bench.invalidate(Some((3, 0)));
    assert_eq!(bench.calls(), []);
    let stop = Arc::default();
    bench.run_backlog(&stop);
    let table = Call::Routes(vec![(5, 0xFEE0_7000, 0xC044)]);
    assert_eq!(bench.calls(), [table]);
    bench.run_backlog(&stop);
    bench.invalidate(Some((3, 0)));
    assert_eq!(bench.calls(), []);
}
