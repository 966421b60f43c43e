//! Ids of PCI capabilities, and the offsets of their registers from a capability's first byte.

/// Ids of the capabilities in the first 256 bytes (PCI Code and ID Assignment Specification,
/// section 2).
pub mod id {
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// MSI.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// Subsystem ids of a bridge.
    pub const SUBSYSTEM: u8 = 0x0d;
    /// PCI Express.
    pub const PCIE: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// MSI (section 7.7.1).
pub mod msi {
    /// Message Control, 16 bits.
    pub const CONTROL: u16 = 2;

    /// Message Control: the function sends messages.
    pub const ENABLE: u16 = 1;
}

/// MSI-X (section 7.7.2).
pub mod msix {
    /// Message Control, 16 bits.
    pub const CONTROL: u16 = 2;

    /// Message Control: the function sends messages.
    pub const ENABLE: u16 = 1 << 15;
    /// Message Control: all vectors are masked.
    pub const FUNCTION_MASK: u16 = 1 << 14;
}

/// The PCI Express capability (section 7.5.3).
pub mod pcie {
    /// Bytes of the version 2 structure, header included.
    pub const SIZE: usize = 0x3c;

    /// PCI Express Capabilities, 16 bits.
    pub const CAPABILITIES: u16 = 0x02;
    /// Device Capabilities, 32 bits.
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    /// Device Control, 16 bits.
    pub const DEVICE_CONTROL: u16 = 0x08;
    /// Device Status, 16 bits.
    pub const DEVICE_STATUS: u16 = 0x0a;
    /// Link Capabilities, 32 bits.
    pub const LINK_CAPABILITIES: u16 = 0x0c;
    /// Link Control, 16 bits.
    pub const LINK_CONTROL: u16 = 0x10;
    /// Link Status, 16 bits.
    pub const LINK_STATUS: u16 = 0x12;
    /// Slot Capabilities, 32 bits.
    pub const SLOT_CAPABILITIES: u16 = 0x14;
    /// Slot Control, 16 bits.
    pub const SLOT_CONTROL: u16 = 0x18;
    /// Slot Status, 16 bits.
    pub const SLOT_STATUS: u16 = 0x1a;
    /// Root Control, 16 bits.
    pub const ROOT_CONTROL: u16 = 0x1c;
    /// Root Status, 32 bits.
    pub const ROOT_STATUS: u16 = 0x20;
    /// Device Capabilities 2, 32 bits.
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    /// Link Capabilities 2, 32 bits.
    pub const LINK_CAPABILITIES_2: u16 = 0x2c;
    /// Link Control 2, 16 bits.
    pub const LINK_CONTROL_2: u16 = 0x30;

    /// Device Control: starts a function-level reset; reads as zero.
    pub const INITIATE_FUNCTION_LEVEL_RESET: u16 = 1 << 15;
}

/// Address Translation Services (section 10.5.1).
pub mod ats {
    /// ATS Capability, 16 bits.
    pub const CAPABILITY: u16 = 4;
    /// ATS Control, 16 bits.
    pub const CONTROL: u16 = 6;
    /// ATS Control: the function may send translation requests.
    pub const ENABLE: u16 = 1 << 15;
}

/// Process Address Space ID (section 7.8.9).
pub mod pasid {
    /// PASID Capability, 16 bits.
    pub const CAPABILITY: u16 = 4;
    /// PASID Control, 16 bits.
    pub const CONTROL: u16 = 6;
    /// PASID Control: the function may send requests with a PASID.
    pub const ENABLE: u16 = 1;
}

/// Page Request Interface (section 10.5.2).
pub mod pri {
    /// Page Request Control, 16 bits.
    pub const CONTROL: u16 = 4;
    /// Page Request Status, 16 bits.
    pub const STATUS: u16 = 6;
    /// Outstanding Page Request Capacity, 32 bits.
    pub const CAPACITY: u16 = 8;
    /// Outstanding Page Request Allocation, 32 bits.
    pub const ALLOCATION: u16 = 12;

    /// Page Request Control: the function may send page requests.
    pub const ENABLE: u16 = 1;
    /// Page Request Control: forgets the outstanding requests; reads as zero.
    pub const RESET: u16 = 1 << 1;
    /// Page Request Status: a response said that no request will succeed.
    pub const RESPONSE_FAILURE: u16 = 1;
    /// Page Request Status: a response was to no request that is outstanding.
    pub const UNEXPECTED_GROUP_INDEX: u16 = 1 << 1;
    /// Page Request Status: disabled, and no request is outstanding any more.
    pub const STOPPED: u16 = 1 << 8;
    /// Page Request Status: responses carry a PASID where the request did.
    pub const PASID_IN_RESPONSE: u16 = 1 << 15;
}
