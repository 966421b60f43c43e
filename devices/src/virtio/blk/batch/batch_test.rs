//! What a batch asks of the driver, and what it leaves.

use std::sync::Arc;

use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

use super::{Batch, Target};
use crate::park::Park;
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

/// Wants a pause when it is interrupted.
struct Pausing(Arc<Park>);

impl Transport for Pausing {
    fn queue_interrupt(&self, _index: usize) {
        self.0.ask();
    }

    fn needs_reset(&self) {}
}

/// A session with a queue of 8 entries.
fn session(transport: impl Transport + 'static, features: u64) -> (Session, Memory) {
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
    let queue = VirtQueue::new(state, features).unwrap();
    let view = Dma::direct(Arc::clone(&memory)).view();
    let queues = vec![Some(queue)];
    let session = Session::new(queues, view, Arc::new(transport), features, Arc::default());
    (session, memory)
}

#[test]
fn while_a_batch_is_served_the_driver_need_not_notify() {
    let (mut session, memory) = session(Deaf, EVENT_IDX);
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

#[test]
fn a_pause_within_a_batch_leaves_the_rest_in_the_queue() {
    let park = Arc::<Park>::default();
    let (mut session, memory) = session(Pausing(Arc::clone(&park)), 0);
    session.obey(&park);
    let target = Target {
        file: TempFile::new().unwrap().into_file(),
        path: std::path::PathBuf::new(),
        sectors: 8,
        readonly: false,
        id: [0x41; 20],
    };
    // GET_ID: a header, 20 bytes, a status. All entries of the available ring name it.
    let chain = [
        (0x1_0000_u64, 16_u32, 1_u16, 1_u16),
        (0x1_1000, 20, 3, 2),
        (0x1_2000, 1, 2, 0),
    ];
    for (at, (address, length, flags, next)) in (DESCRIPTORS..).step_by(16).zip(chain) {
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }
    memory.write_obj(8_u32, GuestAddress(0x1_0000)).unwrap();
    memory
        .write_obj(5_u16, GuestAddress(AVAILABLE + 2))
        .unwrap();
    let used = || memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap();
    let mut batch = Batch::default();
    for served in 1..=5 {
        batch.serve(0, &target, &mut session).unwrap();
        assert_eq!(used(), served);
        batch.serve(0, &target, &mut session).unwrap();
        assert_eq!(used(), served, "a pause is wanted");
        park.release();
    }
    batch.serve(0, &target, &mut session).unwrap();
    assert_eq!(used(), 5);
}
