//! The description of a host's device as it is taken over: what VFIO says of it, and what the guest
//! will see.

use std::io;

use pci::header::{BAR_COUNT, COMMAND, HEADER_TYPE, VENDOR_ID};
use pci::{Bdf, Command};

use super::error::VfioPciError;
use crate::vfio::bars;
use crate::vfio::capabilities::{self, Facts};
use crate::vfio::config::VirtualConfig;
use crate::vfio::direct::Part;
use crate::vfio::host::{HostDevice, IrqKind, Region};
use crate::vfio::image::{Image, chunk, read_image};
use crate::vfio::services::Shown;

/// A device that has been reset, if it can be.
pub(super) struct Described {
    pub(super) has_reset: bool,
    /// It has a pin, and the host can use it.
    pub(super) has_intx: bool,
    /// What the guest sees.
    pub(super) config: VirtualConfig,
    /// The parts of its BARs that the guest reaches without the VMM.
    pub(super) parts: Vec<Part>,
    /// Command bits that the guest has no say in: Memory Space is on, and the host's choice of
    /// error reporting is kept.
    pub(super) command: u16,
}

/// Resets `host` and describes it for the guest's function `bdf`.
///
/// # Errors
/// When it is no endpoint, or VFIO refuses.
pub(super) fn describe(
    host: &dyn HostDevice,
    bdf: Bdf,
    shown: Shown,
) -> Result<Described, VfioPciError> {
    let name = host.name();
    let failed = |what| VfioPciError::failed(&name, what);
    let has_reset = host.has_reset().map_err(failed("VFIO_DEVICE_GET_INFO"))?;
    if has_reset {
        host.reset().map_err(failed("resetting it"))?;
    }
    let image = read_image(host).map_err(failed("reading its configuration space"))?;
    check_header(&image, &name)?;
    let regions = bar_regions(host).map_err(failed("describing its BARs"))?;
    let count = |kind| host.irqs(kind).map_or(0, |irqs| irqs.count);
    let facts = Facts {
        on_root_bus: bdf.bus() == 0,
        has_reset,
        shown,
        msi: count(IrqKind::Msi),
        msix: count(IrqKind::Msix),
    };
    let sizes = regions.each_ref().map(|region| region.size);
    let config = capabilities::build(&image, bars::decode(&image, &sizes), facts);
    let parts = map_parts(host, &config, &regions).map_err(failed("mapping its BARs"))?;
    let command = u16::from_le_bytes(chunk(&image[..], COMMAND));
    Ok(Described {
        has_reset,
        has_intx: count(IrqKind::Intx) > 0,
        config,
        parts,
        command: Command::MEMORY | command & (Command::PARITY_RESPONSE | Command::SERR),
    })
}

fn check_header(image: &Image, name: &str) -> Result<(), VfioPciError> {
    let device = name.to_owned();
    if chunk(&image[..], VENDOR_ID) == [0xff; 4] {
        return Err(VfioPciError::Gone { device });
    }
    let [header] = chunk(&image[..], HEADER_TYPE);
    // The highest bit says that the device has several functions.
    if header & 0x7f != 0 {
        return Err(VfioPciError::NotAnEndpoint { device, header });
    }
    Ok(())
}

fn bar_regions(host: &dyn HostDevice) -> io::Result<[Region; BAR_COUNT]> {
    let mut regions: [Region; BAR_COUNT] = Default::default();
    for (index, region) in (0..).zip(&mut regions) {
        *region = host.region(index)?;
    }
    Ok(regions)
}

/// Maps what the guest may touch by itself: neither the table of MSI-X nor its pending bits.
fn map_parts(
    host: &dyn HostDevice,
    config: &VirtualConfig,
    regions: &[Region; BAR_COUNT],
) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for bar in &config.bars {
        let (Some(region), Ok(index)) = (regions.get(bar.index), u32::try_from(bar.index)) else {
            continue;
        };
        let msix = config.layout.msix.as_ref();
        let trapped = msix.map(|msix| bars::msix_ranges(bar.index, msix));
        let trapped = trapped.unwrap_or_default();
        for range in bars::direct_parts(region.size, &region.mappable, &trapped) {
            parts.push(Part {
                bar: bar.index,
                offset: range.start,
                memory: host.map(index, range)?,
            });
        }
    }
    Ok(parts)
}
