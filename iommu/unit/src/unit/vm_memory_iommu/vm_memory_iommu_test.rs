//! vm-memory's memory behind a unit.

use std::sync::Arc;

use vm_memory::{Bytes, IommuMemory};

use super::super::resolve_dma::resolve_dma_test::{bench, enable};
use super::*;

#[test]
fn memory_behind_the_adapter_is_that_of_the_device() {
    let bench = bench();
    let iommu = UnitIommu::new(Arc::clone(&bench.unit), SourceId(0x20), None);
    let memory = IommuMemory::new((*bench.memory).clone(), iommu, true, ());
    enable(&bench);
    memory
        .write_slice(b"over the edge", GuestAddress(0x1FFA))
        .unwrap();
    let mut text = [0; 13];
    bench
        .memory
        .read_slice(&mut text, GuestAddress(0x5_0FFA))
        .unwrap();
    assert_eq!(&text, b"over the edge");
    // From the second page to the third, which is elsewhere and read-only.
    bench
        .memory
        .write_slice(b"here", GuestAddress(0x8_0000))
        .unwrap();
    let mut two = [0; 8];
    memory.read_slice(&mut two, GuestAddress(0x2FFC)).unwrap();
    assert_eq!(&two[4..], b"here");
    assert!(memory.write_slice(&two, GuestAddress(0x2FFC)).is_err());
    assert!(memory.read_slice(&mut two, GuestAddress(0x3FFC)).is_err());
}

#[test]
fn ranges_without_bytes_and_at_the_end_of_the_address_space_are_no_trouble() {
    let bench = bench();
    let iommu = UnitIommu::new(Arc::clone(&bench.unit), SourceId(0x20), None);
    enable(&bench);
    let translate = |at, length| {
        iommu
            .translate(GuestAddress(at), length, Permissions::Read)
            .map(Iterator::count)
    };
    assert!(matches!(translate(0x1000, 0), Ok(0)));
    assert!(translate(u64::MAX, 1).is_err());
    assert!(translate(u64::MAX - 1, 1).is_err());
    assert!(format!("{iommu:?}").contains("source"));
}
