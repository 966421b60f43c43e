//! Which writes are interrupt requests, and what becomes of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::testing::{RAM, SOURCE};
use crate::unit::testing::{Bench, TABLE, full, plain, sharing};

type Memory = Arc<GuestMemoryMmap<()>>;
type Taken = Arc<Mutex<Vec<(u64, u32)>>>;

/// `port` with what it hands on.
fn noting(port: DmaPort<Memory>) -> (DmaPort<Memory>, Taken) {
    let taken = Taken::default();
    let notes = Arc::clone(&taken);
    let sink = move |address, data| notes.lock().unwrap().push((address, data));
    (port.with_interrupt_requests(Arc::new(sink)), taken)
}

/// Makes one request, and tells what was handed on, and whether it was no error.
fn write(
    port: &(DmaPort<Memory>, Taken),
    pasid: Option<u32>,
    bytes: &[u8],
    address: u64,
) -> (Vec<(u64, u32)>, bool) {
    let mut view = port.0.view();
    let transaction = view.begin_pasid(pasid.and_then(Pasid::new));
    let outcome = transaction.write_request(bytes, GuestAddress(address));
    (
        std::mem::take(&mut *port.1.lock().unwrap()),
        outcome.is_ok(),
    )
}

const DWORD: [u8; 4] = [0x41, 0, 0x34, 0x12];

#[test]
fn a_dword_is_one_without_a_unit_with_translation_off_and_with_it_on() {
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
    let off = Bench::new(&plain());
    let on = Bench::new(&full());
    on.map_legacy(0x60_0000);
    for port in [
        DmaPort::direct(memory),
        off.unit.port(SOURCE),
        on.unit.port(SOURCE),
    ] {
        let port = noting(port);
        for address in [0xFEE0_0000, 0xFEEF_FFFC] {
            let taken = vec![(address, 0x1234_0041)];
            assert_eq!(write(&port, None, &DWORD, address), (taken, true));
        }
        assert_eq!(on.unit.stats().faults_recorded, 0);
        for (bytes, address) in [
            (&DWORD[..], 0xFEDF_FFFC_u64),
            (&DWORD[..], 0xFEF0_0000),
            (&DWORD[..], 0xFEE0_0002),
            (&DWORD[..2], 0xFEE0_0000),
            (&[0; 8][..], 0xFEE0_0000),
        ] {
            assert_eq!(
                write(&port, None, bytes, address),
                (vec![], false),
                "{address:#x}"
            );
        }
        assert_eq!(write(&port, None, &DWORD, 0x10), (vec![], true));
        // What writes no requests makes none.
        let mut view = port.0.view();
        let plain = view.begin().write_slice(&DWORD, GuestAddress(0xFEE0_0000));
        assert!(plain.is_err());
        assert_eq!(*port.1.lock().unwrap(), []);
    }
    assert_ne!(on.unit.stats().faults_recorded, 0);
}

#[test]
fn with_a_pasid_or_translated_or_behind_a_closed_gate_it_is_none() {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    let open = Arc::new(AtomicBool::new(true));
    let port = noting(bench.unit.port(SOURCE).gated(Arc::clone(&open)));
    assert_eq!(write(&port, Some(5), &DWORD, 0xFEE0_0000), (vec![], false));
    assert_eq!(bench.read64(0x228) >> 32 & 0xFF, 0x71);
    let mut view = port.0.view();
    let translated = view.begin_translated();
    let outcome = translated.write_request(&DWORD, GuestAddress(0xFEE0_0000));
    assert!(outcome.is_err());
    drop(translated);
    assert_eq!(bench.read64(0x238) >> 32 & 0xFF, 0x87);
    open.store(false, Ordering::Release);
    assert_eq!(write(&port, None, &DWORD, 0xFEE0_0000), (vec![], false));
    open.store(true, Ordering::Release);
    assert_eq!(write(&port, None, &DWORD, 0xFEE0_0000).0.len(), 1);
}

#[test]
fn it_goes_through_interrupt_remapping_whose_faults_it_meets() {
    let bench = Bench::new(&full());
    bench.map_legacy(0x60_0000);
    bench.enable_interrupts(true);
    // Entry 1: vector 41h of APIC 7, for 00:03.0.
    bench.poke(TABLE + 16, &[0x0000_0007_0041_0001, 0x4_0018]);
    let delivered = Arc::new(Mutex::new(Vec::new()));
    let port_of = |source| {
        let (unit, notes) = (Arc::clone(&bench.unit), Arc::clone(&delivered));
        let sink = move |address, data| {
            let note = |message| notes.lock().unwrap().push(message);
            let _ = unit.remap_with(source, address, data, note);
        };
        bench
            .unit
            .port(source)
            .with_interrupt_requests(Arc::new(sink))
    };
    let send = |source, address| {
        let mut view = port_of(source).view();
        let transaction = view.begin();
        transaction
            .write_request(&[0; 4], GuestAddress(address))
            .unwrap();
    };
    send(SOURCE, 0xFEE0_0030);
    let messages = std::mem::take(&mut *delivered.lock().unwrap());
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].data & 0xFF, 0x41);
    // In compatibility format, 25h; an entry that is not present, 22h; of another source, 26h.
    for (number, (source, address, reason)) in [
        (SOURCE, 0xFEE0_0000, 0x25),
        (SOURCE, 0xFEE0_0050, 0x22),
        (SourceId(0x20), 0xFEE0_0030, 0x26),
    ]
    .into_iter()
    .enumerate()
    {
        send(source, address);
        let record = bench.read64(0x228 + 16 * u64::try_from(number).unwrap());
        assert_eq!(record >> 32 & 0xFF, reason);
        assert_eq!(record & 0xFFFF, u64::from(source.0));
    }
    assert_eq!(*delivered.lock().unwrap(), []);
}
