//! The firmware's tables: vCPUs, the remapping unit, the ECAM window, and the address of `edu`.

use crate::load;

/// The parts of the machine that the checks use.
pub struct Machine {
    /// Enabled processors of the MADT.
    pub cpus: u32,
    /// Register base of the first DRHD.
    pub vtd: u64,
    /// Registers of the first I/O APIC, and its requester id by the DRHD's device scope.
    pub ioapic: u64,
    /// See `ioapic`.
    pub ioapic_requester: u16,
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
        let mut machine = Self { cpus: 0, vtd: 0, ioapic: 0, ioapic_requester: 0, edu: None, ecam: 0 };
        let entries = (u64::from(load::<u32>(xsdt + 4)) - 36) / 8;
        for entry in 0..entries {
            // The XSDT's entries start at offset 36: 4-byte aligned only.
            let low: u32 = load(xsdt + 36 + 8 * entry);
            let high: u32 = load(xsdt + 40 + 8 * entry);
            let table = u64::from(high) << 32 | u64::from(low);
            match &load::<[u8; 4]>(table) {
                b"APIC" => {
                    machine.cpus = processors(table);
                    machine.ioapic = ioapic(table);
                }
                b"DMAR" => {
                    machine.vtd = u64::from(load::<u32>(table + 48 + 8));
                    machine.ioapic_requester = ioapic_scope(table + 48);
                }
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

    /// The I/O APIC's pin of `edu`'s INTA, as this machine's `_PRT` says: 16 to 19, rotated by the slot.
    pub fn edu_pin(&self) -> u32 {
        16 + self.edu.map_or(0, |(requester, _)| u32::from(requester) >> 3) % 4
    }
}

/// Length-prefixed structures from `at` to `end`: the address of each, and its type.
fn structures(at: u64, end: u64) -> impl Iterator<Item = (u64, u8)> {
    let mut next = at;
    core::iter::from_fn(move || {
        let at = next;
        (at < end).then(|| {
            next += u64::from(load::<u8>(at + 1).max(2));
            (at, load(at))
        })
    })
}

/// Address of the MADT's first entry of type 1 (I/O APIC).
fn ioapic(madt: u64) -> u64 {
    let end = madt + u64::from(load::<u32>(madt + 4));
    let found = structures(madt + 44, end).find(|(_, kind)| *kind == 1);
    found.map_or(0, |(at, _)| u64::from(load::<u32>(at + 4)))
}

/// Requester id of the I/O APIC (device scope type 3: bus, and one step of path) that the DRHD names.
fn ioapic_scope(drhd: u64) -> u16 {
    let end = drhd + u64::from(load::<u16>(drhd + 2));
    let found = structures(drhd + 16, end).find(|(_, kind)| *kind == 3);
    found.map_or(0, |(at, _)| {
        let [bus, device, function]: [u8; 3] = load(at + 5);
        u16::from(bus) << 8 | u16::from(device) << 3 | u16::from(function)
    })
}

/// Enabled entries of type 0 (local APIC) and 9 (local x2APIC).
fn processors(madt: u64) -> u32 {
    let end = madt + u64::from(load::<u32>(madt + 4));
    let enabled = |(at, kind)| match kind {
        0 => load::<u8>(at + 4) & 1 != 0,
        9 => load::<u8>(at + 8) & 1 != 0,
        _ => false,
    };
    structures(madt + 44, end).filter(|entry| enabled(*entry)).count() as u32
}
