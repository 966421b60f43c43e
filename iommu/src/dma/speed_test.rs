//! What the translation path costs. Not run by default: `cargo test --release -p iommu -- --ignored --nocapture speed`.

use std::hint::black_box;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};

use super::dma_test::bench;

#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr, reason = "a measurement")]
fn speed_of_hits_walks_and_transactions() {
    const ROUNDS: u32 = 2_000_000;
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    let mut view = bench.port.view();

    let since = Instant::now();
    {
        let transaction = view.begin();
        for _ in 0..ROUNDS {
            black_box(
                transaction
                    .read_obj::<u64>(black_box(GuestAddress(0x1008)))
                    .unwrap(),
            );
        }
    }
    eprintln!("hit, 8 bytes:          {:?}", since.elapsed() / ROUNDS);

    let since = Instant::now();
    for _ in 0..ROUNDS {
        let transaction = view.begin();
        black_box(
            transaction
                .read_obj::<u64>(black_box(GuestAddress(0x1008)))
                .unwrap(),
        );
    }
    eprintln!("transaction and hit:   {:?}", since.elapsed() / ROUNDS);

    let since = Instant::now();
    for _ in 0..ROUNDS {
        black_box(
            bench
                .world
                .memory
                .read_obj::<u64>(black_box(GuestAddress(0x20_0008)))
                .unwrap(),
        );
    }
    eprintln!("no translation:        {:?}", since.elapsed() / ROUNDS);

    let since = Instant::now();
    for _ in 0..ROUNDS {
        black_box(bench.world.read(black_box(0x1008)).unwrap());
    }
    eprintln!("walk, 4 levels:        {:?}", since.elapsed() / ROUNDS);

    let since = Instant::now();
    for _ in 0..ROUNDS / 4 {
        bench.state.invalidate_all();
        bench.state.drain();
    }
    eprintln!(
        "invalidate and drain:  {:?}",
        since.elapsed() / (ROUNDS / 4)
    );
}
