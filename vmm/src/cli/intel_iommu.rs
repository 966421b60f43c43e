//! `--device intel-iommu`: the Intel VT-d remapping unit.

use intel_vtd::AddressWidth;

use super::keys::{Key, ListError, Table, Values};
use super::values::Kind;
use crate::config::{IommuConfig, SettledUnit};

/// Widest PASID: what the PASID prefix of a PCI Express request has room for.
const MOST_PASID_BITS: u64 = 20;

/// Memory for shadows: with less, few drivers would get far.
const LEAST_SHADOW_MEMORY: u64 = 1 << 20;

/// PASIDs of a device that are bound at a time. Each takes a call of the host or two.
const MOST_BOUND_PASIDS: u64 = 4096;

/// The keys.
pub(super) const TABLE: Table = Table {
    option: "--device intel-iommu",
    implied: None,
    keys: &[
        Key {
            name: "x-flts",
            aliases: &["flts", "fsts"],
            kind: Kind::OnOffAuto,
            default: "auto",
            help: "first-stage translation besides second-stage; auto: if the host nests for every assigned device",
        },
        Key {
            name: "aw-bits",
            aliases: &[],
            kind: Kind::OneOf(&[39, 48, 57]),
            default: "48",
            help: "width of translated addresses",
        },
        Key {
            name: "intremap",
            aliases: &[],
            kind: Kind::OnOff,
            default: "on",
            help: "interrupt remapping",
        },
        Key {
            name: "caching-mode",
            aliases: &[],
            kind: Kind::OnOffAuto,
            default: "auto",
            help: "guest announces new mappings too; auto: with an iommufd",
        },
        Key {
            name: "x-scalable-mode",
            aliases: &["scalable-mode"],
            kind: Kind::OnOff,
            default: "on",
            help: "scalable mode, which first-stage translation needs",
        },
        Key {
            name: "device-iotlb",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "devices with ATS may ask for translations and keep them",
        },
        Key {
            name: "pasid-bits",
            aliases: &[],
            kind: Kind::Bounded {
                least: 0,
                most: MOST_PASID_BITS,
            },
            default: "0",
            help: "width of PASIDs; 0: requests have none",
        },
        Key {
            name: "svm",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "devices with PRI may ask for pages; needs the two keys above, and x-flts=on",
        },
        Key {
            name: "shadow-memory",
            aliases: &[],
            kind: Kind::Size {
                least: LEAST_SHADOW_MEMORY,
            },
            default: "auto",
            help: "most memory of the host for what shows the guest's second-stage tables to assigned devices, of which a domain \
                   has up to a quarter; auto: for each page of guest memory by itself in four domains",
        },
        Key {
            name: "bound-pasids",
            aliases: &[],
            kind: Kind::Bounded {
                least: 1,
                most: MOST_BOUND_PASIDS,
            },
            default: "256",
            help: "most PASIDs of each assigned device at a time; those beyond it reach nothing until others go",
        },
        Key {
            name: "x-snoop-control",
            aliases: &[],
            kind: Kind::OnOff,
            default: "on",
            help: "the guest can have requests snoop caches (ECAP.SC); off: to be as a host's IOMMU without",
        },
        Key {
            name: "x-page-walk-coherency",
            aliases: &[],
            kind: Kind::OnOff,
            default: "on",
            help: "the guest need not flush table entries (ECAP.C, SMPWCS); off: to be as a host's IOMMU without",
        },
        Key {
            name: "x-keep-translations",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "keep translations until the guest invalidates them, to find invalidations that it forgot; slow",
        },
        Key {
            name: "x-settled",
            aliases: &[],
            kind: Kind::Text("BITS[+1g][+srs][+eafs][+snooped]"),
            default: "none: the unit offers what the devices of the host can",
            help: "what the unit of a machine that is moved was decided to be: bits of address, and what its walks can; devices of \
                   the host that lack something of it are refused",
        },
    ],
};

/// The unit that the values of [`TABLE`] ask for.
pub(super) fn unit(values: &Values) -> Result<IommuConfig, ListError> {
    let address_width = match values.number("aw-bits") {
        Some(39) => AddressWidth::Bits39,
        Some(57) => AddressWidth::Bits57,
        _ => AddressWidth::Bits48,
    };
    let scalable = values.on_off("x-scalable-mode").unwrap_or(true);
    let unit = IommuConfig {
        address_width,
        scalable,
        first_stage: first_stage(values, scalable, address_width)?,
        intremap: values.on_off("intremap").unwrap_or(true),
        caching_mode: values.on_off("caching-mode"),
        device_iotlb: values.on_off("device-iotlb").unwrap_or(false),
        pasid_bits: pasid_bits(values)?,
        page_requests: values.on_off("svm").unwrap_or(false),
        snoop_control: values.on_off("x-snoop-control").unwrap_or(true),
        page_walk_coherency: values.on_off("x-page-walk-coherency").unwrap_or(true),
        keep_translations: values.on_off("x-keep-translations").unwrap_or(false),
        shadow_memory: shadow_memory(values)?,
        bound_pasids: bound_pasids(values)?,
        settled: settled(values)?,
    };
    check_needs(values, &unit)?;
    Ok(unit)
}

/// `x-flts`, which is off where the rest of the unit rules it out and nobody insists.
fn first_stage(
    values: &Values,
    scalable: bool,
    width: AddressWidth,
) -> Result<Option<bool>, ListError> {
    let asked = values.on_off("x-flts");
    let obstacle = if !scalable {
        "x-flts=on needs scalable mode; drop `x-scalable-mode=off` or write `x-flts=off`"
    } else if width == AddressWidth::Bits39 {
        "x-flts=on needs 48 or 57 address bits; drop `aw-bits=39` or write `x-flts=off`"
    } else {
        return Ok(asked);
    };
    match asked {
        Some(true) => Err(values.conflict(obstacle.to_owned())),
        _ => Ok(Some(false)),
    }
}

fn pasid_bits(values: &Values) -> Result<u8, ListError> {
    let bits = values.number("pasid-bits").unwrap_or(0);
    let valid = u8::try_from(bits).ok().filter(|_| bits <= MOST_PASID_BITS);
    valid.ok_or_else(|| {
        values.conflict(format!(
            "pasid-bits={bits} is too wide: a PASID has at most {MOST_PASID_BITS} bits; write \
             `pasid-bits={MOST_PASID_BITS}` or less"
        ))
    })
}

fn shadow_memory(values: &Values) -> Result<Option<u64>, ListError> {
    match values.number("shadow-memory") {
        Some(bytes) if bytes < LEAST_SHADOW_MEMORY => Err(values.conflict(format!(
            "shadow-memory={bytes} is too little; write `shadow-memory=1M` or more"
        ))),
        bytes => Ok(bytes),
    }
}

fn bound_pasids(values: &Values) -> Result<Option<usize>, ListError> {
    let Some(number) = values.number("bound-pasids") else {
        return Ok(None);
    };
    let valid = usize::try_from(number).ok();
    let valid = valid.filter(|_| (1..=MOST_BOUND_PASIDS).contains(&number));
    valid.map(Some).ok_or_else(|| {
        values.conflict(format!(
            "bound-pasids={number} is not possible; write 1 to {MOST_BOUND_PASIDS}"
        ))
    })
}

/// Names of what walks can.
const PAGES_OF_1G: &str = "1g";
const SUPERVISOR_REQUESTS: &str = "srs";
const EXTENDED_ACCESSED: &str = "eafs";
const SNOOPED_WALKS: &str = "snooped";

fn settled(values: &Values) -> Result<Option<SettledUnit>, ListError> {
    let Some(text) = values.text("x-settled") else {
        return Ok(None);
    };
    let mut words = text.split('+');
    let bits = words.next().and_then(|bits| bits.parse().ok());
    let mut unit = bits.map(|address_bits| SettledUnit {
        address_bits,
        pages_of_1g: false,
        supervisor_requests: false,
        extended_accessed: false,
        snooped_walks: false,
    });
    for word in words {
        let has = unit.as_mut().and_then(|unit| match word {
            PAGES_OF_1G => Some(&mut unit.pages_of_1g),
            SUPERVISOR_REQUESTS => Some(&mut unit.supervisor_requests),
            EXTENDED_ACCESSED => Some(&mut unit.extended_accessed),
            SNOOPED_WALKS => Some(&mut unit.snooped_walks),
            _ => None,
        });
        match has {
            Some(has) => *has = true,
            None => unit = None,
        }
    }
    unit.map(Some).ok_or_else(|| {
        values.conflict(format!(
            "x-settled=`{text}` is no unit; write it as in 48+1g+srs+eafs+snooped"
        ))
    })
}

/// As `x-settled` has it.
pub(super) fn settled_text(unit: &SettledUnit) -> String {
    let SettledUnit {
        address_bits,
        pages_of_1g,
        supervisor_requests,
        extended_accessed,
        snooped_walks,
    } = *unit;
    let walks = [
        (pages_of_1g, PAGES_OF_1G),
        (supervisor_requests, SUPERVISOR_REQUESTS),
        (extended_accessed, EXTENDED_ACCESSED),
        (snooped_walks, SNOOPED_WALKS),
    ];
    let mut text = address_bits.to_string();
    for (_, name) in walks.iter().filter(|(has, _)| *has) {
        text.push('+');
        text.push_str(name);
    }
    text
}

/// Refuses a unit that lacks what another part of it is built on.
fn check_needs(values: &Values, unit: &IommuConfig) -> Result<(), ListError> {
    let pasids = unit.pasid_bits != 0;
    let svm = unit.page_requests;
    let first_stage = unit.first_stage != Some(false);
    let flts = "x-flts=on with 48 or 57 address bits";
    let needs = [
        (pasids, unit.scalable, "pasid-bits", "x-scalable-mode=on"),
        (svm, first_stage, "svm=on", flts),
        (svm, unit.device_iotlb, "svm=on", "device-iotlb=on"),
        (svm, pasids, "svm=on", "pasid-bits=20"),
    ];
    match needs.iter().find(|(asked, there, ..)| *asked && !there) {
        Some((_, _, what, needs)) => {
            Err(values.conflict(format!("{what} needs {needs}; add that, or drop {what}")))
        }
        None => Ok(()),
    }
}
