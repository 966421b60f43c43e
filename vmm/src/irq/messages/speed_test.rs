//! What changes of routes cost in the host's KVM, which waits for its readers at each of them.
//!
//! Not run by default: `cargo test -p nido -- --ignored --nocapture speed`. It needs /dev/kvm, and
//! no vCPU runs, which would cost more.

use std::time::Instant;

use super::super::chip::KvmChip;
use super::messages_test::{Bench, bench_with, compatible, request};
use super::*;

fn measure(what: &str, count: u32, run: impl FnOnce()) {
    let before = Instant::now();
    run();
    println!("{count:5} {what:40} {:?}", before.elapsed());
}

fn on_kvm(remapping: bool) -> Bench {
    bench_with(remapping, 4096, |memory| {
        let kvm = crate::kvm::open(1).expect("a host with KVM");
        let vm = crate::kvm::create_vm(&kvm, memory).expect("a virtual machine");
        Arc::new(KvmChip(vm))
    })
}

#[test]
#[ignore = "a measurement"]
fn speed_of_changes_in_kvm() {
    for count in [32, 256, 1024, 2048] {
        let bench = on_kvm(false);
        let routes: Vec<_> = (0..count).map(|_| bench.add()).collect();
        measure("messages", count, || {
            let messages = routes.iter().zip(0x40..);
            bench.set_all(messages.map(|((route, _), vector)| (&**route, compatible(vector))));
        });
        measure("masks", count, || {
            bench.set_all(routes.iter().map(|(route, _)| (&**route, None)));
        });
        measure("the same messages", count, || {
            let messages = routes.iter().zip(0x40..);
            bench.set_all(messages.map(|((route, _), vector)| (&**route, compatible(vector))));
        });
        measure("another message for one", count, || {
            bench.set(&*routes[0].0, compatible(0x31));
        });
        measure("end", count, || drop(routes));
    }
}

#[test]
#[ignore = "a measurement"]
fn speed_of_an_entry_that_flips_in_kvm() {
    const FLIPS: u32 = 200;
    for count in [1, 32, 256] {
        let bench = on_kvm(true);
        let routes: Vec<_> = (0..count).map(|_| bench.add()).collect();
        bench.set_entry(3, Some(0x43));
        for (route, _) in &routes {
            bench.set(&**route, request(3));
        }
        measure("routes whose entry goes and comes 100 times", count, || {
            for flip in 0..FLIPS {
                bench.set_entry(3, (flip % 2 == 1).then_some(0x43));
                bench.invalidate(Some((3, 0)));
            }
        });
        measure("routes whose entry changes 200 times", count, || {
            for flip in 0..FLIPS {
                bench.set_entry(3, Some(0x44 + u64::from(flip % 2)));
                bench.invalidate(Some((3, 0)));
            }
        });
    }
}
