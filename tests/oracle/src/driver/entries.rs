//! Table entries as raw words (section 9).

/// Legacy root entry (9.1).
pub fn root(context_table: u64) -> [u64; 2] {
    [context_table | 1, 0]
}

/// Scalable root entry (9.2): lower and upper context table, 0 for none.
pub fn scalable_root(lower: u64, upper: u64) -> [u64; 2] {
    [lower | u64::from(lower != 0), upper | u64::from(upper != 0)]
}

/// Legacy context entry (9.3): TT 0 is second-stage, 1 the same for all requests, 2 is
/// pass-through.
pub fn context(tt: u64, table: u64, aw: u64, did: u64) -> [u64; 2] {
    [1 | tt << 2 | table, aw | did << 8]
}

/// Scalable context entry (9.4) with a directory of 2^(`pdts` + 7) entries.
pub fn scalable_context(directory: u64, pdts: u64) -> [u64; 4] {
    [1 | pdts << 9 | directory, 0, 0, 0]
}

/// DTE of a scalable context entry.
pub const DEVICE_TLB: u64 = 1 << 2;
/// PASIDE of a scalable context entry.
pub const PASIDS: u64 = 1 << 3;
/// PRE of a scalable context entry.
pub const PAGE_REQUESTS: u64 = 1 << 4;

/// PASID directory entry (9.5).
pub fn directory(table: u64) -> u64 {
    table | 1
}

/// What a PASID-table entry says (9.6).
#[derive(Clone, Copy, Debug, Default)]
pub struct PasidEntry {
    /// PGTT: 1 first-stage, 2 second-stage, 3 nested, 4 pass-through.
    pub pgtt: u64,
    /// Address width of the second stage.
    pub aw: u64,
    /// SSPTPTR.
    pub second: u64,
    /// SSADE.
    pub second_ad: bool,
    /// PWSNP.
    pub snoop_walk: bool,
    /// DID.
    pub did: u64,
    /// FSPTPTR.
    pub first: u64,
    /// FSPM: 0 for 4 levels, 1 for 5.
    pub fspm: u64,
    /// PGSNP.
    pub snoop_page: bool,
    /// EAFE.
    pub extended_accessed: bool,
    /// SRE.
    pub supervisor: bool,
    /// WPE.
    pub write_protect: bool,
}

impl PasidEntry {
    /// The entry's words, present.
    pub fn words(self) -> [u64; 8] {
        let mut words = [0; 8];
        words[0] = 1 | self.aw << 2 | self.pgtt << 6 | u64::from(self.second_ad) << 9 | self.second;
        words[1] = self.did | u64::from(self.snoop_walk) << 23 | u64::from(self.snoop_page) << 24;
        words[2] = u64::from(self.supervisor) | u64::from(self.write_protect) << 4;
        words[2] |= self.fspm << 2 | u64::from(self.extended_accessed) << 7 | self.first;
        words
    }
}

/// Remapped IRTE (9.9).
#[derive(Clone, Copy, Debug, Default)]
pub struct Irte {
    /// Vector.
    pub vector: u64,
    /// Delivery mode.
    pub delivery: u64,
    /// Destination mode: logical.
    pub logical: bool,
    /// Redirection hint.
    pub redirect: bool,
    /// Level-triggered.
    pub level: bool,
    /// DST, all 32 bits as they stand in the entry.
    pub destination: u64,
    /// SID.
    pub source: u64,
    /// SQ.
    pub qualifier: u64,
    /// SVT.
    pub validation: u64,
}

impl Irte {
    /// The entry's words, present.
    pub fn words(self) -> [u64; 2] {
        [
            1 | u64::from(self.logical) << 2
                | u64::from(self.redirect) << 3
                | u64::from(self.level) << 4
                | self.delivery << 5
                | self.vector << 16
                | self.destination << 32,
            self.source | self.qualifier << 16 | self.validation << 18,
        ]
    }
}
