//! A unit's capabilities, decoded from its raw capability words (sections 11.4.2 and 11.4.3).

/// The capabilities that translation depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Bits of a physical address.
    pub haw: u32,
    /// MGAW: bits of a second-stage input address.
    pub mgaw: u32,
    /// SAGAW: bit 1 39-bit, bit 2 48-bit, bit 3 57-bit.
    pub sagaw: u64,
    /// SSLPS: bit 0 2M, bit 1 1G.
    pub sslps: u64,
    /// CM.
    pub caching_mode: bool,
    /// FS1GP.
    pub first_1g: bool,
    /// FS5LP.
    pub first_5_levels: bool,
    /// PT.
    pub pass_through: bool,
    /// SC.
    pub snoop_control: bool,
    /// SMTS.
    pub scalable: bool,
    /// SSTS.
    pub second: bool,
    /// FSTS.
    pub first: bool,
    /// NEST.
    pub nested: bool,
    /// SSADS.
    pub second_ad: bool,
    /// SMPWCS.
    pub walk_snoop: bool,
    /// IR.
    pub interrupts: bool,
    /// EIM.
    pub extended_interrupts: bool,
    /// DT, with NWFS.
    pub device_tlb: bool,
    /// PRS, with PDS.
    pub page_requests: bool,
    /// PSS + 1, or 0 without PASID. RPS and SRS come with it.
    pub pasid_bits: u32,
    /// EAFS.
    pub extended_accessed: bool,
}

impl Facts {
    /// Decodes CAP and ECAP. The unit's HAW stands in no register.
    ///
    /// # Panics
    /// When the unit announces something that this oracle does not know.
    pub fn decode(cap: u64, ecap: u64, haw: u8) -> Self {
        let bit = |word: u64, position: u32| word >> position & 1 != 0;
        // MTS, ERS, DIT, VCS, PMS, ADMS, RPRIVS, HPTS, PTRS, SSIRWS, SMS, EIMER, IRREQ.
        for absent in [25, 30, 41, 44, 51, 52, 53, 55, 56, 57, 58, 61, 62] {
            assert!(!bit(ecap, absent), "ECAP bit {absent} is news: {ecap:#x}");
        }
        for absent in [4, 5, 6, 59, 61] {
            assert!(!bit(cap, absent), "CAP bit {absent} is news: {cap:#x}");
        }
        let (device_tlb, page_requests, pasids) = (bit(ecap, 2), bit(ecap, 29), bit(ecap, 40));
        // Section 11.4.3: what needs what, and what this unit announces together.
        assert_eq!(bit(ecap, 33), device_tlb, "NWFS: {ecap:#x}");
        assert!(!page_requests || device_tlb && bit(ecap, 43) && bit(ecap, 42));
        assert!(!pasids || bit(ecap, 43), "PASID needs SMTS: {ecap:#x}");
        assert!(bit(ecap, 49) == pasids && bit(ecap, 31) == pasids);
        assert!(!bit(ecap, 34) || bit(ecap, 47) && bit(ecap, 48));
        assert!(pasids || ecap >> 35 & 0x1f == 0, "PSS: {ecap:#x}");
        // ZLR, PSI, 16-bit domain ids, ESRTPS.
        assert!(bit(cap, 22) && bit(cap, 39) && cap & 7 == 6 && bit(cap, 63));
        Self {
            haw: u32::from(haw),
            mgaw: u32::try_from((cap >> 16 & 0x3f) + 1).expect("6 bits"),
            sagaw: cap >> 8 & 0x1f,
            sslps: cap >> 34 & 0xf,
            caching_mode: bit(cap, 7),
            first_1g: bit(cap, 56),
            first_5_levels: bit(cap, 60),
            pass_through: bit(ecap, 6),
            snoop_control: bit(ecap, 7),
            scalable: bit(ecap, 43),
            second: bit(ecap, 46),
            first: bit(ecap, 47),
            nested: bit(ecap, 26),
            second_ad: bit(ecap, 45),
            walk_snoop: bit(ecap, 48),
            interrupts: bit(ecap, 3),
            extended_interrupts: bit(ecap, 4),
            device_tlb,
            page_requests,
            pasid_bits: if pasids {
                u32::try_from(ecap >> 35 & 0x1f).expect("5 bits") + 1
            } else {
                0
            },
            extended_accessed: bit(ecap, 34),
        }
    }

    /// Bits 63:HAW.
    pub fn beyond(&self) -> u64 {
        u64::MAX << self.haw
    }

    /// Bits HAW-1:12.
    pub fn pointer(&self) -> u64 {
        !self.beyond() & !0xfff
    }

    /// Bits 51:HAW, which page-table entries reserve.
    pub fn table_reserved(&self) -> u64 {
        self.beyond() & ((1 << 52) - 1)
    }
}
