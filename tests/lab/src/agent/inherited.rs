//! Files that nido is given open, for its `fd=` keys.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::host::Devices;
use crate::{pci, sys};

/// What stands before the name of what is to be open.
const OPEN: &str = "{open ";

/// The files of one run, for as long as nido is to find them open when it starts.
#[derive(Default)]
pub(super) struct Inherited(Vec<File>);

impl Inherited {
    /// `word` with a descriptor in place of `{open iommufd}`, or of `{open edu0}` for the VFIO node
    /// of that device.
    pub(super) fn substitute(&mut self, word: &str, devices: &Devices) -> Result<String> {
        let Some((before, rest)) = word.split_once(OPEN) else {
            return Ok(word.to_owned());
        };
        let (name, after) = rest.split_once('}').context("`{open` without `}`")?;
        let path = match name {
            "iommufd" => PathBuf::from("/dev/iommu"),
            name => node(devices.address(name)?)?,
        };
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        sys::inherit(&file)?;
        let word = format!("{before}{}{after}", file.as_raw_fd());
        self.0.push(file);
        Ok(word)
    }
}

/// The VFIO node of a device that vfio-pci has.
fn node(address: &str) -> Result<PathBuf> {
    let directory = pci::directory(address).join("vfio-dev");
    let mut entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let entry = entries.next().context("no VFIO node")??;
    Ok(Path::new("/dev/vfio/devices").join(entry.file_name()))
}
