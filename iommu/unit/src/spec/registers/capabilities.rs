//! The two capability words, CAP and ECAP (sections 11.4.2 and 11.4.3).
//!
//! They are plain values: whoever acts on a capability is handed the words, and nothing here decides what is offered.

use bitfield_struct::bitfield;

/// Capability register, CAP (section 11.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capability {
    /// ND: domain ids have `4 + 2 * ND` bits.
    #[bits(3)]
    pub nd: u8,
    #[bits(1)]
    __: u8,
    /// RWBF: software has to flush write buffers.
    pub rwbf: bool,
    /// PLMR: protected low-memory region.
    pub plmr: bool,
    /// PHMR: protected high-memory region.
    pub phmr: bool,
    /// CM: entries that are not present, or that fault, may be cached.
    pub cm: bool,
    /// SAGAW: second-stage depths; bit 1 is 39 bits, bit 2 is 48 bits, bit 3 is 57 bits.
    #[bits(5)]
    pub sagaw: u8,
    #[bits(3)]
    __: u8,
    /// MGAW: width of a second-stage input address, less one.
    #[bits(6)]
    pub mgaw: u8,
    /// ZLR: zero-length reads of write-only pages succeed.
    pub zlr: bool,
    #[bits(1)]
    __: u8,
    /// FRO: offset of the fault records, in units of 16 bytes.
    #[bits(10)]
    pub fro: u16,
    /// SSLPS: second-stage large pages; bit 0 is 2 MiB, bit 1 is 1 GiB.
    #[bits(4)]
    pub sslps: u8,
    #[bits(1)]
    __: u8,
    /// PSI: page-selective IOTLB invalidation.
    pub psi: bool,
    /// NFR: number of fault records, less one.
    pub nfr: u8,
    /// MAMV: greatest address mask of a page-selective IOTLB invalidation.
    #[bits(6)]
    pub mamv: u8,
    /// DWD: drains writes. Deprecated and 1 from major version 2 on.
    pub dwd: bool,
    /// DRD: drains reads. Deprecated and 1 from major version 2 on.
    pub drd: bool,
    /// FS1GP: first-stage 1 GiB pages.
    pub fs1gp: bool,
    #[bits(2)]
    __: u8,
    /// PI: posted interrupts.
    pub pi: bool,
    /// FS5LP: five-level first-stage tables.
    pub fs5lp: bool,
    /// ECMDS: enhanced commands.
    pub ecmds: bool,
    /// ESIRTPS: setting the interrupt remapping table pointer invalidates the interrupt entry cache.
    pub esirtps: bool,
    /// ESRTPS: setting the root table pointer invalidates the translation caches.
    pub esrtps: bool,
}

/// Extended capability register, ECAP (section 11.4.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapability {
    /// C: accesses to remapping structures and to legacy second-stage tables snoop the caches.
    pub c: bool,
    /// QI: queued invalidation.
    pub qi: bool,
    /// DT: device-TLBs.
    pub dt: bool,
    /// IR: interrupt remapping.
    pub ir: bool,
    /// EIM: extended interrupt mode, 32-bit APIC ids.
    pub eim: bool,
    #[bits(1)]
    __: u8,
    /// PT: pass-through.
    pub pt: bool,
    /// SC: snoop control.
    pub sc: bool,
    /// IRO: offset of the IOTLB registers, in units of 16 bytes.
    #[bits(10)]
    pub iro: u16,
    #[bits(2)]
    __: u8,
    /// MHMV: greatest index mask of an interrupt entry cache invalidation.
    #[bits(4)]
    pub mhmv: u8,
    #[bits(1)]
    __: u8,
    /// MTS: memory types.
    pub mts: bool,
    /// NEST: nested translation.
    pub nest: bool,
    #[bits(2)]
    __: u8,
    /// PRS: page requests.
    pub prs: bool,
    /// ERS: execute requests; always 0 since revision 5.
    pub ers: bool,
    /// SRS: supervisor requests.
    pub srs: bool,
    #[bits(1)]
    __: u8,
    /// NWFS: no-write flag of translation requests.
    pub nwfs: bool,
    /// EAFS: extended accessed flag.
    pub eafs: bool,
    /// PSS: width of a PASID, less one.
    #[bits(5)]
    pub pss: u8,
    /// PASID: requests with PASID.
    pub pasid: bool,
    /// DIT: device-TLB invalidation throttle.
    pub dit: bool,
    /// PDS: page-request drain.
    pub pds: bool,
    /// SMTS: scalable mode.
    pub smts: bool,
    /// VCS: virtual commands.
    pub vcs: bool,
    /// SSADS: second-stage accessed and dirty flags.
    pub ssads: bool,
    /// SSTS: second-stage translation in scalable mode.
    pub ssts: bool,
    /// FSTS: first-stage translation.
    pub fsts: bool,
    /// SMPWCS: page walks of scalable mode can snoop.
    pub smpwcs: bool,
    /// RPS: RID_PASID is honoured.
    pub rps: bool,
    /// TDXCS.
    pub tdxcs: bool,
    /// PMS: performance monitoring.
    pub pms: bool,
    /// ADMS: abort-DMA mode.
    pub adms: bool,
    /// RPRIVS: RID_PRIV is honoured.
    pub rprivs: bool,
    #[bits(1)]
    __: u8,
    /// HPTS: host permission tables.
    pub hpts: bool,
    /// PTRS: PASID in translated requests.
    pub ptrs: bool,
    /// SSIRWS: second-stage I/O read and write bits.
    pub ssirws: bool,
    /// SMS: stop markers in the page-request queue.
    pub sms: bool,
    /// HPT1GPS: 1 GiB pages of the host permission table.
    pub hpt1gps: bool,
    /// RDTS: resource director technology.
    pub rdts: bool,
    /// EIMER: interrupt remapping needs extended interrupt mode.
    pub eimer: bool,
    /// IRREQ: interrupts are blocked while remapping is off.
    pub irreq: bool,
    #[bits(1)]
    __: u8,
}

/// What one unit offers: the two words that its guest reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Capability register.
    pub cap: Capability,
    /// Extended capability register.
    pub ecap: ExtendedCapability,
}

impl Caps {
    /// Mask of the domain-id bits that exist; the rest of a 16-bit field is ignored in descriptors and reserved in tables.
    pub fn domain_mask(&self) -> u16 {
        let bits = 4 + 2 * u32::from(self.cap.nd().min(6));
        u16::try_from((1u32 << bits) - 1).unwrap_or(u16::MAX)
    }

    /// Width in bits of the greatest second-stage input address.
    pub fn guest_address_width(&self) -> u8 {
        self.cap.mgaw() + 1
    }

    /// Width in bits of what the deepest second-stage tables have room for (SAGAW), which MGAW may cut.
    pub fn deepest_width(&self) -> u8 {
        match self.cap.sagaw() {
            8.. => 57,
            4..8 => 48,
            _ => 39,
        }
    }
}
