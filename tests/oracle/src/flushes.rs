//! The invalidations that have completed, and whether an old version of an entry can still be
//! cached (section 6).

/// What an entry is, as far as invalidation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Root and context entries.
    Context,
    /// PASID directory and PASID-table entries.
    Pasid,
    /// First-stage paging entries.
    First {
        /// Whether it maps a page.
        leaf: bool,
    },
    /// Second-stage paging entries.
    Second {
        /// Whether it maps a page.
        leaf: bool,
        /// The second stage's input address.
        input: u64,
    },
}

/// An old version that a walk relied on.
#[derive(Clone, Copy, Debug)]
pub struct Stale {
    /// What it was.
    pub kind: Kind,
    /// When memory lost it.
    pub replaced: u64,
}

/// What one completed command covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Type 1 (or CCMD) global.
    ContextGlobal,
    /// Type 1 of one source; FM.
    ContextDevice {
        /// SID.
        source: u16,
        /// FM.
        mask: u64,
    },
    /// Type 2 (or IOTLB_REG) global.
    IotlbGlobal,
    /// Type 2, one domain.
    IotlbDomain(u64),
    /// Type 2, pages.
    IotlbPages {
        /// DID.
        did: u64,
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
        /// IH.
        hint: bool,
    },
    /// Type 6: DID, PASID.
    PasidIotlb(u64, u64),
    /// Type 6, pages.
    PasidIotlbPages {
        /// DID.
        did: u64,
        /// PASID.
        pasid: u64,
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
        /// IH.
        hint: bool,
    },
    /// Type 7, one domain, or one PASID of it.
    PasidCache(u64, Option<u64>),
    /// Type 7, global.
    PasidCacheGlobal,
}

/// A request, as caches tag it.
#[derive(Clone, Copy, Debug)]
pub struct Tag {
    /// Requester.
    pub source: u16,
    /// The domain that the walk found, if it came that far.
    pub did: Option<u64>,
    /// The PASID of the request, or RID_PASID.
    pub pasid: u64,
    /// Input address.
    pub input: u64,
    /// Whether PASID-table entries were used.
    pub scalable: bool,
    /// Whether the result can be in the IOTLB.
    pub cached: bool,
}

/// All commands that have completed, with the time of each.
#[derive(Debug, Default)]
pub struct Flushes(Vec<(u64, Flush)>);

impl Flushes {
    /// Notes a command that has completed at `time`.
    pub fn completed(&mut self, time: u64, flush: Flush) {
        self.0.push((time, flush));
    }

    /// Forgets the past.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    fn first_after(&self, time: u64, covers: impl Fn(&Flush) -> bool) -> Option<u64> {
        self.0
            .iter()
            .find(|(at, flush)| *at >= time && covers(flush))
            .map(|(at, _)| *at)
    }

    /// Whether a request may still get a result that relies on `stale`.
    pub fn permits(&self, stale: Stale, tag: Tag) -> bool {
        self.gone_at(stale, tag).is_none()
    }

    fn gone_at(&self, stale: Stale, tag: Tag) -> Option<u64> {
        // Commands are executed one after another; the context cache must be clean before what is
        // filled from it is flushed, or it would be filled again.
        let mut time = stale.replaced;
        if stale.kind == Kind::Context {
            time = self.first_after(time, |flush| match flush {
                Flush::ContextGlobal => true,
                Flush::ContextDevice { source, mask } => {
                    let ignored = [0, 4, 6, 7][crate::index(mask & 3)];
                    source & !ignored == tag.source & !ignored
                }
                _ => false,
            })? + 1;
        }
        let pasid = stale.kind == Kind::Context && tag.scalable && tag.did.is_some();
        if pasid || stale.kind == Kind::Pasid {
            time = self.first_after(time, |flush| match flush {
                Flush::PasidCacheGlobal => true,
                Flush::PasidCache(did, pasid) => {
                    *did == tag.did.unwrap_or(0) && pasid.is_none_or(|pasid| pasid == tag.pasid)
                }
                _ => false,
            })? + 1;
        }
        let structure = matches!(stale.kind, Kind::Context | Kind::Pasid);
        if structure && !tag.cached {
            return Some(time);
        }
        let did = tag.did?;
        self.first_after(time, |flush| Self::covers(stale.kind, did, tag, flush))
    }

    fn covers(kind: Kind, did: u64, tag: Tag, flush: &Flush) -> bool {
        let page = |first: u64, last: u64, at: u64| (first..=last).contains(&at);
        match *flush {
            Flush::IotlbGlobal => true,
            Flush::IotlbDomain(domain) => domain == did,
            Flush::PasidIotlb(domain, pasid) => {
                domain == did && pasid == tag.pasid && !matches!(kind, Kind::Second { .. })
            }
            Flush::IotlbPages {
                did: domain,
                first,
                last,
                hint,
            } => {
                domain == did
                    && match kind {
                        Kind::Second { leaf, input } => page(first, last, input) && (leaf || !hint),
                        Kind::First { .. } => true,
                        Kind::Context | Kind::Pasid => false,
                    }
            }
            Flush::PasidIotlbPages {
                did: domain,
                pasid,
                first,
                last,
                hint,
            } => {
                domain == did
                    && pasid == tag.pasid
                    && matches!(kind, Kind::First { leaf } if page(first, last, tag.input) && (leaf || !hint))
            }
            _ => false,
        }
    }
}
