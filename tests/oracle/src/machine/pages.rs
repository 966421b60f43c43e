//! Page requests and their queue (sections 7.4 to 7.10).

use std::sync::atomic::Ordering;

use intel_vtd::{PageRequest, PageRequestRefusal, ResponseCode, SourceId};

use super::dma::described;
use super::{Check, Machine, PAGE_QUEUE};
use crate::faultlog::record;
use crate::flushes::Flush;
use crate::walker::{Domain, Form, Request};

const SIZE: u64 = 4096;

/// The queue and its registers as they have to stand.
#[derive(Debug)]
pub(super) struct Pages {
    head: u64,
    tail: u64,
    /// PPR and PRO.
    status: u32,
    masked: bool,
    pending: bool,
    events: u64,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            head: 0,
            tail: 0,
            status: 0,
            masked: true,
            pending: false,
            events: 0,
        }
    }
}

impl Pages {
    fn set(&mut self, bit: u32) {
        if self.status == 0 {
            self.pending = true;
        }
        self.status |= bit;
    }
}

/// The words of a descriptor, and which of their bits mean something (sheet C8).
fn descriptor(source: u16, request: &PageRequest) -> [(u64, u64); 4] {
    let pasid = request.pasid.map(|pasid| u64::from(pasid.get()));
    let low = 1
        | u64::from(pasid.is_some()) << 8
        | u64::from(source) << 16
        | pasid.unwrap_or(0) << 32
        | u64::from(request.execute) << 52
        | u64::from(request.privileged) << 53;
    let high = u64::from(request.read)
        | u64::from(request.write) << 1
        | u64::from(request.last) << 2
        | u64::from(request.group & 0x1ff) << 3
        | request.address & !0xfff;
    // PASID is undefined without PP, and so are the two bits that come with it.
    let meaning = if pasid.is_some() {
        u64::MAX
    } else {
        !(0x3f_ffff << 32)
    };
    [
        (low, meaning),
        (high, u64::MAX),
        (0, u64::MAX),
        (0, u64::MAX),
    ]
}

impl Machine {
    /// Compares all registers of the queue.
    fn settle_pages(&mut self) -> Check {
        if self.pages.pending && !self.pages.masked {
            self.pages.pending = false;
            self.pages.events += 1;
        }
        let pages = &self.pages;
        let registers = &self.driver.registers;
        let control = u32::from(pages.masked) << 31 | u32::from(pages.pending) << 30;
        let sent = self.sink.page_requests.load(Ordering::Relaxed);
        let actual = (
            registers.read64(0xc0),
            registers.read64(0xc8),
            registers.read32(0xdc),
            registers.read32(0xe0),
            sent,
        );
        let expected = (pages.head, pages.tail, pages.status, control, pages.events);
        if actual == expected {
            Ok(())
        } else {
            Err(format!(
                "PQH, PQT, PRS, PECTL, events are {actual:x?}, not {expected:x?}"
            ))
        }
    }

    /// Clears PPR (1), PRO (2) or both.
    ///
    /// # Errors
    /// When the registers do not behave.
    pub fn clear_page_status(&mut self, bits: u32) -> Check {
        self.driver.registers.write32(0xdc, bits);
        self.pages.status &= !bits;
        if self.pages.status == 0 {
            self.pages.pending = false;
        }
        self.settle_pages()
    }

    /// Masks or unmasks the event.
    ///
    /// # Errors
    /// When the registers do not behave.
    pub fn mask_page_event(&mut self, masked: bool) -> Check {
        self.driver.registers.write32(0xe0, u32::from(masked) << 31);
        self.pages.masked = masked;
        self.settle_pages()
    }

    /// Software has read everything, or leaves no more than `room` slots.
    ///
    /// # Errors
    /// When the registers do not behave.
    pub fn consume_pages(&mut self, room: Option<u64>) -> Check {
        let ahead = room.map_or(0, |room| 32 * (room + 1));
        self.pages.head = (self.pages.tail + ahead) % SIZE;
        self.driver.registers.write64(0xc0, self.pages.head);
        self.settle_pages()
    }

    /// A page request, and whether the unit does with it what is permitted.
    ///
    /// # Errors
    /// Says what the unit did, and what was permitted.
    pub fn request_page(&mut self, source: u16, page: &PageRequest) -> Check {
        self.sync();
        let request = Request {
            source,
            address: page.address,
            write: page.write,
            pasid: page.pasid.map(|pasid| u64::from(pasid.get())),
            privileged: false,
            form: Form::Page,
        };
        let offered = self.facts.page_requests && self.translating;
        let paths = self.paths(request);
        let outcome = self.unit.request_page(SourceId(source), page);
        let observed = self.log.observe(&self.driver)?;
        // A stop marker gets no response.
        let marker = page.last && !page.read && !page.write;
        let dropped = |code: ResponseCode| {
            if page.last && !marker {
                PageRequestRefusal::Answered(code)
            } else {
                PageRequestRefusal::Dropped
            }
        };
        let full = (self.pages.tail + 32) % SIZE == self.pages.head;
        let overflowed = self.pages.status & 2 != 0;
        // Where several paths are permitted, PRO tells which of them met a full queue.
        let told = self.facts.page_requests && self.driver.registers.read32(0xdc) & 2 != 0;
        let mut chosen = None;
        for path in &paths {
            let overflows = overflowed || offered && path.result.is_ok() && full;
            let (expected, fault) = match &path.result {
                _ if !offered => (Err(PageRequestRefusal::Unsupported), None),
                Err(fault) => {
                    let mut recorded = self.recorded(&request, fault);
                    if let Some(recorded) = &mut recorded
                        && page.pasid.is_some()
                        && page.privileged
                    {
                        recorded.high |= record::PRIVILEGED;
                    }
                    (Err(dropped(ResponseCode::InvalidRequest)), recorded)
                }
                Ok(_) if overflowed || full => (Err(dropped(ResponseCode::Success)), None),
                Ok(_) => (Ok(()), None),
            };
            if outcome == expected
                && overflows == told
                && self.log.explains(&observed, fault.as_ref())
            {
                chosen = Some(path);
                break;
            }
        }
        let Some(path) = chosen else {
            return Err(format!(
                "{page:x?} of {source:#x}: {outcome:x?}, {observed:x?}; permitted {paths:x?}, full {full}, record {:x?}",
                described(&request)
            ));
        };
        let what = match (&path.result, outcome.is_ok()) {
            (_, true) => "page request queued".into(),
            (Ok(_), false) if offered => "page request overflows".into(),
            (Err(fault), false) if offered => format!("page request code {:02x?}", fault.codes),
            _ => "page request not offered".into(),
        };
        let passed = offered && path.result.is_ok();
        let domain = (paths.len() == 1 && !path.stale)
            .then_some(path.domain)
            .flatten();
        self.count(&what);
        let sent = self.sent();
        self.log.accept(&observed, &self.driver, sent)?;
        if passed && !overflowed && full {
            self.pages.set(2);
        }
        if outcome.is_ok() {
            self.queued(source, page)?;
            if let Some(domain) = domain {
                self.implied(domain, page.address);
            }
        }
        let differences = self.differences();
        if !differences.is_empty() {
            return Err(format!("{page:x?} changed memory: {differences:x?}"));
        }
        if self.facts.page_requests {
            self.settle_pages()?;
        }
        Ok(())
    }

    fn queued(&mut self, source: u16, page: &PageRequest) -> Check {
        let slot = PAGE_QUEUE + self.pages.tail;
        for (word, (expected, meaning)) in (0..).zip(descriptor(source, page)) {
            let at = slot + word * 8;
            let actual = self.driver.ram.load(at);
            if (actual ^ expected) & meaning != 0 {
                return Err(format!(
                    "word {word} of {page:x?} is {actual:#x}, not {expected:#x}"
                ));
            }
            self.image.edit(at, &actual.to_le_bytes());
        }
        self.pages.tail = (self.pages.tail + 32) % SIZE;
        self.pages.set(1);
        Ok(())
    }

    /// A request that reaches the queue has invalidated what is cached for its page (sheet F6).
    fn implied(&mut self, domain: Domain, address: u64) {
        let Domain { did, pasid, pgtt } = domain;
        let (first, last) = (address & !0xfff, address | 0xfff);
        let flush = match pgtt {
            1 => Flush::PasidIotlbPages {
                did,
                pasid,
                first,
                last,
                hint: false,
            },
            3 => Flush::IotlbDomain(did),
            _ => Flush::IotlbPages {
                did,
                first,
                last,
                hint: false,
            },
        };
        self.image.clock += 1;
        self.flushes.completed(self.image.clock, flush);
    }
}
