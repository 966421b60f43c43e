//! The expected fault log (sections 7.2.1 and 7.3).

use crate::driver::{Driver, FaultRecord};

/// Bits of a record's high word (section 11.4.7.6).
pub mod record {
    /// T1 alone: read. Neither T1 nor T2: write.
    pub const READ: u64 = 1 << 62;
    /// T2 alone: page request.
    pub const PAGE: u64 = 1 << 28;
    /// PRIV.
    pub const PRIVILEGED: u64 = 1 << 29;
    /// EXE.
    pub const EXECUTE: u64 = 1 << 30;
    /// AT 01: translation request.
    pub const TRANSLATION: u64 = 1 << 60;
    /// AT 10: translated request.
    pub const TRANSLATED: u64 = 2 << 60;

    /// PP and PV.
    pub fn pasid(pasid: Option<u64>) -> u64 {
        pasid.map_or(0, |pasid| 1 << 31 | pasid << 40)
    }
}

/// A fault that is to be recorded.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Codes that are permitted.
    pub codes: Vec<u8>,
    /// Requester.
    pub source: u64,
    /// Bits 63:12 of the record's low word; `None` for any.
    pub information: Option<u64>,
    /// Bits of the record's high word besides F, FR and SID.
    pub high: u64,
    /// Bits of the high word that mean nothing here.
    pub open: u64,
    /// Whether the record may also be missing.
    pub optional: bool,
}

impl Expected {
    /// T1, T2, AT and what is about PASIDs: all that interrupt requests do not have.
    pub const NO_DMA: u64 = record::READ
        | record::PAGE
        | record::PRIVILEGED
        | record::EXECUTE
        | record::TRANSLATION
        | record::TRANSLATED
        | 1 << 31
        | 0xf_ffff << 40;

    fn matches(&self, record: FaultRecord) -> bool {
        let code = record.reason();
        let known = self.codes.iter().any(|known| u64::from(*known) == code);
        let high = 1 << 63 | code << 32 | self.source | self.high;
        known
            && (high ^ record.high) & !self.open == 0
            && self
                .information
                .is_none_or(|information| information == record.low)
    }
}

/// What changed in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    record: Option<FaultRecord>,
    overflowed: bool,
}

impl Observed {
    /// The code that was recorded.
    pub fn code(&self) -> Option<u64> {
        self.record.map(FaultRecord::reason)
    }
}

/// The log as it has to stand.
#[derive(Debug)]
pub struct FaultLog {
    records: Vec<Option<FaultRecord>>,
    next: usize,
    overflow: bool,
    masked: bool,
    pending: bool,
    /// Events that have been sent.
    pub events: u64,
    first: usize,
}

impl FaultLog {
    /// An empty log of `count` records, with its event masked.
    pub fn new(count: u64) -> Self {
        Self {
            records: vec![None; crate::index(count)],
            next: 0,
            overflow: false,
            masked: true,
            pending: false,
            events: 0,
            first: 0,
        }
    }

    fn any(&self) -> bool {
        self.records.iter().any(Option::is_some)
    }

    /// Both kinds of remapping are off: the next record is the first.
    pub fn remapping_off(&mut self) {
        self.next = 0;
    }

    /// Reads what happened since the last call, and checks that nothing else changed.
    pub fn observe(&self, driver: &Driver) -> Result<Observed, String> {
        let mut observed = Observed::default();
        for (index, (record, before)) in
            driver.fault_records().iter().zip(&self.records).enumerate()
        {
            match before {
                Some(before) if before != record => {
                    return Err(format!(
                        "record {index} changed: {before:x?} to {record:x?}"
                    ));
                }
                None if record.valid() => {
                    if index != self.next {
                        return Err(format!(
                            "record {index} was written, not {}: {record:x?}",
                            self.next
                        ));
                    }
                    observed.record = Some(*record);
                }
                _ => {}
            }
        }
        let status = driver.fault_status();
        let overflow = status & 1 != 0;
        if self.overflow && !overflow {
            return Err("PFO went away".into());
        }
        observed.overflowed = overflow && !self.overflow;
        let any = self.any() || observed.record.is_some();
        if (status & 2 != 0) != any || status & !0xff03 != 0 {
            return Err(format!("FSTS is {status:#x}, any record: {any}"));
        }
        Ok(observed)
    }

    /// Whether `fault` (or none) explains what was observed.
    pub fn explains(&self, observed: &Observed, fault: Option<&Expected>) -> bool {
        let nothing = *observed == Observed::default();
        let Some(fault) = fault else {
            return nothing;
        };
        if fault.optional && nothing {
            return true;
        }
        if self.overflow {
            return nothing;
        }
        if self.records[self.next].is_some() {
            return observed.overflowed && observed.record.is_none();
        }
        !observed.overflowed && observed.record.is_some_and(|record| fault.matches(record))
    }

    /// Takes what was observed over, with the event that belongs to it. Then checks FRI, FECTL and
    /// the events sent.
    pub fn accept(
        &mut self,
        observed: &Observed,
        driver: &Driver,
        sent: u64,
    ) -> Result<(), String> {
        if let Some(record) = observed.record {
            if !self.any() {
                self.first = self.next;
                if !self.overflow {
                    self.pending = true;
                }
            }
            self.records[self.next] = Some(record);
            self.next = (self.next + 1) % self.records.len();
        }
        self.overflow |= observed.overflowed;
        self.settle(driver, sent)
    }

    fn settle(&mut self, driver: &Driver, sent: u64) -> Result<(), String> {
        if self.pending && !self.masked {
            self.pending = false;
            self.events += 1;
        }
        let fri = driver.fault_status() >> 8 & 0xff;
        if self.any() && u64::from(fri) != self.first as u64 {
            return Err(format!("FRI is {fri}, not {}", self.first));
        }
        let control = driver.registers.read32(0x38);
        let expected = u32::from(self.masked) << 31 | u32::from(self.pending) << 30;
        if control != expected {
            return Err(format!("FECTL is {control:#x}, not {expected:#x}"));
        }
        if sent != self.events {
            return Err(format!("{sent} fault events, not {}", self.events));
        }
        Ok(())
    }

    /// Masks or unmasks the event.
    pub fn mask(
        &mut self,
        driver: &Driver,
        masked: bool,
        sent: impl Fn() -> u64,
    ) -> Result<(), String> {
        driver.registers.write32(0x38, u32::from(masked) << 31);
        self.masked = masked;
        self.settle(driver, sent())
    }

    /// Clears one record.
    pub fn clear(
        &mut self,
        driver: &Driver,
        index: usize,
        sent: impl Fn() -> u64,
    ) -> Result<(), String> {
        driver.clear_record(index as u64);
        self.records[index] = None;
        if !self.any() && !self.overflow {
            self.pending = false;
        }
        self.settle(driver, sent())
    }

    /// Clears every record and the overflow bit.
    pub fn drain(&mut self, driver: &Driver, sent: impl Fn() -> u64) -> Result<(), String> {
        for index in 0..self.records.len() {
            if self.records[index].is_some() {
                self.clear(driver, index, &sent)?;
            }
        }
        driver.clear_overflow();
        self.overflow = false;
        self.pending = false;
        self.settle(driver, sent())
    }

    /// How many records there are.
    pub fn capacity(&self) -> usize {
        self.records.len()
    }
}
