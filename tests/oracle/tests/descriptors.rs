//! Random invalidation descriptors: which ones stop the queue, and with what IQEI (section 6.5.2,
//! sheet C7 and A6).

use std::sync::Arc;

use intel_vtd::{SourceId, Unit, UnitConfig};
use oracle::bystanders::{Nowhere, Obedient};
use oracle::driver::{Driver, queue};
use oracle::machine::guest::configuration;
use oracle::ram::Memory;
use oracle::rng::Rng;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The only source with a device-TLB.
const PRESENT: u64 = 0x0108;

/// The source that a good descriptor of type 3 or 8 addresses.
fn addressed(words: [u64; 4]) -> Option<u64> {
    match words[0] & 0xe0f {
        3 => Some(words[0] >> 32 & 0xffff),
        8 => Some(words[0] >> 16 & 0xffff),
        _ => None,
    }
}

/// What the mode makes of a descriptor.
#[derive(Clone, Copy, Debug)]
struct Mode {
    scalable: bool,
    wide: bool,
    interrupts: bool,
    device_tlb: bool,
    page_requests: bool,
}

/// IQEI values that are permitted; empty if the descriptor is good.
fn verdict(words: [u64; 4], mode: Mode) -> &'static [u64] {
    let [low, high, ..] = words;
    let kind = low & 0xf | (low >> 9 & 7) << 4;
    let known = match kind {
        1 | 2 | 5 => true,
        3 => mode.device_tlb,
        4 => mode.interrupts,
        6 | 7 => mode.scalable,
        8 => mode.scalable && mode.device_tlb,
        9 => mode.scalable && mode.page_requests,
        _ => false,
    };
    if !known {
        return &[3];
    }
    let granularity = low >> 4 & 3;
    // Reserved bits of the low and the high quadword. With major version 5, DR and DW are ignored.
    let (reserved_low, reserved_high) = match kind {
        1 => (0xfffc_0000_0000_f1c0, u64::MAX),
        2 => (0xffff_ffff_0000_f100, 0xf80),
        // No PFSID without DIT.
        3 => (0xffff_0000_ffe0_f1f0, 0xffe),
        4 => (0xffff_0000_07ff_f1e0, u64::MAX),
        // PD comes with page requests.
        5 if mode.page_requests => (0xffff_f100, 0x3),
        5 => (0xffff_f180, 0x3),
        8 => (0xfff0_0000_0000_f000, 0x7fe),
        // Bit 66 is ignored.
        9 => (0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),
        6 => (0xfff0_0000_0000_f1c0, 0xf80),
        _ => (0xfff0_0000_0000_f1c0, u64::MAX),
    };
    let dirty = low & reserved_low != 0
        || high & reserved_high != 0
        || mode.wide && (words[2] != 0 || words[3] != 0);
    let bad_granularity = match kind {
        1 | 2 => granularity == 0,
        6 => granularity < 2,
        7 => granularity == 2,
        _ => false,
    };
    // Sheet F2: the specification is silent about AM beyond MAMV and IM beyond MHMV, and a bad G is
    // 4 or 3.
    let beyond = match kind {
        2 => granularity == 3 && high & 0x3f > 18,
        4 => low >> 4 & 1 == 1 && low >> 27 & 0x1f > 15,
        _ => false,
    };
    match (dirty, bad_granularity, beyond) {
        (true, true, _) | (false, true, _) => &[3, 4],
        (true, _, _) => &[4],
        (_, _, true) => &[4, 0xff],
        _ => &[],
    }
}

fn random(rng: &mut Rng) -> [u64; 4] {
    let (did, at) = (rng.below(0x1_0000), rng.word());
    let source = rng.pick(&[PRESENT, PRESENT, PRESENT, 0x0110]);
    let pasid = rng.chance(3, 4).then_some(did);
    let shift = rng.pick(&[12, 13, 21, 63, 64]);
    let mut words = match rng.below(14) {
        10 => queue::device_tlb(source, at, shift),
        11 => queue::pasid_device_tlb(source, pasid, at, shift),
        12 => queue::page_response(source, pasid, rng.below(512), rng.below(16)),
        0 => queue::context_global(),
        1 => queue::context_device(did, rng.below(0x1_0000), rng.below(4)),
        2 => queue::iotlb_global(),
        3 => queue::iotlb_domain(did),
        4 => queue::iotlb_pages(did, at, rng.below(24), rng.chance(1, 2)),
        5 => queue::interrupt_global(),
        6 => queue::interrupt_entries(did, rng.below(18)),
        7 => queue::pasid_iotlb(did, rng.below(0x10_0000)),
        8 => queue::pasid_iotlb_pages(did, rng.below(0x10_0000), at, rng.below(64), true),
        9 => queue::pasid_cache_pasid(did, rng.below(0x10_0000)),
        _ => [rng.word(), rng.word(), 0, 0],
    };
    if rng.chance(1, 2) {
        words[oracle::index(rng.pick(&[0, 0, 0, 0, 1, 1, 2, 3]))] ^= 1 << rng.below(64);
    }
    // A wait may write its status, but not over the queue or what the test looks at.
    if words[0] & 0xf == 5 {
        words[0] &= !0x20;
    }
    words
}

fn machine(config: &UnitConfig) -> (Driver, Memory) {
    let memory: Memory = Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("guest memory"),
    );
    let unit = Unit::new(memory.clone(), config, Arc::new(Nowhere)).expect("a configuration");
    (Driver::new(unit, memory.clone(), 0x1000, 0x2000), memory)
}

#[test]
fn a_descriptor_stops_the_queue_exactly_when_the_specification_says_so() {
    let seed = oracle::seed("descriptors");
    let steps = oracle::steps(40_000);
    let mut rng = Rng::new(seed);
    let (mut good, mut bad) = (0_u64, 0_u64);
    while good + bad < steps {
        let config = configuration(&mut rng);
        let (mut driver, _memory) = machine(&config);
        driver.check_reset().expect("reset values");
        let present = SourceId(u16::try_from(PRESENT).expect("16 bits"));
        driver
            .registers
            .0
            .attach_device_tlb(present, Arc::new(Obedient));
        let scalable = config.scalable.is_some() && rng.chance(2, 3);
        let wide = scalable || config.scalable.is_some() && rng.chance(1, 2);
        driver.set_root(0x3000, u64::from(scalable));
        driver.start_queue(wide);
        let mode = Mode {
            scalable,
            wide,
            interrupts: config.interrupts.remapped(),
            device_tlb: config.device_tlb,
            page_requests: config.page_requests(),
        };
        for _ in 0..200 {
            let mut words = random(&mut rng);
            if !wide {
                words[2] = 0;
                words[3] = 0;
            }
            let expected = verdict(words, mode);
            let head = driver.queue.tail();
            driver.queue.push(&mut driver.ram, &words);
            driver.registers.write64(0x88, driver.queue.tail());
            let stopped = driver.fault_status() & 0x10 != 0;
            let code = driver.registers.read64(0xb0) & 0xf;
            let at = driver.registers.read64(0x80);
            let context =
                format!("seed {seed}: {words:x?} in {mode:?}: IQE {stopped}, IQEI {code}");
            let lost =
                expected.is_empty() && addressed(words).is_some_and(|source| source != PRESENT);
            let timeout = driver.fault_status() & 0x40 != 0;
            assert_eq!(timeout, lost, "{context}: ITE");
            if timeout {
                let source = driver.registers.read64(0xb0) >> 32 & 0xffff;
                assert_eq!(Some(source), addressed(words), "{context}: ITESID");
                assert!(at == head || at == driver.queue.tail(), "{context}: IQH");
                let size = if wide { 4 } else { 2 };
                let repaired = queue::context_global();
                driver.ram.store(0x1000 + head, &repaired[..size]);
                driver.registers.write32(0x34, 0x40);
                assert_eq!(driver.fault_status() & 0x40, 0, "{context}: ITE clears");
                good += 1;
            } else if stopped {
                assert!(
                    expected.contains(&code),
                    "{context}; permitted {expected:x?}"
                );
                assert_eq!(at, head, "{context}: IQH stays at the bad descriptor");
                bad += 1;
                // Repair it in place, and go on.
                let repaired = queue::context_global();
                let size = if wide { 4 } else { 2 };
                driver.ram.store(0x1000 + head, &repaired[..size]);
                driver.registers.write32(0x34, 0x10);
                assert_eq!(driver.fault_status() & 0x10, 0, "{context}: IQE clears");
            } else {
                assert!(
                    expected.is_empty() || expected.contains(&0xff),
                    "{context}; permitted {expected:x?}"
                );
                good += 1;
            }
            assert_eq!(
                driver.registers.read64(0x80),
                driver.queue.tail(),
                "{context}: the queue is empty"
            );
        }
        driver.invalidate(&[queue::iotlb_global()]);
        driver.stop_queue();
    }
    println!("descriptors: {good} good, {bad} bad");
}

#[test]
fn a_queue_of_the_wrong_width_or_a_bad_tail_stops_at_once() {
    let mut rng = Rng::new(1);
    for _ in 0..50 {
        let config = configuration(&mut rng);
        if config.scalable.is_none() {
            let (mut driver, _memory) = machine(&config);
            // DW is reserved without scalable mode: either it does not stick, or descriptors are
            // refused.
            driver.start_queue(true);
            driver.queue.push(&mut driver.ram, &queue::iotlb_global());
            driver.registers.write64(0x88, 0x20);
            let refused = driver.fault_status() & 0x10 != 0;
            let sticks = driver.registers.read64(0x90) & 1 << 11 != 0;
            assert!(!sticks || refused && driver.registers.read64(0xb0) & 0xf == 5);
            continue;
        }
        for (root_mode, wide, tail, code) in [
            (1, false, 0x10, 5),
            (2, true, 0x20, 7),
            (1, true, 0x10, 6),
            (0, true, 0x10, 6),
        ] {
            let (mut driver, _memory) = machine(&config);
            driver.set_root(0x3000, root_mode);
            driver.start_queue(wide);
            driver.queue.push(&mut driver.ram, &queue::iotlb_global());
            driver.registers.write64(0x88, tail);
            let status = driver.fault_status();
            assert_eq!(
                status & 0x10,
                0x10,
                "mode {root_mode}, wide {wide}, tail {tail:#x}"
            );
            assert_eq!(
                driver.registers.read64(0xb0) & 0xf,
                code,
                "mode {root_mode}, wide {wide}"
            );
            assert_eq!(driver.registers.read64(0x80), 0);
        }
    }
}
