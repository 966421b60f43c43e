//! The fake does what the kernel was seen to do.

use std::fs::File;
use std::os::fd::AsFd;

use super::errno::*;
use super::*;

const TRACKING: HwptOptions = HwptOptions {
    nesting_parent: false,
    dirty_tracking: true,
    pasid: false,
};

fn number<T: fmt::Debug>(outcome: io::Result<T>) -> i32 {
    outcome.unwrap_err().raw_os_error().unwrap()
}

fn map(host: &FakeHost, ioas: IoasId, address: u64, length: u64) -> io::Result<()> {
    let file = File::open("/dev/null").unwrap();
    let memory = HostMemory {
        file: (file.as_fd(), address),
        address: 0,
        length,
    };
    host.map(ioas, address, &memory, Rights::ALL)
}

fn share(host: &FakeHost, from: u64, to: u64, length: u64, ioases: [IoasId; 2]) -> io::Result<()> {
    host.share(&SharedMapping {
        source: ioases[0],
        source_address: from,
        target: ioases[1],
        target_address: to,
        length,
        rights: Rights::ALL,
    })
}

#[test]
fn areas_go_as_a_whole_and_the_call_fails_half_way() {
    let host = FakeHost::new();
    let ioas = host.allocate_ioas().unwrap();
    map(&host, ioas, 0x1000, 0x1000).unwrap();
    map(&host, ioas, 0x4000, 0x2000).unwrap();
    assert_eq!(number(map(&host, ioas, 0x5000, 0x1000)), EEXIST);
    assert_eq!(number(host.unmap(ioas, 0x2000, 0x1000)), ENOENT);
    assert_eq!(number(host.unmap(ioas, 0x1000, 0x4000)), ENOENT);
    // The first is gone nevertheless.
    assert_eq!(number(host.unmap(ioas, 0x1000, 0x1000)), ENOENT);
    assert_eq!(host.unmap(ioas, 0, 0x10_0000).unwrap(), 0x2000);
    assert_eq!(host.unmap(ioas, 0, u64::MAX).unwrap(), 0);
}

#[test]
fn parts_are_shared_and_holes_are_not() {
    let host = FakeHost::new();
    let ioases = [host.allocate_ioas().unwrap(), host.allocate_ioas().unwrap()];
    map(&host, ioases[0], 0x1000, 0x2000).unwrap();
    map(&host, ioases[0], 0x3000, 0x2000).unwrap();
    share(&host, 0x2000, 0x9000, 0x2000, ioases).unwrap();
    assert_eq!(number(share(&host, 0x4000, 0x0, 0x2000, ioases)), ENOENT);
    // One area for each that it came from.
    assert_eq!(host.unmap(ioases[1], 0x9000, 0x1000).unwrap(), 0x1000);
    assert_eq!(host.unmap(ioases[1], 0xa000, 0x1000).unwrap(), 0x1000);
}

#[test]
fn a_device_takes_the_interrupt_range_and_its_width() {
    let host = FakeHost::new();
    let (device, attachment) = host.bind(FakeFeatures {
        address_bits: 39,
        ..FakeFeatures::default()
    });
    let ioas = host.allocate_ioas().unwrap();
    map(&host, ioas, 0xfee0_0000, 0x1000).unwrap();
    let plain = HwptOptions::default();
    let table = host.allocate_hwpt(device, ioas, plain).unwrap();
    assert_eq!(number(attachment.attach(None, table)), EADDRINUSE);
    host.unmap(ioas, 0xfee0_0000, 0x1000).unwrap();
    attachment.attach(None, table).unwrap();
    assert_eq!(
        host.address_ranges(ioas).unwrap().0,
        [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]
    );
    assert_eq!(number(map(&host, ioas, 0xfee0_0000, 0x1000)), EINVAL);
    assert_eq!(number(map(&host, ioas, 0x80_0000_0000, 0x1000)), EINVAL);
    assert_eq!(number(host.destroy(ioas.into())), EBUSY);
    assert_eq!(number(host.destroy(table.into())), EBUSY);
    attachment.detach(None).unwrap();
    host.destroy(table.into()).unwrap();
    host.destroy(ioas.into()).unwrap();
    assert_eq!(host.objects(), 0);
}

#[test]
fn a_failed_replacement_blocks_and_is_not_undone_by_attaching_again() {
    let host = FakeHost::new();
    let (device, attachment) = host.bind(FakeFeatures::default());
    let ioas = host.allocate_ioas().unwrap();
    map(&host, ioas, 0x1000, 0x1000).unwrap();
    let table = || {
        host.allocate_hwpt(device, ioas, HwptOptions::default())
            .unwrap()
    };
    let (old, new) = (table(), table());
    attachment.attach(None, old).unwrap();
    assert!(host.dma(device, 0x1000).is_some());
    host.fail_after(0, ENOMEM);
    assert_eq!(number(attachment.attach(None, new)), ENOMEM);
    assert_eq!(host.dma(device, 0x1000), None);
    attachment.attach(None, old).unwrap();
    assert_eq!(host.dma(device, 0x1000), None, "attaching it did nothing");
    attachment.detach(None).unwrap();
    attachment.attach(None, old).unwrap();
    assert!(host.dma(device, 0x1000).is_some());
}

#[test]
fn written_pages_are_told_once_and_forgotten_with_their_area() {
    let host = FakeHost::new();
    let (device, attachment) = host.bind(FakeFeatures {
        dirty_tracking: true,
        ..FakeFeatures::default()
    });
    let ioas = host.allocate_ioas().unwrap();
    let table = host.allocate_hwpt(device, ioas, TRACKING).unwrap();
    map(&host, ioas, 0x1000, 0x4000).unwrap();
    map(&host, ioas, 0x8000, 0x1000).unwrap();
    attachment.attach(None, table).unwrap();
    host.write(device, 0x1000).unwrap();
    host.set_dirty_tracking(table, true).unwrap();
    host.write(device, 0x3008).unwrap();
    host.write(device, 0x8000).unwrap();
    let dirty = |address, length| {
        let mut bits = [0];
        host.dirty_pages(table, address, length, 4096, &mut bits)
            .map(|()| bits[0])
    };
    assert_eq!(dirty(0x1000, 0x4000).unwrap(), 0b100);
    assert_eq!(dirty(0x1000, 0x4000).unwrap(), 0);
    host.unmap(ioas, 0x8000, 0x1000).unwrap();
    assert_eq!(number(dirty(0x8000, 0x1000)), EINVAL);
    map(&host, ioas, 0x8000, 0x1000).unwrap();
    assert_eq!(dirty(0x8000, 0x1000).unwrap(), 0);
}

#[test]
fn calls_are_kept_in_order_with_their_outcome() {
    let host = FakeHost::new();
    host.fail_after(1, EBUSY);
    let ioas = host.allocate_ioas().unwrap();
    assert_eq!(number(host.destroy(ioas.into())), EBUSY);
    host.destroy(ioas.into()).unwrap();
    assert_eq!(
        host.take_calls(),
        [
            (Call::AllocateIoas, Ok(())),
            (Call::Destroy(ioas.into()), Err(EBUSY)),
            (Call::Destroy(ioas.into()), Ok(())),
        ]
    );
}
