//! The state of an MSI-X table: entries and pending bits. Message Control is in configuration space.

use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError};

use super::{MSIX_ENTRY_SIZE, MsixTable, WRITABLE_ENTRY};

/// What an MSI-X table is like: part of the state of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    /// One behind the other.
    entries: Bytes,
    pending: Vec<u64>,
}

impl MsixTable {
    /// What it is like.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let state = self.lock();
        MsixState {
            entries: state.entries.concat().into(),
            pending: state.pending.clone(),
        }
    }

    /// Makes a table that was just created like the one that was [saved](Self::save), under Message
    /// Control's enable and function mask, which are in configuration space. Nothing is sent.
    ///
    /// # Errors
    /// `state` is of no such table; nothing has changed.
    pub fn restore(
        &self,
        state: &MsixState,
        (enabled, function_masked): (bool, bool),
    ) -> Result<(), RestoreError> {
        let mut here = self.lock();
        let vectors = here.entries.len();
        let bytes = state.entries.as_slice();
        let saved = bytes.len() / MSIX_ENTRY_SIZE;
        RestoreError::unless_equal("the number of MSI-X vectors", saved, vectors)?;
        let (entries, rest) = bytes.as_chunks::<MSIX_ENTRY_SIZE>();
        let fits = |entry: &[u8; MSIX_ENTRY_SIZE]| {
            let mut bits = entry.iter().zip(WRITABLE_ENTRY);
            bits.all(|(byte, writable)| byte & !writable == 0)
        };
        if !rest.is_empty() || !entries.iter().all(fits) {
            let why = "it has bits that it never has";
            return Err(RestoreError::damaged("the MSI-X table", why));
        }
        let beyond =
            |word: u64| vectors.div_ceil(64) * 64 != vectors && word >> (vectors % 64) != 0;
        let count = state.pending.len();
        if count != here.pending.len() || state.pending.last().is_some_and(|word| beyond(*word)) {
            let why = format_args!("they are not those of {vectors} vectors");
            return Err(RestoreError::damaged("MSI-X pending bits", why));
        }
        here.entries.copy_from_slice(entries);
        here.pending.clone_from(&state.pending);
        here.enabled = enabled;
        here.function_masked = function_masked;
        Ok(())
    }
}

#[cfg(test)]
mod saved_test;
