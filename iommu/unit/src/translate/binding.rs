//! The binding of a (source-id, PASID): the tables that translate its requests (sec. 3.4).

use crate::spec::ids::Pasid;

/// What translates. Two bindings are equal exactly when they translate alike as long as the same
/// tables stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Every request is blocked.
    Blocked,
    /// Addresses are guest-physical.
    PassThrough,
    /// Second-stage tables.
    SecondStage(SecondStage),
    /// First-stage tables.
    FirstStage(FirstStage),
    /// First-stage tables, every address of which goes through second-stage tables.
    Nested(FirstStage, SecondStage),
}

/// Second-stage tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecondStage {
    /// Guest-physical address of the top table.
    pub table: u64,
    /// 3, 4 or 5.
    pub levels: u8,
    /// Accessed and dirty bits are maintained.
    pub accessed_dirty: bool,
    /// Walks are snooped; without it, a bit that is to be set is a fault.
    pub snooped_walk: bool,
}

/// First-stage tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirstStage {
    /// Address of the top table: guest-physical, or of the second stage when nested.
    pub table: u64,
    /// 4 or 5.
    pub levels: u8,
    /// Supervisor requests are allowed.
    pub supervisor_requests: bool,
    /// Supervisor writes need write permission, too.
    pub write_protect: bool,
    /// The extended accessed bit is maintained.
    pub extended_accessed: bool,
    /// Walks are snooped; without it, a bit that is to be set is a fault.
    pub snooped_walk: bool,
}

/// What the tables say about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What translates it. Never [`Binding::Blocked`]. A translated request is passed through.
    pub binding: Binding,
    /// The domain id.
    pub domain: u16,
    /// The PASID under which it is translated; `None` in legacy mode.
    pub pasid: Option<Pasid>,
    /// It has supervisor privilege.
    pub privileged: bool,
    /// Accesses to pages are snooped, whatever the request says (PGSNP).
    pub snooped_pages: bool,
    /// A Fault Processing Disable bit was met: what happens from here on is not recorded.
    pub fault_disable: bool,
    /// Legacy mode, which has fault reasons of its own.
    pub legacy: bool,
}
