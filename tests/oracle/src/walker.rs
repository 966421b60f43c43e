//! The oracle: a slow and literal reading of sections 3, 6.1 and 7.1 over the bytes of guest
//! memory.
//!
//! Every entry may be taken as it stands or, until its invalidation, as it stood. So a request has
//! a set of permitted outcomes: one for each combination of versions. Only one is left once
//! everything is invalidated.
//!
//! Where the specification leaves a choice, the oracle takes what the unit does, and says so at the
//! place:
//! * the top second-stage table cannot be fetched in legacy mode: code 03h or 07h;
//! * a request is denied for U/S while A cannot be set: 81h, 90h or 77h;
//! * reading a first-stage entry, when nested with SSADE, is a write of its second-stage page: D is
//!   set, lack of W is 77h, 75h or 76h;
//! * in a PASID entry, AW is not checked where it is unused even if SSTS=0, and FSPTPTR not even
//!   beyond HAW;
//! * the order of 44h to 48h is open, and any that applies will do; a page request whose PASID
//!   exceeds PSS is 89h (no source lists it for page requests); one with a PASID in legacy mode is
//!   31h or 32h;
//! * a page request while translation is off is not taken, and not recorded;
//! * a request to FEEx that is no interrupt is 29h; whether it is recorded while interrupt
//!   remapping is off is open;
//! * an atomic access of a device is a write (store) or a read (load).

mod first;
mod second;
mod structures;

use crate::facts::Facts;
use crate::flushes::{Flushes, Kind, Stale, Tag};
use crate::image::Image;

/// What SRTP latched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// RTA.
    pub table: u64,
    /// TTM.
    pub mode: u64,
}

/// AT of a request, or that it is a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// AT=00.
    Untranslated,
    /// AT=01.
    Translation {
        /// NW.
        no_write: bool,
    },
    /// AT=10.
    Translated,
    /// A page-request message.
    Page,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Requester.
    pub source: u16,
    /// Input address.
    pub address: u64,
    /// Write, or read. Of no meaning for translation and page requests.
    pub write: bool,
    /// PASID, if it has one.
    pub pasid: Option<u64>,
    /// PR: it asks for supervisor privilege. Of no meaning for page requests.
    pub privileged: bool,
    /// Its form.
    pub form: Form,
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The physical address.
    pub address: u64,
    /// R of an answer.
    pub read: bool,
    /// W of an answer.
    pub write: bool,
    /// U of an answer.
    pub untranslated_only: bool,
    /// N of an answer.
    pub snooped: bool,
    /// Log2 of the greatest block that an answer may be for.
    pub shift: u32,
}

impl Found {
    /// An answer without permissions.
    const NOTHING: Self = Self {
        address: 0,
        read: false,
        write: false,
        untranslated_only: false,
        snooped: false,
        shift: 64,
    };

    /// Of a request that is not translated.
    pub fn identity(address: u64) -> Self {
        Self {
            address,
            read: true,
            write: true,
            ..Self::NOTHING
        }
    }
}

/// What a PASID-table entry says about caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// DID.
    pub did: u64,
    /// PASID of the request, or RID_PASID.
    pub pasid: u64,
    /// PGTT.
    pub pgtt: u64,
}

/// Why a request is blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Codes that the specification permits here.
    pub codes: Vec<u8>,
    /// Whether FPD keeps it out of the log.
    pub silent: bool,
}

/// One permitted outcome.
#[derive(Clone, Debug)]
pub struct Path {
    /// The physical address, or the fault.
    pub result: Result<Found, Fault>,
    /// The PASID-table entry, if the walk came that far.
    pub domain: Option<Domain>,
    /// Bits that are set afterwards: (address of the word, bits).
    pub required: Vec<(u64, u64)>,
    /// Bits that may be set afterwards.
    pub optional: Vec<(u64, u64)>,
    /// Whether an old version was relied on.
    pub stale: bool,
}

/// Picks one version after another, until all combinations have been seen.
#[derive(Debug, Default)]
struct Tape {
    picks: Vec<(usize, usize)>,
    at: usize,
}

impl Tape {
    fn pick(&mut self, count: usize) -> usize {
        if self.at == self.picks.len() {
            self.picks.push((0, count));
        }
        let (pick, _) = self.picks[self.at];
        self.at += 1;
        pick
    }

    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((pick, count)) = self.picks.pop() {
            if pick + 1 < count {
                self.picks.push((pick + 1, count));
                return true;
            }
        }
        false
    }
}

enum Stop {
    Fault(Fault),
    /// No hardware can have taken this combination.
    Impossible,
}

type Step<T> = Result<T, Stop>;

/// An entry as the walk took it.
struct Taken {
    at: u64,
    words: Vec<u64>,
    replaced: Option<u64>,
}

struct Walk<'a> {
    facts: &'a Facts,
    image: &'a Image,
    root: Root,
    request: Request,
    tape: &'a mut Tape,
    /// FPD of an entry that was reached.
    fpd: bool,
    did: Option<u64>,
    /// PASID of the request, or RID_PASID.
    pasid: u64,
    pgtt: u64,
    stale: Vec<Stale>,
    updates: Vec<(u64, u64)>,
    /// Updates that are permitted only.
    extra: Vec<(u64, u64)>,
    /// Whether the last outcome can be in the IOTLB.
    cached: bool,
}

impl Walk<'_> {
    /// NW, if this is a translation request.
    fn asks(&self) -> Option<bool> {
        match self.request.form {
            Form::Translation { no_write } => Some(no_write),
            _ => None,
        }
    }

    /// Whether the D bit of a page with this permission is set (section 3.6.3, sheet D5).
    fn dirties(&self, writable: bool) -> bool {
        match self.asks() {
            Some(no_write) => writable && !no_write,
            None => self.request.write,
        }
    }

    /// Takes an entry of `count` words, or is blocked for `code` if there is no memory.
    fn take(&mut self, at: u64, count: usize, code: u8) -> Step<Taken> {
        let Some(mut versions) = self.image.versions(at, count) else {
            return Err(self.fault(&[code]));
        };
        let pick = self.tape.pick(versions.len());
        let version = versions.swap_remove(pick);
        Ok(Taken {
            at,
            words: version.words,
            replaced: version.replaced,
        })
    }

    /// Notes what kind of entry was taken.
    fn note(&mut self, kind: Kind, taken: &Taken) {
        if let Some(replaced) = taken.replaced {
            self.stale.push(Stale { kind, replaced });
        }
    }

    /// The entry itself is why the request is blocked. An old version that blocks can only be
    /// cached in caching mode, and never if it is first-stage (section 6.1).
    fn blocked_by(&mut self, taken: &Taken, kind: Kind, codes: &[u8]) -> Stop {
        self.note(kind, taken);
        let cacheable = self.facts.caching_mode && !matches!(kind, Kind::First { .. });
        if taken.replaced.is_some() && !cacheable {
            return Stop::Impossible;
        }
        self.fault(codes)
    }

    fn fault(&self, codes: &[u8]) -> Stop {
        const UNQUALIFIED: [u8; 16] = [
            0x34, 0x01, 0x08, 0x09, 0x0a, 0x29, 0x30, 0x31, 0x32, 0x33, 0x38, 0x39, 0x3a, 0x40,
            0x50, 0x58,
        ];
        Stop::Fault(Fault {
            codes: codes.to_vec(),
            silent: self.fpd && !UNQUALIFIED.contains(&codes[0]),
        })
    }

    /// Sets bits in an entry. An old version cannot be updated: hardware sees that it changed, and
    /// walks again.
    fn update(&mut self, taken: &Taken, bits: u64) -> Step<()> {
        if taken.words[0] & bits == bits {
            return Ok(());
        }
        if taken.replaced.is_some() {
            return Err(Stop::Impossible);
        }
        self.updates.push((taken.at, bits));
        Ok(())
    }
}

/// Whether a translation request is answered without permissions, and nothing is recorded (sheet
/// E1, columns "ok0" and, as there is no permission at all then, "okE").
fn recoverable(fault: &Fault) -> bool {
    const ANSWERED: [u8; 21] = [
        0x04, 0x05, 0x06, 0x51, 0x59, 0x5c, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77,
        0x79, 0x80, 0x81, 0x83, 0x84, 0x90,
    ];
    ANSWERED.contains(&fault.codes[0])
}

/// All permitted outcomes of `request`; `None` if there are more than `limit` combinations.
pub fn permitted(
    facts: &Facts,
    image: &Image,
    flushes: &Flushes,
    root: Root,
    request: Request,
    limit: usize,
) -> Option<Vec<Path>> {
    let mut tape = Tape::default();
    let mut paths = Vec::new();
    for _ in 0..limit {
        let mut walk = Walk {
            facts,
            image,
            root,
            request,
            tape: &mut tape,
            fpd: false,
            did: None,
            pasid: request.pasid.unwrap_or(0),
            pgtt: 0,
            stale: Vec::new(),
            updates: Vec::new(),
            extra: Vec::new(),
            cached: true,
        };
        let outcome = walk.run();
        let tag = Tag {
            source: request.source,
            did: walk.did,
            pasid: walk.pasid,
            input: request.address,
            scalable: root.mode == 1,
            cached: walk.cached,
        };
        let permitted = walk.stale.iter().all(|stale| flushes.permits(*stale, tag));
        let stale = !walk.stale.is_empty();
        let asks = walk.asks();
        let (required, optional) = match outcome {
            Ok(_) => (walk.updates, walk.extra),
            Err(_) => {
                walk.updates.extend(walk.extra);
                (Vec::new(), walk.updates)
            }
        };
        let domain = walk.did.map(|did| Domain {
            did,
            pasid: walk.pasid,
            pgtt: walk.pgtt,
        });
        let result = match outcome {
            Ok(mut found) => {
                found.write &= asks != Some(true);
                Some(Ok(found))
            }
            Err(Stop::Fault(fault)) if asks.is_some() && recoverable(&fault) => {
                Some(Ok(Found::NOTHING))
            }
            Err(Stop::Fault(fault)) => Some(Err(fault)),
            Err(Stop::Impossible) => None,
        };
        if let (true, Some(result)) = (permitted, result) {
            paths.push(Path {
                result,
                domain,
                required,
                optional,
                stale,
            });
        }
        if !tape.advance() {
            return Some(paths);
        }
    }
    None
}
