//! What the edu device writes to guest memory is marked, and what its unit does for it: all of memory
//! is compared.

use std::sync::Arc;

use pci::PciFunction as _;

use super::extension_test::*;
use crate::marks::testing::Watched;

/// Behind a unit, with tables.
fn watched() -> (Machine, Watched) {
    let memory = Watched::new(1 << 20);
    let machine = with_mappings(Arc::clone(&memory.guest), Arc::clone(&memory.device));
    machine.write_tables();
    machine.switch_on();
    (machine, memory)
}

impl Machine {
    fn rest(&self) {
        self.edu.park();
        self.wait_until("it parks", || self.edu.parked().is_ok());
    }
}

/// A page that is not there is asked for, comes, and is written to.
#[test]
fn page_requests_statuses_accessed_and_dirty_bits_and_data_are_marked() {
    let (machine, memory) = watched();
    machine.put(ENTRY, 0);
    machine.fill(FIRST);
    let changed = memory.changed_by(|| {
        machine.start(TRANSLATE | PAGES);
        machine.wait_until("a request comes", || machine.register(0xc8) == 32);
        machine.rest();
    });
    assert_eq!(changed, [PAGE_QUEUE]);

    machine.put(ENTRY, FIRST | 7);
    machine.put(STATUS, 0);
    // Page-group response to group 0, and a wait.
    let response = [PASID << 32 | SOURCE << 16 | 0x19, 0, 0, 0];
    let wait = [0x1_0000_0025, STATUS, 0, 0];
    for (at, word) in (QUEUE..).step_by(8).zip([response, wait].concat()) {
        machine.put(at, word);
    }
    let changed = memory.changed_by(|| machine.unit.write(0x88, &64_u64.to_le_bytes()));
    assert_eq!(changed, [STATUS]);

    let changed = memory.changed_by(|| {
        machine.edu.resume();
        assert_eq!(machine.finish(), 0);
        machine.rest();
    });
    assert_eq!(changed, [PML4, PDPT, PD, PAGE_TABLE, FIRST]);
}
