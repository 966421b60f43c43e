//! Devices with PASIDs, a device-TLB and page requests, and what their guest does with them.

use intel_vtd::PageRequest;

use super::{Guest, PASIDS};
use crate::driver::queue;
use crate::machine::dma::{Access, Manner};
use crate::machine::{Check, SOURCES};

impl Guest {
    /// One step of a kind that not all units offer.
    pub(super) fn device_step(&mut self) -> Check {
        let facts = self.machine.facts;
        match self.rng.below(10) {
            0..4 if facts.device_tlb => self.ask(),
            4..6 if facts.device_tlb => self.translated(),
            6 if facts.device_tlb => self.tell(),
            7 if facts.page_requests => self.page_software(),
            7..9 if facts.page_requests || self.rng.chance(1, 8) => self.page_request(),
            9 if facts.page_requests && self.rng.chance(2, 3) => self.page_fault(),
            9 => self.nothing(),
            _ => self.dma(),
        }
    }

    fn ask(&mut self) -> Check {
        let view = crate::index(self.rng.below(6));
        let pasid = self.random_pasid(view);
        let address = self.random_address(view, pasid);
        let no_write = self.rng.chance(1, 3);
        let requester = self.requester(pasid);
        self.machine.ask(view, requester, address, no_write)
    }

    /// A translated request: of what the device keeps, or of anything.
    fn translated(&mut self) -> Check {
        let view = crate::index(self.rng.below(6));
        let number = self.rng.word();
        let kept = self.machine.kept(view, number);
        let (page, read, write) = match kept {
            Some(kept) if self.rng.chance(4, 5) => kept,
            _ => (self.random_address(view, None) & !0xfff, true, true),
        };
        // A device uses a translation for no more than it permits, which nobody checks.
        let write = write && (!read || self.rng.chance(1, 2));
        self.machine.dma(Access {
            view,
            pasid: None,
            privileged: false,
            translated: true,
            address: page + self.rng.below(0xfc0),
            data: self.rng.word().to_le_bytes().to_vec(),
            write,
            manner: Manner::Slice,
        })
    }

    /// Invalidations of device-TLBs and answers to page requests, whatever was asked.
    fn tell(&mut self) -> Check {
        self.machine.sync();
        if !self.machine.queue_runs() {
            return Ok(());
        }
        let facts = self.machine.facts;
        let count = 1 + self.rng.below(6);
        let scalable = self.machine.root.mode == 1;
        let mut descriptors = Vec::new();
        for _ in 0..count {
            let source = u64::from(self.rng.pick(&SOURCES));
            let pasid = self.rng.chance(2, 3).then(|| self.rng.pick(&PASIDS));
            let view = crate::index(self.rng.below(6));
            let address = self.random_address(view, pasid);
            let shift = self.rng.pick(&[12, 12, 12, 13, 21, 30, 47, 62, 63, 64]);
            let kind = self.rng.below(3);
            descriptors.push(match kind {
                1 if scalable => queue::pasid_device_tlb(source, pasid, address, shift),
                2 if scalable && facts.page_requests => {
                    let (group, code) = (self.rng.below(512), self.rng.pick(&[0, 0, 1, 2, 14, 15]));
                    // Nobody has the last one.
                    let source = self.rng.pick(&[source, source, source, 0x4444]);
                    let mut words = queue::page_response(source, pasid, group, code);
                    // Bit 66 is ignored.
                    words[1] |= self.rng.below(2) << 2;
                    words
                }
                _ => queue::device_tlb(source, address, shift),
            });
        }
        self.machine.tell_devices(&descriptors)
    }

    fn page_request(&mut self) -> Check {
        let view = crate::index(self.rng.below(6));
        let pasid = self.random_pasid(view);
        let address = self.random_address(view, pasid);
        let page = PageRequest {
            pasid: super::super::pasid(pasid),
            address,
            read: self.rng.chance(3, 4),
            write: self.rng.chance(1, 2),
            execute: pasid.is_some() && self.rng.chance(1, 4),
            privileged: pasid.is_some() && self.rng.chance(1, 4),
            group: u16::try_from(self.rng.below(512)).unwrap_or(0),
            last: self.rng.chance(1, 2),
        };
        let source = SOURCES[view % 3];
        for _ in 0..1 + self.rng.below(3) {
            self.machine.request_page(source, &page)?;
        }
        Ok(())
    }

    /// Uses a mapping, changes it, and asks for the page: afterwards only the new mapping may be
    /// used.
    fn page_fault(&mut self) -> Check {
        let view = crate::index(self.rng.below(6));
        let pasid = self.random_pasid(view);
        let (number, input) = self.random_input(view, pasid);
        self.machine.sync();
        if !self.machine.translating || !self.machine.queue_runs() || input >> 20 == 0xfee {
            return Ok(());
        }
        self.machine.invalidate_world(false);
        self.machine.drain_log()?;
        self.machine.consume_pages(None)?;
        self.machine.clear_page_status(3)?;
        let at = input + self.rng.below(0xfc0);
        for _ in 0..2 {
            self.touch(view, pasid, at)?;
        }
        let ram = &mut self.machine.driver.ram;
        let slots = self.spaces[number].slots(input, 1, &mut self.pages, ram);
        if let Some(slot) = slots.and_then(|slots| slots.last().copied()) {
            self.corrupt_slot(slot);
        }
        let page = PageRequest {
            pasid: super::super::pasid(pasid),
            address: at,
            read: true,
            write: false,
            execute: false,
            privileged: false,
            group: 0,
            last: true,
        };
        self.machine.request_page(SOURCES[view % 3], &page)?;
        for _ in 0..2 {
            self.touch(view, pasid, at)?;
        }
        Ok(())
    }

    /// What a driver does with the queue of page requests.
    fn page_software(&mut self) -> Check {
        match self.rng.below(8) {
            0 | 1 => self.machine.consume_pages(None),
            2 => {
                let room = self.rng.below(4);
                self.machine.consume_pages(Some(room))
            }
            3 => {
                let masked = self.rng.chance(1, 2);
                self.machine.mask_page_event(masked)
            }
            4 | 5 => self.machine.clear_page_status(3),
            number => {
                let bits = if number == 6 { 1 } else { 2 };
                self.machine.clear_page_status(bits)
            }
        }
    }

    /// An access of no bytes is no request: it succeeds wherever it is, and nothing comes of it.
    fn nothing(&mut self) -> Check {
        let view = crate::index(self.rng.below(6));
        let pasid = self.random_pasid(view);
        let address = self.random_address(view, pasid);
        self.machine.nothing(view, pasid, address)
    }
}
