//! Invalidation: descriptors a second, and what they cost the device threads.

use criterion::{Criterion, Throughput};
use vm_memory::{Bytes, GuestAddress};

use super::dma::{group, measure};
use super::tables::{QUEUE, World};

/// A queue of 256 entries holds one less.
const BATCH: u64 = 255;
const STATUS: u64 = 0x6000;

/// PASID-based IOTLB invalidation of PASID 0, domain 1: one page.
const PAGE: [u64; 4] = [0x0001_0036, 0x1000, 0, 0];
/// IOTLB invalidation of domain 1.
const DOMAIN: [u64; 4] = [0x0001_0022, 0, 0, 0];
/// Wait that writes 1 to [`STATUS`].
const WAIT: [u64; 4] = [0x1_0000_0025, STATUS, 0, 0];

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = group(criterion, "queue");
    // Rounds are batches, shown for each descriptor.
    group.throughput(Throughput::Elements(BATCH));
    for (name, pair) in [
        ("page", [PAGE, PAGE]),
        ("domain", [DOMAIN, DOMAIN]),
        ("page+wait", [PAGE, WAIT]),
        ("domain+wait", [DOMAIN, WAIT]),
    ] {
        let world = World::with_first_stage(1);
        // A device that is idle has to be looked at, too.
        let _view = world.port().view();
        world.enable_queue();
        let descriptors = pair.iter().cycle().take(256);
        for (place, descriptor) in (QUEUE..).step_by(32).zip(descriptors) {
            for (at, word) in (place..).step_by(8).zip(descriptor) {
                world.set(at, *word);
            }
        }
        let mut tail = 0;
        measure(&mut group, name, |rounds| {
            for _ in 0..rounds {
                tail = (tail + 32 * BATCH) % 0x2000;
                world.unit.write(0x88, &tail.to_le_bytes());
            }
        });
        let stats = world.unit.stats();
        assert_eq!(stats.queue_errors, 0, "{name}");
        if stats.waits != 0 {
            let status: u32 = world.memory.read_obj(GuestAddress(STATUS)).unwrap();
            assert_eq!(status, 1, "{name}");
        }
    }
}
