//! What a batch asks of the driver.

use std::sync::Arc;

use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Batch;
use crate::virtio::queue::VirtQueue;
use crate::virtio::session::{Session, Transport};
use crate::{Dma, Memory};

const EVENT_IDX: u64 = 1 << 29;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where the device says what it wants to hear of, of 8 entries.
const EVENT: u64 = USED + 4 + 8 * 8;

struct Deaf;

impl Transport for Deaf {
    fn queue_interrupt(&self, _index: usize) {}
    fn needs_reset(&self) {}
}

#[test]
fn while_a_batch_is_served_the_driver_need_not_notify() {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let state = QueueState {
        max_size: 8,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: true,
        size: 8,
        ready: true,
        desc_table: DESCRIPTORS,
        avail_ring: AVAILABLE,
        used_ring: USED,
    };
    let queue = VirtQueue::new(state, EVENT_IDX).unwrap();
    let view = Dma::direct(Arc::clone(&memory)).view();
    let queues = vec![Some(queue)];
    let mut session = Session::new(queues, view, Arc::new(Deaf), EVENT_IDX, Arc::default());
    let mut batch = Batch::default();
    let event = || memory.read_obj::<u16>(GuestAddress(EVENT)).unwrap();
    let offer = |index: u16| {
        memory
            .write_obj(index, GuestAddress(AVAILABLE + 2))
            .unwrap()
    };

    // All entries of the available ring name descriptor 0, a buffer of 16 bytes.
    memory
        .write_obj(16_u32, GuestAddress(DESCRIPTORS + 8))
        .unwrap();
    let taken = batch.take(0, &mut session);
    assert!(matches!(taken, (0, Ok(()))));
    assert_eq!(event(), 0);
    offer(2);
    assert!(matches!(batch.take(0, &mut session), (2, Ok(()))));
    assert_eq!(
        event(),
        0,
        "a notification of the third while two are served"
    );
    // It comes without one, and is found.
    offer(3);
    assert!(matches!(batch.take(0, &mut session), (1, Ok(()))));
    assert_eq!(event(), 0);
    assert!(matches!(batch.take(0, &mut session), (0, Ok(()))));
    assert_eq!(event(), 3);
}
