//! Translation requests, what a device keeps of the answers, and invalidations that have to reach
//! it.

use std::sync::{Arc, Mutex};

use intel_vtd::{
    AtsRefusal, DeviceTlb, DeviceTlbInvalidation, DeviceTlbTarget, PageResponse, ResponseCode,
    SourceId, Unit,
};

use super::dma::Course;
use super::{Check, Machine, SOURCES};
use crate::ram::Memory;
use crate::walker::{Form, Found, Request};

/// What a device was told to forget, or was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Invalidation(DeviceTlbInvalidation),
    Response(PageResponse),
}

/// A translation that a device keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pasid: Option<u64>,
    /// First input address.
    input: u64,
    /// Physical address of it.
    output: u64,
    shift: u32,
    write: bool,
    read: bool,
}

/// A device-TLB.
#[derive(Debug, Default)]
pub(super) struct Tlb {
    messages: Mutex<Vec<Message>>,
    kept: Mutex<Vec<Kept>>,
}

fn covers(invalidation: &DeviceTlbInvalidation, kept: &Kept) -> bool {
    let concerns = match invalidation.target {
        DeviceTlbTarget::WithoutPasid => kept.pasid.is_none(),
        DeviceTlbTarget::Pasid(pasid) => kept.pasid == Some(u64::from(pasid.get())),
        DeviceTlbTarget::AllPasids => kept.pasid.is_some(),
    };
    let bits = u32::from(invalidation.shift).max(kept.shift);
    let same = |a: u64, b: u64| bits >= 64 || a >> bits == b >> bits;
    concerns && same(invalidation.address, kept.input)
}

impl DeviceTlb for Tlb {
    fn invalidate(&self, invalidation: DeviceTlbInvalidation) {
        let mut kept = self.kept.lock().expect("kept");
        kept.retain(|kept| !covers(&invalidation, kept));
        let mut messages = self.messages.lock().expect("messages");
        messages.push(Message::Invalidation(invalidation));
    }

    fn page_response(&self, response: PageResponse) {
        let mut messages = self.messages.lock().expect("messages");
        messages.push(Message::Response(response));
    }
}

/// A device-TLB for each source.
pub(super) fn attach(unit: &Unit<Memory>) -> Vec<Arc<Tlb>> {
    SOURCES
        .iter()
        .map(|source| {
            let tlb = Arc::new(Tlb::default());
            unit.attach_device_tlb(SourceId(*source), tlb.clone());
            tlb
        })
        .collect()
}

/// What a descriptor of type 3, 8 or 9 says to which source (section 6.5.2).
fn decode(words: &[u64; 4]) -> (u64, Message) {
    let [low, high, ..] = *words;
    let range = |size: bool| {
        if !size {
            return (high & !0xfff, 12);
        }
        let zero = (12..64).find(|bit| high >> bit & 1 == 0).unwrap_or(63);
        let address = if zero == 63 {
            0
        } else {
            high >> (zero + 1) << (zero + 1)
        };
        (address, zero + 1)
    };
    let pasid = super::pasid(Some(low >> 32 & 0xf_ffff)).expect("a PASID");
    match low & 0xf {
        3 => {
            let (address, shift) = range(high & 1 != 0);
            let invalidation = DeviceTlbInvalidation {
                target: DeviceTlbTarget::WithoutPasid,
                address,
                shift,
            };
            (low >> 32 & 0xffff, Message::Invalidation(invalidation))
        }
        8 => {
            let (address, shift) = range(high >> 11 & 1 != 0);
            let target = if high & 1 != 0 {
                DeviceTlbTarget::AllPasids
            } else {
                DeviceTlbTarget::Pasid(pasid)
            };
            let invalidation = DeviceTlbInvalidation {
                target,
                address,
                shift,
            };
            (low >> 16 & 0xffff, Message::Invalidation(invalidation))
        }
        _ => {
            let response = PageResponse {
                pasid: (low >> 4 & 1 != 0).then_some(pasid),
                group: u16::try_from(high >> 3 & 0x1ff).expect("9 bits"),
                code: match low >> 12 & 0xf {
                    0 => ResponseCode::Success,
                    1 => ResponseCode::InvalidRequest,
                    0xf => ResponseCode::ResponseFailure,
                    other => ResponseCode::Reserved(u8::try_from(other).expect("4 bits")),
                },
            };
            (low >> 16 & 0xffff, Message::Response(response))
        }
    }
}

impl Machine {
    /// Submits descriptors of types 3, 8 and 9 with a wait: each device has heard its own, in
    /// order, and no other.
    ///
    /// # Errors
    /// Says what the devices heard.
    pub fn tell_devices(&mut self, descriptors: &[[u64; 4]]) -> Check {
        self.driver.invalidate(descriptors);
        self.sync();
        self.wait_wrote();
        for (source, tlb) in SOURCES.iter().zip(&self.tlbs) {
            let expected: Vec<Message> = descriptors
                .iter()
                .map(decode)
                .filter(|(target, _)| *target == u64::from(*source))
                .map(|(_, message)| message)
                .collect();
            let heard = std::mem::take(&mut *tlb.messages.lock().map_err(|_| "messages")?);
            if heard != expected {
                return Err(format!(
                    "{source:#x} heard {heard:x?}, not {expected:x?}, of {descriptors:x?}"
                ));
            }
        }
        self.count("devices told");
        Ok(())
    }

    /// A translation request, and whether the answer is permitted. What is permitted to be kept is
    /// kept.
    ///
    /// # Errors
    /// Says what the unit answered, and what was permitted.
    pub fn ask(
        &mut self,
        view: usize,
        (pasid, privileged): (Option<u64>, bool),
        address: u64,
        no_write: bool,
    ) -> Check {
        self.sync();
        let request = Request {
            source: self.views[view].0,
            address,
            write: false,
            pasid,
            privileged,
            form: Form::Translation { no_write },
        };
        let paths = self.paths(request);
        let answer =
            super::begin(&mut self.views[view].1, pasid, privileged).translate(address, no_write);
        let differences = self.differences();
        let observed = self.log.observe(&self.driver)?;
        let chosen = paths.iter().position(|path| {
            let fault = match (&path.result, &answer) {
                (Ok(found), Ok(answer)) => {
                    let nothing = !found.read && !found.write || found.untranslated_only;
                    let same = answer.address == found.address
                        && (12..=found.shift.min(63)).contains(&u32::from(answer.page_shift))
                        && answer.snooped == found.snooped
                        && answer.privileged == privileged
                        && !(answer.page_shift > 20
                            && reaches_interrupts(address, found.address, answer.page_shift));
                    if (answer.readable, answer.writable, answer.untranslated_only)
                        != (found.read, found.write, found.untranslated_only)
                        || !(nothing || same)
                    {
                        return false;
                    }
                    None
                }
                (Err(fault), Err(refusal)) => {
                    if *refusal != refused(fault.codes[0]) {
                        return false;
                    }
                    self.recorded(&request, fault)
                }
                _ => return false,
            };
            self.log.explains(&observed, fault.as_ref())
                && self.judge_bare(&Course::bare(path), &differences).is_ok()
        });
        let Some(chosen) = chosen else {
            return Err(format!(
                "translation of {request:x?}: {answer:x?}, {observed:x?}, memory {differences:x?};\n permitted {paths:x?};\n root {:x?}",
                self.root
            ));
        };
        let what = match &paths[chosen].result {
            Ok(found) => {
                let letters: String = [
                    (found.read, 'R'),
                    (found.write, 'W'),
                    (found.untranslated_only, 'U'),
                    (found.snooped, 'N'),
                ]
                .into_iter()
                .filter_map(|(set, letter)| set.then_some(letter))
                .collect();
                let who = if privileged { "supervisor's " } else { "" };
                format!("{who}answer [{letters}]")
            }
            Err(fault) => format!("answer refused, code {:02x?}", fault.codes),
        };
        self.count(&what);
        let sent = self.sent();
        self.log.accept(&observed, &self.driver, sent)?;
        let courses: Vec<Course> = paths.iter().map(Course::bare).collect();
        self.adopt(&differences, &courses);
        if let (Ok(answer), Ok(found)) = (answer, &paths[chosen].result) {
            self.keep(view, pasid, address, found, u32::from(answer.page_shift));
        }
        Ok(())
    }

    fn keep(&self, view: usize, pasid: Option<u64>, address: u64, found: &Found, shift: u32) {
        if !found.read && !found.write || found.untranslated_only {
            return;
        }
        let offset = address & ((1 << shift) - 1);
        let mut kept = self.tlbs[view % 3].kept.lock().expect("kept");
        if kept.len() > 16 {
            kept.remove(0);
        }
        kept.push(Kept {
            pasid,
            input: address - offset,
            output: found.address - offset,
            shift,
            write: found.write,
            read: found.read,
        });
    }

    /// A translation that the device of `view` keeps: its physical page of 4 KiB around the address
    /// that was asked for, and whether it may read and write there.
    pub fn kept(&self, view: usize, number: u64) -> Option<(u64, bool, bool)> {
        let kept = self.tlbs.get(view % 3)?.kept.lock().expect("kept");
        let count = u64::try_from(kept.len()).ok().filter(|count| *count != 0)?;
        let one = kept.get(crate::index(number % count))?;
        let page = number >> 32 & ((1 << (one.shift.min(30) - 12)) - 1);
        Some((one.output + page * 4096, one.read, one.write))
    }

    /// How many translations devices keep.
    pub fn kept_count(&self) -> usize {
        let count = |tlb: &Arc<Tlb>| tlb.kept.lock().expect("kept").len();
        self.tlbs.iter().map(count).sum()
    }
}

/// Whether a block holds addresses that are answered in another way: 0xFEEx_xxxx.
fn reaches_interrupts(input: u64, output: u64, shift: u8) -> bool {
    [input, output]
        .iter()
        .any(|address| address >> shift == 0xfee0_0000 >> shift)
}

/// The answer that belongs to a code (sheet E1, column TR).
fn refused(code: u8) -> AtsRefusal {
    match code {
        // 0 stands for translation that is off.
        0x00
        | 0x01
        | 0x02
        | 0x0d
        | 0x31
        | 0x33
        | 0x34
        | 0x39
        | 0x41
        | 0x44..=0x46
        | 0x48
        | 0x89 => AtsRefusal::UnsupportedRequest,
        _ => AtsRefusal::CompleterAbort,
    }
}
