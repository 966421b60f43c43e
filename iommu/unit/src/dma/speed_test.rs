//! What the translation path costs, in processor time of one thread.
//!
//! Not run by default: `cargo test --release -p intel-vtd -- --ignored --nocapture speed`.

use std::hint::black_box;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::dma_test::bench;

const ROUNDS: u32 = 2_000_000;

/// Time that this thread has spent on a processor.
fn spent() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

fn measure(what: &str, rounds: u32, run: impl FnOnce(u32)) {
    let before = spent();
    run(rounds);
    println!("{what:28} {:?}", (spent() - before) / rounds);
}

#[test]
#[ignore = "a measurement"]
fn speed_of_hits_walks_and_transactions() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_0003);
    let mut view = bench.port.view();
    let input = GuestAddress(0x1008);

    measure("no translation", ROUNDS, |rounds| {
        for _ in 0..rounds {
            black_box(
                bench
                    .world
                    .memory
                    .read_obj::<u64>(black_box(GuestAddress(0x20_0008)))
                    .unwrap(),
            );
        }
    });
    measure("hit", ROUNDS, |rounds| {
        let transaction = view.begin();
        for _ in 0..rounds {
            black_box(transaction.read_obj::<u64>(black_box(input)).unwrap());
        }
    });
    measure("transaction with a hit", ROUNDS, |rounds| {
        for _ in 0..rounds {
            black_box(view.begin().read_obj::<u64>(black_box(input)).unwrap());
        }
    });
    measure("walk of 4 levels", ROUNDS, |rounds| {
        for _ in 0..rounds {
            black_box(bench.world.read(black_box(0x1008)).unwrap());
        }
    });
    // 512 pages do not fit into the cache, and share an entry in pairs.
    for page in 0..512 {
        bench.world.map(&bench.paging, page << 12, 1, 0x20_0003);
    }
    measure("refill within a transaction", ROUNDS, |rounds| {
        let transaction = view.begin();
        for round in 0..u64::from(rounds) {
            let input = GuestAddress(black_box((round & 511) << 12));
            black_box(transaction.read_obj::<u64>(input).unwrap());
        }
    });
    measure("invalidation and drain", ROUNDS, |rounds| {
        for _ in 0..rounds {
            bench.state.invalidate_all();
            bench.state.drain();
        }
    });
}
