//! A device behind the unit: 00:03.0 turns 16 letters into capitals, and sends an interrupt.
//!
//! It has a device-TLB. Devices without one need no more than the port, a view for each of their threads, and transactions: see
//! `read_untranslated`.

use std::sync::Arc;

use intel_vtd::{
    AtsTranslation, DeviceTlb, DeviceTlbInvalidation, DmaView, EventSink, PageResponse, SourceId,
    Unit,
};
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::platform::{Apics, Memory};

/// 00:03.0: the device's place on the PCI bus.
pub(crate) const SOURCE: SourceId = SourceId(0x0018);

/// Interrupt 3, in the format for remapping, as the guest has written it into the device's MSI capability.
const MSI: (u64, u32) = (0xFEE0_0070, 0);

/// One translation: the address that was asked for, and the answer.
#[derive(Default)]
struct Tlb(Mutex<Option<(u64, AtsTranslation)>>);

impl DeviceTlb for Tlb {
    fn invalidate(&self, invalidation: DeviceTlbInvalidation) {
        let mut kept = self.0.lock();
        if kept.is_some_and(|(address, answer)| {
            invalidation.concerns(None) && invalidation.overlaps(address, answer.page_shift)
        }) {
            println!("device: forgets a translation");
            *kept = None;
        }
    }

    fn page_response(&self, _response: PageResponse) {
        // It never asks for pages.
    }
}

/// The device.
pub(crate) struct Device {
    unit: Arc<Unit<Memory>>,
    view: Mutex<DmaView<Memory>>,
    tlb: Arc<Tlb>,
    apics: Arc<Apics>,
}

impl Device {
    pub(crate) fn new(unit: &Arc<Unit<Memory>>, apics: Arc<Apics>) -> Self {
        let tlb = Arc::new(Tlb::default());
        unit.attach_device_tlb(SOURCE, Arc::clone(&tlb) as _);
        Self {
            unit: Arc::clone(unit),
            view: Mutex::new(unit.port(SOURCE).view()),
            tlb,
            apics,
        }
    }

    /// Works on what is at `address`, as the guest calls it.
    pub(crate) fn work(&self, address: u64) {
        match self.capitalize(address) {
            Ok(()) => self.interrupt(),
            Err(error) => println!("device: {error}"),
        }
    }

    fn capitalize(&self, address: u64) -> Result<(), GuestMemoryError> {
        let mut view = self.view.lock();
        let mut text = Self::read_untranslated(&mut view, address)?;
        text.make_ascii_uppercase();

        // The answer goes by way of the device-TLB. Lookup and use are in one transaction: no invalidation completes in between.
        let transaction = view.begin_translated();
        let kept = *self.tlb.0.lock();
        if let Some((page, answer)) = kept
            && page == address
        {
            println!("device: has a translation");
            return transaction.write_slice(&text, GuestAddress(answer.address));
        }
        // One transaction after the other: they do not nest.
        drop(transaction);
        let transaction = view.begin();
        match transaction.translate(address, false) {
            Ok(answer) if answer.writable => {
                println!("device: asked for a translation, {:#x}", answer.address);
                *self.tlb.0.lock() = Some((address, answer));
            }
            _ => println!("device: got no translation"),
        }
        transaction.write_slice(&text, GuestAddress(address))
    }

    /// Ordinary DMA: a transaction is a `GuestMemory`, for which vm-memory, virtio-queue and others have functions.
    fn read_untranslated(
        view: &mut DmaView<Memory>,
        address: u64,
    ) -> Result<[u8; 16], GuestMemoryError> {
        let transaction = view.begin();
        let mut text = [0; 16];
        transaction.read_slice(&mut text, GuestAddress(address))?;
        Ok(text)
    }

    /// Outside of transactions, as nothing of it needs one.
    fn interrupt(&self) {
        let (address, data) = MSI;
        let sent = self.unit.remap_with(SOURCE, address, data, |message| {
            self.apics.deliver(message);
        });
        if let Err(blocked) = sent {
            println!("device: {blocked}");
        }
    }
}
