//! The parts of a configuration: address width, scalable mode and its stages, walks, interrupts.

/// Width of an input address, which says how deep the deepest tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressWidth {
    /// 39 bits, three levels. First-stage tables are deeper than that.
    Bits39,
    /// 48 bits, four levels.
    Bits48,
    /// 57 bits, five levels.
    Bits57,
}

impl AddressWidth {
    /// The width of `bits` bits: 39, 48 or 57. `None` for a number of bits that no table has.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            39 => Some(Self::Bits39),
            48 => Some(Self::Bits48),
            57 => Some(Self::Bits57),
            _ => None,
        }
    }

    /// The width in bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits39 => 39,
            Self::Bits48 => 48,
            Self::Bits57 => 57,
        }
    }

    /// Whether addresses of `bits` bits need tables of this depth, and no deeper ones: a level translates 9 bits.
    pub const fn holds(self, bits: u8) -> bool {
        bits <= self.bits() && bits > self.bits() - 9
    }
}

/// Interrupt remapping (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interrupts {
    /// Interrupt requests pass as they come.
    Off,
    /// Software may have them remapped (IR).
    Remapped {
        /// Extended interrupt mode (EIM): 32-bit x2APIC destinations.
        x2apic: bool,
    },
}

impl Interrupts {
    /// Whether there is interrupt remapping.
    pub const fn remapped(self) -> bool {
        matches!(self, Self::Remapped { .. })
    }

    /// Whether destinations may have 32 bits.
    pub const fn x2apic(self) -> bool {
        matches!(self, Self::Remapped { x2apic: true })
    }
}

/// Which stages of translation there are (section 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// Second-stage translation (SSTS).
    Second,
    /// First-stage translation (FSTS). Legacy mode has second-stage tables nevertheless.
    First,
    /// Either for each PASID, not nested.
    Both,
    /// Either, and first-stage translation nested in second-stage translation (NEST).
    Nested,
}

impl Stages {
    /// Whether there is first-stage translation.
    pub const fn first(self) -> bool {
        !matches!(self, Self::Second)
    }

    /// Whether there is second-stage translation in scalable mode.
    pub const fn second(self) -> bool {
        !matches!(self, Self::First)
    }

    /// Whether there is nested translation.
    pub const fn nested(self) -> bool {
        matches!(self, Self::Nested)
    }
}

/// Scalable mode (section 3.4.3), with 256-bit descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scalable {
    /// Stages of translation.
    pub stages: Stages,
    /// Width in bits of a PASID (PASID, PSS), 1 to 20; 0 for requests without PASID only.
    ///
    /// With PASIDs come RID_PASID (RPS) and requests of supervisors (SRS), and with a first stage
    /// the extended accessed flag (EAFS).
    pub pasid_bits: u8,
    /// Page requests (PRS), and waiting for them (PDS). They need
    /// [`UnitConfig::device_tlb`](crate::UnitConfig::device_tlb).
    pub page_requests: bool,
    /// Features of walks.
    pub walks: WalkFeatures,
}

impl Scalable {
    /// Scalable mode with these stages, all features of walks, no PASIDs and no page requests.
    pub const fn new(stages: Stages) -> Self {
        Self {
            stages,
            pasid_bits: 0,
            page_requests: false,
            walks: WalkFeatures::ALL,
        }
    }

    /// The same with other [`stages`](Self::stages).
    #[must_use]
    pub const fn with_stages(mut self, stages: Stages) -> Self {
        self.stages = stages;
        self
    }

    /// The same with another [`pasid_bits`](Self::pasid_bits).
    #[must_use]
    pub const fn with_pasid_bits(mut self, bits: u8) -> Self {
        self.pasid_bits = bits;
        self
    }

    /// The same with [`page_requests`](Self::page_requests) on or off.
    #[must_use]
    pub const fn with_page_requests(mut self, on: bool) -> Self {
        self.page_requests = on;
        self
    }

    /// The same with other [`walks`](Self::walks).
    #[must_use]
    pub const fn with_walks(mut self, walks: WalkFeatures) -> Self {
        self.walks = walks;
        self
    }
}

/// Features of walks of first-stage tables.
///
/// The unit has all of them; for an assigned device it is the host's IOMMU that walks, which may lack some. Each
/// is offered where the rest of the configuration has a use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalkFeatures {
    /// Pages of 1 GiB (FS1GP).
    pub pages_of_1g: bool,
    /// Requests of supervisors (SRS).
    pub supervisor_requests: bool,
    /// The extended accessed flag (EAFS).
    pub extended_accessed: bool,
    /// Walks snoop caches (SMPWCS).
    pub snooped: bool,
}

impl WalkFeatures {
    /// Everything.
    pub const ALL: Self = Self {
        pages_of_1g: true,
        supervisor_requests: true,
        extended_accessed: true,
        snooped: true,
    };

    /// The features that both have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self {
            pages_of_1g: self.pages_of_1g && other.pages_of_1g,
            supervisor_requests: self.supervisor_requests && other.supervisor_requests,
            extended_accessed: self.extended_accessed && other.extended_accessed,
            snooped: self.snooped && other.snooped,
        }
    }

    /// The same with [`pages_of_1g`](Self::pages_of_1g) on or off.
    #[must_use]
    pub const fn with_pages_of_1g(mut self, on: bool) -> Self {
        self.pages_of_1g = on;
        self
    }

    /// The same with [`supervisor_requests`](Self::supervisor_requests) on or off.
    #[must_use]
    pub const fn with_supervisor_requests(mut self, on: bool) -> Self {
        self.supervisor_requests = on;
        self
    }

    /// The same with [`extended_accessed`](Self::extended_accessed) on or off.
    #[must_use]
    pub const fn with_extended_accessed(mut self, on: bool) -> Self {
        self.extended_accessed = on;
        self
    }

    /// The same with [`snooped`](Self::snooped) on or off.
    #[must_use]
    pub const fn with_snooped(mut self, on: bool) -> Self {
        self.snooped = on;
        self
    }
}
