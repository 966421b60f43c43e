//! What a write to guest memory costs, with no marks, and with marks that are off and on. It measures, and
//! proves nothing: `cargo test --release -p devices marks::speed -- --ignored --nocapture`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use intel_vtd::DmaPort;

use vm_memory::bitmap::NewBitmap;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, MmapRegion};

use super::Marks;

const SIZE: usize = 1 << 20;
const TIMES: u32 = 4_000_000;
const ROUNDS: usize = 7;

/// Nanoseconds that `work` takes, the least of some rounds.
fn nanoseconds(mut work: impl FnMut(u64)) -> f64 {
    let round = |_| {
        let began = Instant::now();
        for time in 0..TIMES {
            work(u64::from(time % 1000) * 64);
        }
        began.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
    };
    (0..ROUNDS).map(round).fold(f64::MAX, f64::min)
}

fn memory<B: NewBitmap>() -> Arc<GuestMemoryMmap<B>> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap())
}

/// Of an object in plain memory, and by DMA without a unit; of 1500 bytes by DMA.
fn measure<B: NewBitmap + Send + Sync + 'static>(memory: &Arc<GuestMemoryMmap<B>>) -> [f64; 3] {
    let dma = DmaPort::direct(Arc::clone(memory));
    let mut view = dma.view();
    let packet = [7_u8; 1500];
    [
        nanoseconds(|at| {
            memory
                .write_obj(black_box(at), GuestAddress(at))
                .expect("memory");
        }),
        nanoseconds(|at| {
            let transaction = view.begin();
            transaction
                .write_obj(black_box(at), GuestAddress(at))
                .expect("memory");
        }),
        nanoseconds(|at| {
            let transaction = view.begin();
            transaction
                .write_slice(black_box(&packet), GuestAddress(at))
                .expect("memory");
        }),
    ]
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let plain = measure(&memory::<()>());
    let marked = memory::<Marks>();
    let off = measure(&marked);
    let marks = |memory: &GuestMemoryMmap<Marks>| {
        for region in memory.iter() {
            MmapRegion::bitmap(region).begin();
        }
    };
    marks(&marked);
    let on = measure(&marked);
    println!("ns: plain write_obj, DMA write_obj, DMA write_slice of 1500");
    for (name, figures) in [("none", plain), ("off", off), ("on", on)] {
        println!("{name:<5} {figures:.1?}");
    }
}
