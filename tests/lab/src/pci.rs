//! PCI functions and their drivers, as sysfs shows them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory of a function.
pub(crate) fn directory(address: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(address)
}

/// Addresses (`0000:00:03.0`) of the functions with these ids, in ascending order.
pub(crate) fn find_all(vendor: u16, device: u16) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let path = entry?.path();
        let id = |name: &str| -> Option<u16> {
            let text = fs::read_to_string(path.join(name)).ok()?;
            u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        if id("vendor") == Some(vendor) && id("device") == Some(device) {
            let name = path.file_name().context("unnamed device")?;
            found.push(name.to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// The function with these ids that comes first.
pub(crate) fn find(vendor: u16, device: u16) -> Result<String> {
    let first = find_all(vendor, device)?.into_iter().next();
    first.with_context(|| format!("no PCI function {vendor:04x}:{device:04x}"))
}

/// Who drives the function.
pub(crate) fn driver(address: &str) -> Option<String> {
    let link = fs::read_link(directory(address).join("driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Takes the function from whoever drives it.
pub(crate) fn unbind(address: &str) -> Result<()> {
    if driver(address).is_some() {
        fs::write(directory(address).join("driver/unbind"), address).context("unbind")?;
    }
    Ok(())
}

/// Has `wanted` drive the function.
pub(crate) fn bind(address: &str, wanted: &str) -> Result<()> {
    if driver(address).as_deref() == Some(wanted) {
        return Ok(());
    }
    unbind(address)?;
    let directory = directory(address);
    fs::write(directory.join("driver_override"), wanted).context("driver_override")?;
    fs::write("/sys/bus/pci/drivers_probe", address).with_context(|| format!("bind to {wanted}"))
}
