//! The binding of a (source-id, PASID): the tables that translate its requests (sec. 3.4).

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
