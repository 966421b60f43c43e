use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Bdf, ConfigBuilder, Identity, MsiSink, MsixTable};

#[derive(Default)]
struct Sent(Mutex<Vec<(u16, u64, u32)>>);

impl MsiSink for Sent {
    fn signal(&self, requester: Bdf, address: u64, data: u32) {
        self.0.lock().push((requester.as_u16(), address, data));
    }
}

impl Sent {
    fn take(&self) -> Vec<(u16, u64, u32)> {
        std::mem::take(&mut self.0.lock())
    }
}

fn table(vectors: u16) -> (MsixTable, Arc<Sent>) {
    let sent = Arc::new(Sent::default());
    let sink = Arc::<Sent>::clone(&sent) as Arc<dyn MsiSink>;
    (
        MsixTable::new(vectors, Bdf::new(0, 2, 0).expect("in range"), sink),
        sent,
    )
}

/// Writes vector `index` as Linux does: address, data, unmask.
fn program(table: &MsixTable, index: u64, data: u32) {
    table.write_table(16 * index, &0xfee0_2000_u64.to_le_bytes());
    table.write_table(16 * index + 8, &data.to_le_bytes());
    table.write_table(16 * index + 12, &0_u32.to_le_bytes());
}

fn pending(table: &MsixTable) -> u64 {
    let mut data = [0; 8];
    table.read_pba(0, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn the_capability_tells_size_and_places() {
    let mut builder = ConfigBuilder::endpoint(Identity::default());
    let offset = builder.add_msix(3, 4, 0x2000, 0x3000);
    let config = builder.build();
    assert_eq!(config.read_u16(offset + 2), 2);
    assert_eq!(
        (config.read_u32(offset + 4), config.read_u32(offset + 8)),
        (0x2004, 0x3004)
    );
    assert_eq!(config.msix_control(), Some((false, false)));
}

#[test]
fn entries_start_masked_and_keep_reserved_bits_zero() {
    let (table, _) = table(2);
    let mut entry = [0xff; 16];
    table.read_table(16, &mut entry);
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(table.write_table(16, &[0xff; 8]), Some(1));
    table.write_table(24, &[0xff; 8]);
    table.read_table(16, &mut entry);
    assert_eq!(
        entry,
        [
            0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0
        ]
    );
    assert_eq!(table.write_table(32, &[0; 4]), None, "no vector 2");
}

#[test]
fn an_enabled_vector_is_sent_in_the_name_of_its_function() {
    let (table, sent) = table(2);
    program(&table, 1, 0x55);
    table.notify(1);
    assert_eq!(sent.take(), [], "not enabled");
    assert_eq!(pending(&table), 0);
    table.set_control(true, false);
    table.notify(1);
    table.notify(7);
    assert_eq!(sent.take(), [(0x10, 0xfee0_2000, 0x55)]);
}

#[test]
fn masked_events_are_pending_and_sent_once_on_unmasking() {
    let (table, sent) = table(70);
    table.set_control(true, false);
    program(&table, 69, 0x69);
    table.write_table(16 * 69 + 12, &[1, 0, 0, 0]);
    table.notify(69);
    table.notify(69);
    let mut bits = [0; 16];
    table.read_pba(0, &mut bits);
    assert_eq!(bits, [0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sent.take(), []);
    table.write_table(16 * 69 + 12, &[0, 0, 0, 0]);
    assert_eq!(sent.take(), [(0x10, 0xfee0_2000, 0x69)]);
    table.read_pba(8, &mut bits);
    assert_eq!(bits, [0; 16]);
}

#[test]
fn the_function_mask_masks_every_vector() {
    let (table, sent) = table(3);
    (0..3).for_each(|index| program(&table, index, 0x40 + u32::try_from(index).expect("small")));
    table.set_control(true, true);
    table.notify(0);
    table.notify(2);
    assert_eq!((sent.take(), pending(&table)), (vec![], 5));
    table.set_control(true, false);
    assert_eq!(
        sent.take(),
        [(0x10, 0xfee0_2000, 0x40), (0x10, 0xfee0_2000, 0x42)]
    );
    assert_eq!(pending(&table), 0);
}

#[test]
fn nothing_is_sent_without_bus_master() {
    let (table, sent) = table(1);
    let flag = Arc::new(AtomicBool::new(false));
    let table = table.gated(Arc::clone(&flag));
    program(&table, 0, 1);
    table.set_control(true, false);
    table.notify(0);
    assert_eq!(sent.take(), []);
    flag.store(true, Ordering::Release);
    table.notify(0);
    assert_eq!(sent.take().len(), 1);
}

#[test]
fn reset_masks_disables_and_forgets() {
    let (table, sent) = table(1);
    table.set_control(true, true);
    program(&table, 0, 1);
    table.notify(0);
    table.reset();
    assert!(!table.enabled() && table.entry(0).is_some_and(|entry| entry.masked));
    assert_eq!(pending(&table), 0);
    table.set_control(true, false);
    program(&table, 0, 1);
    assert_eq!(sent.take(), []);
}

proptest! {
    #[test]
    fn no_access_panics(
        accesses in vec((any::<u64>(), 0_u64..64, vec(any::<u8>(), 0..20), any::<u16>()), 1..30),
    ) {
        let (table, _) = table(3);
        table.set_control(true, false);
        for (far, near, data, vector) in accesses {
            for offset in [far, near] {
                table.write_table(offset, &data);
                let mut out = vec![0; data.len()];
                table.read_table(offset, &mut out);
                table.read_pba(offset, &mut out);
            }
            table.notify(vector);
            table.notify(vector % 4);
        }
    }
}
