//! Chains, read from tables that nobody vouches for.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Chain, MAX_INDIRECT, Table};
use super::error::QueueError;

const SIZE: u64 = 1 << 20;
const TABLE: u64 = 0x1000;

type Raw = (u64, u32, u16, u16);

fn memory(descriptors: &[Raw]) -> GuestMemoryMmap<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    write_table(&memory, TABLE, descriptors);
    memory
}

fn write_table(memory: &GuestMemoryMmap<()>, at: u64, descriptors: &[Raw]) {
    for ((address, length, flags, next), place) in descriptors.iter().zip((at..).step_by(16)) {
        memory.write_obj(*address, GuestAddress(place)).unwrap();
        memory.write_obj(*length, GuestAddress(place + 8)).unwrap();
        memory.write_obj(*flags, GuestAddress(place + 12)).unwrap();
        memory.write_obj(*next, GuestAddress(place + 14)).unwrap();
    }
}

fn table(size: u16) -> Table {
    Table {
        address: TABLE,
        size,
        indirect: true,
    }
}

fn load(descriptors: &[Raw], size: u16) -> Result<Chain, QueueError> {
    let mut chain = Chain::default();
    chain
        .load(&memory(descriptors), table(size), 0)
        .map(|()| chain)
}

#[test]
fn a_chain_as_long_as_the_queue_is_accepted() {
    let descriptors: Vec<Raw> = (0..8)
        .map(|n| (0x4000, 1, u16::from(n < 7), n + 1))
        .collect();
    assert_eq!(load(&descriptors, 8).unwrap().readable(), 8);
}

#[test]
fn a_chain_that_returns_to_an_earlier_descriptor_is_refused() {
    let descriptors = [(0x4000, 1, 1, 1), (0x4000, 1, 1, 2), (0x4000, 1, 1, 1)];
    assert!(matches!(
        load(&descriptors, 8),
        Err(QueueError::ChainTooLong)
    ));
}

#[test]
fn four_gibibytes_are_the_most_that_a_chain_can_have() {
    let most = [(0, 0x8000_0000, 1, 1), (0, 0x8000_0000, 2, 0)];
    let chain = load(&most, 8).unwrap();
    assert_eq!(
        (chain.readable(), chain.writable()),
        (0x8000_0000, 0x8000_0000)
    );
    let more = [(0, 0x8000_0000, 1, 1), (0, 0x8000_0001, 2, 0)];
    assert!(matches!(load(&more, 8), Err(QueueError::ChainTooLong)));
}

#[test]
fn a_buffer_that_wraps_around_the_address_space_is_refused() {
    assert!(matches!(
        load(&[(u64::MAX, 2, 0, 0)], 8),
        Err(QueueError::Address)
    ));
}

#[test]
fn an_indirect_table_may_follow_direct_descriptors() {
    let memory = memory(&[(0x4000, 16, 1, 1), (0x8000, 32, 4, 0)]);
    write_table(&memory, 0x8000, &[(0x5000, 10, 1, 1), (0x6000, 20, 2, 0)]);
    let mut chain = Chain::default();
    chain.load(&memory, table(8), 0).unwrap();
    assert_eq!(
        (chain.head(), chain.readable(), chain.writable()),
        (0, 26, 20)
    );
}

#[test]
fn an_indirect_table_needs_its_feature_and_has_no_successor() {
    let mut chain = Chain::default();
    let memory = memory(&[(0x8000, 16, 4, 0), (0x8000, 16, 5, 0), (0x8000, 0, 4, 0)]);
    write_table(&memory, 0x8000, &[(0x4000, 1, 0, 0)]);
    let without = Table {
        indirect: false,
        ..table(8)
    };
    assert!(matches!(
        chain.load(&memory, without, 0),
        Err(QueueError::Indirect)
    ));
    assert!(matches!(
        chain.load(&memory, table(8), 1),
        Err(QueueError::Indirect)
    ));
    assert!(matches!(
        chain.load(&memory, table(8), 2),
        Err(QueueError::Indirect)
    ));
    assert!(chain.load(&memory, table(8), 0).is_ok());
}

#[test]
fn the_longest_chain_takes_its_table_and_an_indirect_one() {
    let mut direct: Vec<Raw> = (0..255).map(|n| (0x4000, 1, 1, n + 1)).collect();
    direct.push((0x8000, 256 * 16, 4, 0));
    let indirect: Vec<Raw> = (0..256)
        .map(|n| (0x4000, 0, u16::from(n < 255), n + 1))
        .collect();
    let memory = memory(&direct);
    write_table(&memory, 0x8000, &indirect);
    let mut chain = Chain::default();
    chain.load(&memory, table(256), 0).unwrap();
    assert_eq!((chain.descriptors(), chain.readable()), (512, 255));
}

#[test]
fn a_chain_of_empty_buffers_is_refused() {
    let empty = [(0x4000, 0, 1, 1), (0x4000, 0, 3, 2), (0x4000, 0, 2, 0)];
    assert!(matches!(load(&empty, 8), Err(QueueError::Length)));
    let one_byte = [(0x4000, 0, 1, 1), (0x4000, 0, 3, 2), (0x4000, 1, 2, 0)];
    assert_eq!(load(&one_byte, 8).unwrap().writable(), 1);
}

#[test]
fn a_loop_in_a_huge_indirect_table_ends_at_the_bound() {
    let memory = memory(&[(0x8000, 0xffff_fff0, 4, 0)]);
    write_table(&memory, 0x8000, &[(0x4000, 1, 1, 0)]);
    let mut chain = Chain::default();
    assert!(matches!(
        chain.load(&memory, table(8), 0),
        Err(QueueError::ChainTooLong)
    ));
    assert_eq!(chain.readable(), u64::from(MAX_INDIRECT));
}

#[test]
fn copies_start_anywhere_and_cross_segments() {
    let memory = memory(&[
        (0x4000, 3, 1, 1),
        (0x5000, 0, 1, 2),
        (0x6000, 5, 1, 3),
        (0x7000, 4, 2, 0),
    ]);
    memory.write_slice(b"abc", GuestAddress(0x4000)).unwrap();
    memory.write_slice(b"defgh", GuestAddress(0x6000)).unwrap();
    let mut chain = Chain::default();
    chain.load(&memory, table(8), 0).unwrap();
    let mut data = [0; 4];
    chain.read(&memory, 2, &mut data).unwrap();
    assert_eq!(&data, b"cdef");
    assert!(matches!(
        chain.read(&memory, 5, &mut data),
        Err(QueueError::Length)
    ));
    chain.write(&memory, 1, b"xyz").unwrap();
    assert!(matches!(
        chain.write(&memory, 1, b"wxyz"),
        Err(QueueError::Length)
    ));
    assert!(matches!(
        chain.read(&memory, u64::MAX, &mut data),
        Err(QueueError::Length)
    ));
    let mut written = [9; 5];
    memory
        .read_slice(&mut written, GuestAddress(0x7000))
        .unwrap();
    // The failed write got as far as there was room.
    assert_eq!(written, *b"\0wxy\0");
}

fn descriptor() -> impl Strategy<Value = Raw> {
    let address = prop_oneof![Just(TABLE), 0..SIZE, any::<u64>()];
    let length = prop_oneof![(0..8_u32).prop_map(|n| n * 16), 0..8192_u32, any::<u32>()];
    let flags = prop_oneof![4 => 0..4_u16, 1 => 0..8_u16, 1 => any::<u16>()];
    (
        address,
        length,
        flags,
        prop_oneof![4 => 0..16_u16, 1 => any::<u16>()],
    )
}

proptest! {
    #[test]
    fn any_table_gives_a_chain_or_an_error(
        descriptors in prop::collection::vec(descriptor(), 16),
        head in 0..20_u16,
        offset in 0..10000_u64,
    ) {
        let memory = memory(&descriptors);
        let mut chain = Chain::default();
        if chain.load(&memory, table(16), head).is_ok() {
            prop_assert!(chain.readable() + chain.writable() <= 1 << 32);
            let mut data = [0; 5000];
            let fits = offset + 5000 <= chain.readable();
            let read = chain.read(&memory, offset, &mut data);
            prop_assert!(!matches!(read, Err(QueueError::Length)) || !fits);
            prop_assert!(read.is_err() || fits);
            let _ = chain.write(&memory, offset, &data);
        }
    }
}
