//! The disks of a guest: one of random bytes, one for their transformed copy, one that counts
//! boots.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::guest::disk::{CHUNK, COPY, SOURCE, discarded_from, transform};
use crate::hash::sha256;

/// Bytes of the first two.
const SIZE: usize = 8 << 20;
const COUNTER_SIZE: usize = 1 << 20;
/// Serial numbers by which the guest finds them.
pub(super) const NAMES: [&str; 3] = [SOURCE, COPY, "counter"];

/// The files.
pub(super) struct Disks {
    /// In the order in which nido gets them.
    pub(super) paths: [PathBuf; 3],
    /// Of the first.
    pub(super) hash: String,
}

impl Disks {
    /// Makes the files in `directory`.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let paths = ["source.img", "copy.img", "counter.img"].map(|name| directory.join(name));
        let mut data = vec![0; SIZE];
        File::open("/dev/urandom")?.read_exact(&mut data)?;
        let hash = sha256(&data);
        let [source, copy, counter] = &paths;
        fs::write(source, &data).with_context(|| source.display().to_string())?;
        File::create(copy)?.set_len(SIZE as u64)?;
        File::create(counter)?.set_len(COUNTER_SIZE as u64)?;
        Ok(Self { paths, hash })
    }

    /// nido's options for them.
    pub(super) fn arguments(&self) -> Vec<String> {
        let disks = self.paths.iter().zip(NAMES);
        let options = disks.map(|(path, name)| format!("path={},id={name}", path.display()));
        options
            .flat_map(|option| ["--disk".to_owned(), option])
            .collect()
    }

    /// What is wrong with the files after a guest has run the check `disk`.
    pub(super) fn verify(&self) -> Result<Option<String>> {
        let [source, copy, _] = &self.paths;
        let mut data = fs::read(source)?;
        if sha256(&data) != self.hash {
            return Ok(Some(
                "the disk that the guest only read has changed".to_owned(),
            ));
        }
        transform_by_chunks(&mut data);
        let written = fs::read(copy)?;
        let kept = usize::try_from(discarded_from(SIZE as u64))?;
        if written.get(..kept) != data.get(..kept) {
            return Ok(Some(
                "the disk that the guest wrote holds something else".to_owned(),
            ));
        }
        let discarded = written.get(kept..).unwrap_or_default();
        if discarded.iter().any(|byte| *byte != 0) {
            return Ok(Some(
                "the part that the guest discarded still holds bytes".to_owned(),
            ));
        }
        Ok(None)
    }
}

/// As the guest does it: chunk by chunk.
fn transform_by_chunks(data: &mut [u8]) {
    for (index, chunk) in data.chunks_mut(CHUNK).enumerate() {
        transform((index * CHUNK) as u64, chunk);
    }
}
