//! One DMA access: performed by a device, judged by the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering as MemoryOrdering;

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::{Check, Machine, POOL};
use crate::faultlog::{Expected, record};
use crate::walker::{self, Fault, Form, Found, Path, Request};

/// How a device makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// `read_slice`, `write_slice`.
    Slice,
    /// `read`, `write`: as far as it goes.
    Partial,
    /// `read_obj`, `write_obj` of 4 bytes.
    Object,
    /// `load`, `store` of 4 aligned bytes.
    Atomic,
}

/// An access.
#[derive(Clone, Debug)]
pub struct Access {
    /// Which view.
    pub view: usize,
    /// PASID of the request.
    pub pasid: Option<u64>,
    /// Whether it asks for supervisor privilege; only with a PASID.
    pub privileged: bool,
    /// Whether the address is a translation already.
    pub translated: bool,
    /// Input address.
    pub address: u64,
    /// Bytes; their number is the length of a read.
    pub data: Vec<u8>,
    /// Write, or read.
    pub write: bool,
    /// How.
    pub manner: Manner,
}

/// A permitted course of the whole access.
#[derive(Debug)]
pub(super) struct Course {
    /// Physical address, offset in the data, length.
    pieces: Vec<(u64, usize, usize)>,
    fault: Option<(u64, Fault)>,
    required: Vec<(u64, u64)>,
    optional: Vec<(u64, u64)>,
    stale: bool,
}

impl Course {
    /// Of a request that moves no data.
    pub(super) fn bare(path: &Path) -> Self {
        Self {
            pieces: Vec::new(),
            fault: None,
            required: path.required.clone(),
            optional: path.optional.clone(),
            stale: path.stale,
        }
    }
}

/// The bits of a record's high word that tell what a request was, and those that tell nothing.
pub(super) fn described(request: &Request) -> (u64, u64) {
    let mut high = record::pasid(request.pasid);
    if request.privileged {
        high |= record::PRIVILEGED;
    }
    match request.form {
        Form::Untranslated | Form::Translated => {
            let translated = if request.form == Form::Translated {
                record::TRANSLATED
            } else {
                0
            };
            let read = if request.write { 0 } else { record::READ };
            (high | translated | read, 0)
        }
        Form::Translation { .. } => (high | record::TRANSLATION | record::READ, 0),
        Form::Page => (
            high | record::PAGE,
            record::TRANSLATION | record::TRANSLATED | record::EXECUTE,
        ),
    }
}

/// More combinations of versions than this are not tried; everything is invalidated first.
const LIMIT: usize = 4096;

impl Machine {
    fn request(&self, access: &Access, address: u64) -> Request {
        Request {
            source: self.views[access.view].0,
            address,
            write: access.write,
            pasid: access.pasid,
            privileged: access.privileged,
            form: if access.translated {
                Form::Translated
            } else {
                Form::Untranslated
            },
        }
    }

    /// What the request may give.
    pub(super) fn paths(&mut self, request: Request) -> Vec<Path> {
        if !self.translating {
            // Sheet D1: only untranslated requests pass, and what does not is not recorded.
            let result = if request.form == Form::Untranslated {
                Ok(Found::identity(request.address))
            } else {
                Err(Fault {
                    codes: vec![0],
                    silent: true,
                })
            };
            return vec![Path {
                result,
                domain: None,
                required: Vec::new(),
                optional: Vec::new(),
                stale: false,
            }];
        }
        for _ in 0..2 {
            let paths = walker::permitted(
                &self.facts,
                &self.image,
                &self.flushes,
                self.root,
                request,
                LIMIT,
            );
            match paths {
                Some(paths) => return paths,
                None => self.invalidate_world(false),
            }
        }
        panic!("too many combinations though everything is invalidated");
    }

    /// The permitted courses. The access may be cut short, so that there are few.
    fn courses(&mut self, access: &mut Access) -> Vec<Course> {
        let mut whole: Option<Course> = None;
        let mut done = 0;
        while done < access.data.len() {
            let address = access.address + done as u64;
            let room = crate::index(4096 - (address & 0xfff));
            let length = room.min(access.data.len() - done);
            let paths = self.paths(self.request(access, address));
            let simple = match &paths[..] {
                [path] => match path.result {
                    Ok(Found {
                        address: target, ..
                    }) => {
                        // No memory, or a table: a page at most.
                        self.image.bytes(target, length).is_some() && target & !0xfff >= 0x6_0000
                    }
                    Err(_) => true,
                },
                _ => false,
            };
            if done > 0 && !simple {
                access.data.truncate(done);
                break;
            }
            if !simple {
                access.data.truncate(length);
                return paths
                    .into_iter()
                    .map(|path| {
                        let fault = path.result.as_ref().err().cloned();
                        Course {
                            pieces: path
                                .result
                                .ok()
                                .map(|found| (found.address, 0, length))
                                .into_iter()
                                .collect(),
                            fault: fault.map(|fault| (address, fault)),
                            required: path.required,
                            optional: path.optional,
                            stale: path.stale,
                        }
                    })
                    .collect();
            }
            let path = paths.into_iter().next().expect("one path");
            let course = whole.get_or_insert_with(|| Course {
                pieces: Vec::new(),
                fault: None,
                required: Vec::new(),
                optional: Vec::new(),
                stale: false,
            });
            course.required.extend(path.required);
            course.optional.extend(path.optional);
            course.stale |= path.stale;
            match path.result {
                Ok(found) => course.pieces.push((found.address, done, length)),
                Err(fault) => {
                    course.fault = Some((address, fault));
                    break;
                }
            }
            done += length;
        }
        whole.into_iter().collect()
    }

    /// Makes the access, and compares what happened with what is permitted.
    ///
    /// # Errors
    /// Says what the unit did, and what was permitted.
    pub fn dma(&mut self, mut access: Access) -> Check {
        self.sync();
        let courses = self.courses(&mut access);
        let source = self.views[access.view].0;
        let mut buffer = access.data.clone();
        if !access.write {
            buffer.fill(0xdb);
        }
        let length = buffer.len();
        let at = GuestAddress(access.address);
        let view = &mut self.views[access.view].1;
        let transaction = if access.translated {
            view.begin_translated()
        } else {
            super::begin(view, access.pasid, access.privileged)
        };
        let fixed = <[u8; 4]>::try_from(&buffer[..]).ok();
        let succeeded: Result<usize, ()> = match (access.manner, access.write, fixed) {
            (Manner::Partial, true, _) => transaction.write(&buffer, at).map_err(drop),
            (Manner::Partial, false, _) => transaction.read(&mut buffer, at).map_err(drop),
            (Manner::Object, true, Some(value)) => {
                transaction.write_obj(value, at).map(|()| 4).map_err(drop)
            }
            (Manner::Object, false, Some(_)) => transaction
                .read_obj::<[u8; 4]>(at)
                .map(|value| {
                    buffer.copy_from_slice(&value);
                    4
                })
                .map_err(drop),
            (Manner::Atomic, true, Some(value)) if access.address & 3 == 0 => transaction
                .store(u32::from_ne_bytes(value), at, MemoryOrdering::SeqCst)
                .map(|()| 4)
                .map_err(drop),
            (Manner::Atomic, false, Some(_)) if access.address & 3 == 0 => transaction
                .load::<u32>(at, MemoryOrdering::SeqCst)
                .map(|value| {
                    buffer.copy_from_slice(&value.to_ne_bytes());
                    4
                })
                .map_err(drop),
            (_, true, _) => transaction
                .write_slice(&buffer, at)
                .map(|()| length)
                .map_err(drop),
            (_, false, _) => transaction
                .read_slice(&mut buffer, at)
                .map(|()| length)
                .map_err(drop),
        };
        drop(transaction);
        let differences = self.differences();
        let observed = self.log.observe(&self.driver)?;
        let mut reasons = Vec::new();
        let mut fitting = Vec::new();
        for course in &courses {
            let fault = course.fault.as_ref().and_then(|(address, fault)| {
                self.recorded(&self.request(&access, *address), fault)
            });
            let verdict = if self.log.explains(&observed, fault.as_ref()) {
                self.judge(course, &access, &buffer, succeeded, &differences)
            } else {
                Err("the log differs".into())
            };
            match verdict {
                Ok(()) => fitting.push(course),
                Err(reason) => reasons.push(reason),
            }
        }
        let Some(course) = fitting.first() else {
            return Err(format!(
                "DMA of {source:#x} {} {:#x}+{length:#x} ({:?}), PASID {:x?}, supervisor {}, translated {}: {succeeded:?}, {observed:x?}, memory {differences:x?};\n permitted {courses:x?};\n {reasons:?}\n root {:x?}",
                if access.write { "write" } else { "read" },
                access.address,
                access.manner,
                access.pasid,
                access.privileged,
                access.translated,
                self.root
            ));
        };
        let what = match (&course.fault, observed.code()) {
            (None, _) => {
                let ram = course
                    .pieces
                    .iter()
                    .all(|(at, _, length)| self.image.bytes(*at, *length).is_some());
                let kind = if ram { "memory" } else { "no memory" };
                let stale = if course.stale { ", old" } else { "" };
                let many = if course.pieces.len() > 1 {
                    ", pages"
                } else {
                    ""
                };
                format!("dma {kind}{stale}{many}")
            }
            (Some((_, fault)), None) => format!("dma code {:02x?} not logged", fault.codes),
            (Some(_), Some(code)) => {
                let stale = if course.stale { ", old" } else { "" };
                format!("dma code {code:02x}{stale}")
            }
        };
        let what = match (access.translated, access.pasid) {
            (true, _) => format!("translated {what}"),
            (false, Some(_)) if access.privileged => format!("supervisor {what}"),
            (false, Some(_)) => format!("PASID {what}"),
            (false, None) => what,
        };
        if !course.required.is_empty() {
            self.count("dma that sets A or D");
        }
        self.count(&what);
        let sent = self.sent();
        self.log.accept(&observed, &self.driver, sent)?;
        for course in fitting {
            self.overwrite(course, &differences);
        }
        self.adopt(&differences, &courses);
        Ok(())
    }

    /// Accesses of no bytes.
    ///
    /// # Errors
    /// When one fails, or leaves a trace.
    pub fn nothing(&mut self, view: usize, pasid: Option<u64>, address: u64) -> Check {
        self.sync();
        let at = GuestAddress(address);
        let transaction = self.views[view].1.begin_pasid(super::pasid(pasid));
        let results = [
            transaction.read_slice(&mut [], at).is_ok(),
            transaction.write_slice(&[], at).is_ok(),
            transaction.read(&mut [], at).is_ok_and(|done| done == 0),
            transaction.write(&[], at).is_ok_and(|done| done == 0),
        ];
        drop(transaction);
        if results != [true; 4] {
            return Err(format!("accesses of no bytes at {address:#x}: {results:?}"));
        }
        self.count("no bytes");
        self.check_quiet()
    }

    /// Asks whether an access would succeed. That is no request, so nothing is recorded. A may be
    /// set, as for what hardware does speculatively (sections 3.6.3 and 3.7.4), and D of the
    /// page may not.
    ///
    /// # Errors
    /// When the answer is not permitted, or something changed.
    pub fn probe(&mut self, mut access: Access) -> Check {
        self.sync();
        let courses = self.courses(&mut access);
        let permissions = if access.write {
            Permissions::Write
        } else {
            Permissions::Read
        };
        let source = self.views[access.view].0;
        let at = GuestAddress(access.address);
        let length = access.data.len();
        let view = &mut self.views[access.view].1;
        let answer = super::begin(view, access.pasid, access.privileged).check_range(
            at,
            length,
            permissions,
        );
        let possible = |course: &Course| {
            course.fault.is_none()
                && course
                    .pieces
                    .iter()
                    .all(|(at, _, length)| self.image.bytes(*at, *length).is_some())
        };
        // It is about permissions: that D cannot be set (77h, 7Ch, 90h), only the write itself
        // finds out.
        let undirtied = |course: &Course| {
            access.write
                && course.fault.as_ref().is_some_and(|(_, fault)| {
                    fault
                        .codes
                        .iter()
                        .any(|code| [0x77, 0x7c, 0x90].contains(code))
                })
        };
        let permitted = |course: &Course| possible(course) == answer || answer && undirtied(course);
        if !courses.iter().any(permitted) {
            return Err(format!(
                "check_range of {source:#x} at {at:x?}+{length:#x} for {permissions:?} is {answer}; permitted {courses:x?}"
            ));
        }
        // Every page by itself: what stops a read does not stop the question whether writes are
        // permitted.
        let last = access.address + (length as u64 - 1);
        let mut speculative = Vec::new();
        for page in (access.address >> 12..=last >> 12).map(|page| page << 12) {
            let mut reading = Access {
                write: false,
                data: vec![0],
                address: page,
                ..access.clone()
            };
            speculative.extend(self.courses(&mut reading));
        }
        let differences = self.differences();
        for (word, expected, actual) in &differences {
            let bits = speculative
                .iter()
                .flat_map(|course| course.required.iter().chain(&course.optional))
                .filter(|(at, _)| at == word)
                .fold(0, |all, (_, bits)| all | bits);
            if expected | bits != actual | bits {
                return Err(format!(
                    "check_range at {at:x?} changed {word:#x} from {expected:#x} to {actual:#x}; permitted {speculative:x?}; answer {answer}"
                ));
            }
        }
        self.adopt(&differences, &speculative);
        self.count(if answer { "probe: yes" } else { "probe: no" });
        self.check_quiet()
    }

    /// The record of a blocked request, if there is to be one.
    pub(super) fn recorded(&self, request: &Request, fault: &Fault) -> Option<Expected> {
        if fault.silent {
            return None;
        }
        let (high, open) = described(request);
        let interrupt = fault.codes == [0x29];
        Some(Expected {
            codes: fault.codes.clone(),
            source: u64::from(request.source),
            information: (!interrupt).then(|| self.reported(request.address)),
            high,
            open: if interrupt { Expected::NO_DMA } else { open },
            // Sheet D1: whether it is recorded while interrupt remapping is off is open.
            optional: interrupt && !self.remapping.enabled,
        })
    }

    /// What the record of a DMA fault shows: the page, up to the widest address (section 11.4.7.5).
    fn reported(&self, address: u64) -> u64 {
        let widest = [39, 48, 57]
            .into_iter()
            .zip(1..)
            .filter(|(_, bit)| self.facts.sagaw >> bit & 1 != 0)
            .map(|(width, _)| width)
            .max()
            .unwrap_or(64);
        address & !0xfff & ((1 << widest) - 1)
    }

    /// What the image takes over: bits that hardware set are no edit, data that a device wrote is
    /// one. In a context or PASID table, where no such bit belongs, it changes what the entry
    /// says; so there it is an edit.
    pub(super) fn adopt(&mut self, differences: &[(u64, u64, u64)], courses: &[Course]) {
        let updates: BTreeMap<u64, u64> = courses
            .iter()
            .flat_map(|course| course.required.iter().chain(&course.optional))
            .fold(BTreeMap::new(), |mut all, (at, bits)| {
                *all.entry(*at).or_default() |= bits;
                all
            });
        for (at, expected, actual) in differences {
            let bits = updates.get(at).copied().unwrap_or(0);
            if expected | bits == actual | bits && *at >= POOL {
                self.image.adopt(*at, *actual);
            } else {
                self.image.edit(*at, &actual.to_le_bytes());
            }
        }
    }

    /// Takes over data that a device wrote to entries that led it there: with the bits that were
    /// set before, as they may be cached, they were in memory for no longer than the access.
    fn overwrite(&mut self, course: &Course, differences: &[(u64, u64, u64)]) {
        let mut marked = BTreeMap::<u64, u64>::new();
        for (at, bits) in &course.required {
            *marked.entry(*at).or_default() |= bits;
        }
        for (at, bits) in marked {
            let now = self.image.word(at).unwrap_or(0);
            let (before, after) = differences
                .iter()
                .find(|(word, ..)| *word == at)
                .map_or((now, now), |(_, before, after)| (*before, *after));
            if before | bits != after {
                self.image.edit(at, &(before | bits).to_le_bytes());
                self.image.edit(at, &after.to_le_bytes());
            }
        }
    }

    fn judge(
        &self,
        course: &Course,
        access: &Access,
        buffer: &[u8],
        succeeded: Result<usize, ()>,
        differences: &[(u64, u64, u64)],
    ) -> Check {
        let present = course
            .pieces
            .iter()
            .all(|(at, _, length)| self.image.bytes(*at, *length).is_some());
        let translated: usize = course.pieces.iter().map(|(_, _, length)| length).sum();
        let complete = course.fault.is_none() && present;
        match succeeded {
            Ok(done) if complete && done == access.data.len() => {}
            Ok(done) if access.manner == Manner::Partial && present && done == translated => {}
            Err(()) if !complete => {}
            _ => return Err(format!("{succeeded:?} though complete is {complete}")),
        }
        if !access.write {
            self.judge_memory(course, &[], differences)?;
            if succeeded.is_err() {
                return Ok(());
            }
            return self.judge_read(course, buffer, differences);
        }
        if complete || succeeded.is_ok() {
            return self.judge_memory(course, &Self::written(course, access), differences);
        }
        // What comes before the fault may have been written, or not.
        let written = if present {
            Self::written(course, access)
        } else {
            Vec::new()
        };
        self.judge_memory(course, &written, differences)
            .or_else(|_| self.judge_memory(course, &[], differences))
    }

    fn written(course: &Course, access: &Access) -> Vec<(u64, u8)> {
        course
            .pieces
            .iter()
            .flat_map(|(at, from, length)| {
                (*at..).zip(access.data[*from..from + length].iter().copied())
            })
            .collect()
    }

    /// The bytes that were read are those of memory, as it is after A and D were set.
    fn judge_read(&self, course: &Course, buffer: &[u8], differences: &[(u64, u64, u64)]) -> Check {
        let after: BTreeMap<u64, u64> = differences
            .iter()
            .map(|(at, _, actual)| (*at, *actual))
            .collect();
        for (at, from, length) in &course.pieces {
            for (offset, byte) in (0..).zip(&buffer[*from..from + length]) {
                let address = at + offset;
                let word = after.get(&(address & !7)).copied();
                let word = word.or_else(|| self.image.word(address & !7)).unwrap_or(0);
                if word.to_le_bytes()[crate::index(address & 7)] != *byte {
                    return Err(format!("byte {address:#x} was read as {byte:#x}"));
                }
            }
        }
        Ok(())
    }

    /// Memory differs from the image by what the course of a request without data permits.
    pub(super) fn judge_bare(&self, course: &Course, differences: &[(u64, u64, u64)]) -> Check {
        self.judge_memory(course, &[], differences)
    }

    /// Memory differs from the image by `written`, by the required bits, and by nothing but
    /// optional bits.
    fn judge_memory(
        &self,
        course: &Course,
        written: &[(u64, u8)],
        differences: &[(u64, u64, u64)],
    ) -> Check {
        let mut expected: BTreeMap<u64, [u8; 8]> = BTreeMap::new();
        let mut overlaid = BTreeSet::new();
        let word = |at: u64| self.image.word(at).unwrap_or(0);
        for (at, bits) in &course.required {
            let bytes = expected
                .entry(*at)
                .or_insert_with(|| word(*at).to_le_bytes());
            *bytes = (u64::from_le_bytes(*bytes) | bits).to_le_bytes();
        }
        for (at, byte) in written {
            let aligned = at & !7;
            overlaid.insert(aligned);
            expected
                .entry(aligned)
                .or_insert_with(|| word(aligned).to_le_bytes())[crate::index(at & 7)] = *byte;
        }
        let mut optional: BTreeMap<u64, u64> = BTreeMap::new();
        for (at, bits) in &course.optional {
            if !overlaid.contains(at) {
                *optional.entry(*at).or_default() |= bits;
            }
        }
        let actual: BTreeMap<u64, u64> =
            differences.iter().map(|(at, _, now)| (*at, *now)).collect();
        let places: BTreeSet<u64> = actual.keys().chain(expected.keys()).copied().collect();
        for at in places {
            let want = expected
                .get(&at)
                .map_or_else(|| word(at), |bytes| u64::from_le_bytes(*bytes));
            let have = actual.get(&at).copied().unwrap_or_else(|| word(at));
            if (want ^ have) & !optional.get(&at).copied().unwrap_or(0) != 0 {
                return Err(format!("word {at:#x} is {have:#x}, not {want:#x}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod dma_test;
