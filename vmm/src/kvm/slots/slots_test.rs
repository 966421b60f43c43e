//! Memory slots of the host's KVM, where a machine can be made with it.

use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;

/// Slots besides 2 MiB of RAM at 0, or `None` on a host without KVM.
fn slots() -> Option<KvmSlots> {
    let Ok(vm) = Kvm::new().and_then(|kvm| kvm.create_vm()) else {
        eprintln!("skipped: this host has no usable /dev/kvm");
        return None;
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]);
    let memory: Memory = Arc::new(memory.expect("mappable"));
    Some(KvmSlots::new(Arc::new(vm), &memory))
}

fn bar(size: usize) -> Arc<MmapRegion> {
    Arc::new(MmapRegion::new(size).expect("mappable"))
}

#[test]
fn what_is_no_part_of_the_memory_is_refused() {
    for (address, offset, length) in [
        (0xc000_0800, 0, 0x1000),
        (0xc000_0000, 0x800, 0x1000),
        (0xc000_0000, 0, 0x800),
        (0xc000_0000, 0, 0),
        (0xc000_0000, 0x3000, 0x2000),
        (0xc000_0000, u64::MAX - 0xfff, 0x1000),
        (u64::MAX - 0xfff, 0, 0x2000),
    ] {
        let error = check(address, 0x4000, offset, length).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
    let range = check(0xc000_0000, 0x4000, 0x3000, 0x1000).expect("taken");
    assert_eq!(range, 0xc000_0000..0xc000_1000);
}

#[test]
fn mappings_overlap_neither_ram_nor_each_other_and_go_when_they_are_dropped() {
    let Some(slots) = slots() else { return };
    let bar = bar(0x4000);
    let map = |address, length| slots.map(address, &bar, 0, length);
    assert!(map(0x1f_f000, 0x1000).is_err(), "RAM");
    let first = map(0xc000_0000, 0x2000).expect("free");
    assert!(map(0xc000_1000, 0x2000).is_err(), "the first one");
    let second = map(0xc000_2000, 0x2000).expect("free");
    assert_eq!(Arc::strong_count(&bar), 3, "kept while it is mapped");
    drop(first);
    let third = map(0xc000_1000, 0x1000).expect("free again");
    drop((second, third));
    assert_eq!(Arc::strong_count(&bar), 1);
    assert!(slots.0.lock().is_empty());
}

#[test]
fn slots_are_used_again_and_their_end_is_an_error() {
    let Some(mut slots) = slots() else { return };
    let inner = Arc::get_mut(&mut slots.0).expect("not shared yet");
    assert!(inner.numbers.end > 4, "{:?}", inner.numbers);
    inner.numbers.end = 3;
    let bar = bar(0x1000);
    let map = |address| slots.map(address, &bar, 0, 0x1000);
    for _ in 0..10 {
        let both = (map(0xc000_0000), map(0xc000_1000));
        assert!(both.0.is_ok() && both.1.is_ok());
        let message = map(0xc000_2000).expect_err("too many").to_string();
        assert_eq!(message, "all 2 memory slots of KVM are in use");
    }
}
