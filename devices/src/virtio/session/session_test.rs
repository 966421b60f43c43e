//! How much one DMA transaction does, counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use intel_vtd::{DmaPin, Pinned};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Session, Transport};
use crate::virtio::chain::{Chain, Table};
use crate::virtio::error::QueueError;
use crate::{Dma, Memory};

struct Deaf;

impl Transport for Deaf {
    fn queue_interrupt(&self, _index: usize) {}
    fn needs_reset(&self) {}
}

/// A session without queues, and a chain of a readable and a writable buffer of 512 KiB each.
fn session() -> (Session, Chain, Memory) {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let descriptors = [(0x10_0000_u64, 1_u16, 1_u16), (0x20_0000, 2, 0)];
    for ((address, flags, next), at) in descriptors.into_iter().zip((0x1000..).step_by(16)) {
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory
            .write_obj(512_u32 << 10, GuestAddress(at + 8))
            .unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }
    let table = Table {
        address: 0x1000,
        size: 2,
        indirect: false,
    };
    let mut chain = Chain::default();
    chain.load(&*memory, table, 0).unwrap();
    let view = Dma::direct(Arc::clone(&memory)).view();
    (
        Session::new(Vec::new(), view, Arc::new(Deaf), 0, Arc::default()),
        chain,
        memory,
    )
}

#[test]
fn a_transaction_copies_64_kib_at_the_most() {
    let (mut session, chain, _memory) = session();
    let mut data = vec![7; 512 << 10];
    session.write(&chain, 0, &data).unwrap();
    assert_eq!(session.dma.transactions, 8);
    session.read(&chain, 0, &mut data).unwrap();
    assert_eq!(session.dma.transactions, 16);
    session.read(&chain, 5, &mut data[..65536]).unwrap();
    assert_eq!(session.dma.transactions, 17);
    session.read(&chain, 5, &mut data[..65537]).unwrap();
    assert_eq!(session.dma.transactions, 19);
}

#[test]
fn a_mebibyte_is_pinned_at_a_time_and_nothing_once_a_reset_waits() {
    let (mut session, chain, _memory) = session();
    let mut pin = DmaPin::new();
    let length = |pinned: Result<Pinned<'_, Memory>, QueueError>| pinned.unwrap().len();
    assert_eq!(length(session.pin_readable(&mut pin, &chain, 5, 100)), 100);
    assert_eq!(
        length(session.pin_writable(&mut pin, &chain, 5, u64::MAX)),
        (512 << 10) - 5
    );
    assert_eq!(session.dma.transactions, 2);
    session.stop_flag().store(true, Ordering::SeqCst);
    assert!(matches!(
        session.pin_readable(&mut pin, &chain, 0, 1),
        Err(QueueError::Stopped)
    ));
}

proptest! {
    #[test]
    fn what_is_copied_in_pieces_arrives_whole(
        offset in 0..200_000_usize,
        length in 0..300_000_usize,
        seed in any::<u8>(),
    ) {
        let (mut session, chain, memory) = session();
        let data: Vec<u8> = (0..=250_u8)
            .cycle()
            .skip(seed.into())
            .take(length)
            .collect();
        session.write(&chain, offset as u64, &data).unwrap();
        let mut copy = vec![0; length];
        let at = GuestAddress(0x20_0000 + offset as u64);
        memory.read_slice(&mut copy, at).unwrap();
        prop_assert!(copy == data);

        memory.write_slice(&data, GuestAddress(0x10_0000 + offset as u64)).unwrap();
        copy.fill(0);
        session.read(&chain, offset as u64, &mut copy).unwrap();
        prop_assert!(copy == data);
    }
}
