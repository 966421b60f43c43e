//! `--device edu`: the educational device, with nido's extensions.

use devices::edu::{EduFeatures, EduOptions};

use super::keys::{Key, ListError, Table, Values};
use super::places::{ADDR, BUS, ID};
use super::values::Kind;

/// The keys.
pub(super) const TABLE: Table = Table {
    option: "--device edu",
    implied: None,
    keys: &[
        Key {
            name: "dma_mask",
            aliases: &["dma-mask"],
            kind: Kind::Number,
            default: "0x0fffffff",
            help: "address bits that its DMA engine drives",
        },
        Key {
            name: "msi-vectors",
            aliases: &[],
            kind: Kind::OneOf(&[1, 2, 4, 8, 16, 32]),
            default: "1",
            help: "extension: MSI vectors; bit n of the interrupt status has the vector n modulo those that are enabled",
        },
        Key {
            name: "ats",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "extension: asks for translations and keeps them",
        },
        Key {
            name: "pasid",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "extension: makes requests with a PASID",
        },
        Key {
            name: "pri",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "extension: asks for pages; needs ats=on",
        },
        Key {
            name: "migration",
            aliases: &[],
            kind: Kind::OnOff,
            default: "off",
            help: "BAR 2 saves and restores the device, for a guest whose VFIO driver has it move on; without ats, pasid and pri",
        },
        ID,
        BUS,
        ADDR,
    ],
};

/// The device that the values of [`TABLE`] ask for.
pub(super) fn options(values: &Values) -> Result<EduOptions, ListError> {
    let features = EduFeatures {
        ats: values.on_off("ats").unwrap_or(false),
        pasid: values.on_off("pasid").unwrap_or(false),
        pri: values.on_off("pri").unwrap_or(false),
    };
    if features.pri && !features.ats {
        return Err(
            values.conflict("pri=on needs ats=on; add `ats=on` or drop `pri=on`".to_owned())
        );
    }
    let migration = values.on_off("migration").unwrap_or(false);
    if migration && features.any() {
        return Err(values.conflict(
            "migration=on goes without ats, pasid and pri; drop them or drop `migration=on`"
                .to_owned(),
        ));
    }
    let default = EduOptions::default();
    let msi_vectors = values.number("msi-vectors").map(u8::try_from);
    Ok(EduOptions {
        dma_mask: values.number("dma_mask").unwrap_or(default.dma_mask),
        msi_vectors: msi_vectors
            .and_then(Result::ok)
            .unwrap_or(default.msi_vectors),
        features,
        migration,
    })
}
