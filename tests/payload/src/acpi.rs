//! What the firmware tables say: vCPUs, the remapping unit, the ECAM window, and where `edu` is.

use crate::load;

/// The parts of the machine that the checks use.
pub struct Machine {
    /// Enabled processors of the MADT.
    pub cpus: u32,
    /// Register base of the first DRHD.
    pub vtd: u64,
    /// Requester id of the first `edu`, and its registers.
    pub edu: Option<(u16, u64)>,
    /// ECAM base of bus 0.
    pub ecam: u64,
}

impl Machine {
    /// Follows `hvm_start_info` to the tables and looks for `edu` on bus 0.
    pub fn discover(start_info: u64) -> Self {
        assert!(load::<u32>(start_info) == 0x336e_c578, "no hvm_start_info");
        let rsdp: u64 = load(start_info + 32);
        let xsdt: u64 = load(rsdp + 24);
        let mut machine = Self { cpus: 0, vtd: 0, edu: None, ecam: 0 };
        let entries = (u64::from(load::<u32>(xsdt + 4)) - 36) / 8;
        for entry in 0..entries {
            // The XSDT's entries start at offset 36: 4-byte aligned only.
            let low: u32 = load(xsdt + 36 + 8 * entry);
            let high: u32 = load(xsdt + 40 + 8 * entry);
            let table = u64::from(high) << 32 | u64::from(low);
            match &load::<[u8; 4]>(table) {
                b"APIC" => machine.cpus = processors(table),
                b"DMAR" => machine.vtd = u64::from(load::<u32>(table + 48 + 8)),
                b"MCFG" => machine.ecam = u64::from(load::<u32>(table + 44)),
                _ => {}
            }
        }
        machine.edu = (0..32u64).find_map(|slot| {
            let config = machine.ecam + (slot << 15);
            (load::<u32>(config) == 0x11e8_1234)
                .then(|| ((slot << 3) as u16, u64::from(load::<u32>(config + 0x10)) & !0xf))
        });
        machine
    }
}

/// Enabled entries of type 0 (local APIC) and 9 (local x2APIC).
fn processors(madt: u64) -> u32 {
    let end = madt + u64::from(load::<u32>(madt + 4));
    let mut at = madt + 44;
    let mut count = 0;
    while at < end {
        let (kind, length): (u8, u8) = (load(at), load(at + 1));
        let flags_at = match kind {
            0 => at + 4,
            9 => at + 8,
            _ => 0,
        };
        if flags_at != 0 && load::<u8>(flags_at) & 1 != 0 {
            count += 1;
        }
        at += u64::from(length.max(2));
    }
    count
}
