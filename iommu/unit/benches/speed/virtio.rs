//! A request of 4 KiB through a split ring of virtio-queue, with the unit in front of ring and buffer and without.

use criterion::Criterion;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::dma::{group, measure};
use super::tables::{DATA, World};

/// Ring and buffer, from where the device sees page 0.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const BUFFER: u64 = 0x1000;
const SIZE: u16 = 16;

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = group(criterion, "virtio4k");
    let world = World::with_first_stage(16);
    let mut bytes = vec![0; 4096];
    let mut queue = ring(&world, DATA);
    measure(&mut group, "raw", |rounds| {
        (0..rounds).for_each(|_| serve(&mut queue, &*world.memory, &mut bytes));
    });
    let mut queue = ring(&world, 0);
    let mut view = world.port().view();
    measure(&mut group, "unit", |rounds| {
        (0..rounds).for_each(|_| serve(&mut queue, &view.begin(), &mut bytes));
    });
}

/// A ring with one readable buffer in it. The device sees what is at [`DATA`] at `base`.
fn ring(world: &World, base: u64) -> Queue {
    world.set(DATA, base + BUFFER);
    // 4096 bytes, no flags, no next.
    world.set(DATA + 8, 4096);
    // Index 1, entry 0.
    world.set(DATA + AVAILABLE, 1 << 16);
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    let low = |offset: u64| Some(u32::try_from(base + offset).unwrap());
    queue.set_desc_table_address(low(0), None);
    queue.set_avail_ring_address(low(AVAILABLE), None);
    queue.set_used_ring_address(low(USED), None);
    queue.set_ready(true);
    queue
}

/// Takes the request, copies its buffer, and returns it.
fn serve<M: GuestMemory + Bytes<GuestAddress, E: std::fmt::Debug>>(
    queue: &mut Queue,
    memory: &M,
    bytes: &mut [u8],
) {
    queue.set_next_avail(0);
    let mut chain = queue.pop_descriptor_chain(memory).unwrap();
    let head = chain.head_index();
    let buffer = chain.next().unwrap();
    memory.read_slice(bytes, buffer.addr()).unwrap();
    queue.add_used(memory, head, 0).unwrap();
}
