//! The oracle of interrupt remapping (sections 5.1 and 9.9).

use crate::facts::Facts;
use crate::image::Image;

/// What the commands of interrupt remapping have latched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remapping {
    /// IRES.
    pub enabled: bool,
    /// CFIS.
    pub compatibility: bool,
    /// IRTA 63:12.
    pub table: u64,
    /// IRTA.S: 2^(S + 1) entries.
    pub size: u64,
    /// EIME.
    pub extended: bool,
}

/// Why a request is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The code.
    pub code: u8,
    /// The index that the record shows; `None` if the record shows anything.
    pub index: Option<u64>,
    /// Whether IRTE.FPD keeps it out of the log.
    pub silent: bool,
}

/// An address and data, or why not.
pub type Outcome = Result<(u64, u64), Blocked>;

/// Completed invalidations of the interrupt entry cache: time, first index, count.
#[derive(Debug, Default)]
pub struct InterruptFlushes(Vec<(u64, u64, u64)>);

impl InterruptFlushes {
    /// Notes a command that completed at `time`.
    pub fn completed(&mut self, time: u64, first: u64, count: u64) {
        self.0.push((time, first, count));
    }

    /// Forgets the past.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    fn gone(&self, replaced: u64, index: u64) -> bool {
        self.0.iter().any(|(time, first, count)| {
            *time >= replaced && (*first..first + count).contains(&index)
        })
    }
}

/// All permitted outcomes of a write of `data` to `address` (0xFEEx_xxxx) by `source`.
pub fn permitted(
    facts: &Facts,
    image: &Image,
    flushes: &InterruptFlushes,
    state: &Remapping,
    source: u64,
    address: u64,
    data: u64,
) -> Vec<Outcome> {
    let blocked = |code, index, silent| {
        vec![Err(Blocked {
            code,
            index,
            silent,
        })]
    };
    if !state.enabled {
        return vec![Ok((address, data))];
    }
    if address & 0x10 == 0 {
        if state.extended || !state.compatibility {
            return blocked(0x25, None, false);
        }
        return vec![Ok((address, data))];
    }
    let handle = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
    let index = if address & 8 != 0 {
        if data >> 16 != 0 {
            return blocked(0x20, None, false);
        }
        handle + data
    } else {
        handle
    };
    let shown = Some(index & 0xffff);
    if index >= 2 << state.size {
        return blocked(0x21, shown, false);
    }
    let Some(versions) = image.versions(state.table + index * 16, 2) else {
        return blocked(0x23, shown, false);
    };
    versions
        .iter()
        .filter(|version| match version.replaced {
            None => true,
            // An entry that blocks is only cached in caching mode.
            Some(replaced) => {
                !flushes.gone(replaced, index)
                    && (facts.caching_mode
                        || entry(&version.words, state.extended, source).is_ok()
                        || version.words[0] & 1 != 0)
            }
        })
        .map(|version| {
            entry(&version.words, state.extended, source).map_err(|code| Blocked {
                code,
                index: shown,
                silent: version.words[0] & 2 != 0,
            })
        })
        .collect()
}

fn entry(words: &[u64], extended: bool, source: u64) -> Result<(u64, u64), u8> {
    let (low, high) = (words[0], words[1]);
    if low & 1 == 0 {
        return Err(0x22);
    }
    let (sid, qualifier, validation) = (high & 0xffff, high >> 16 & 3, high >> 18 & 3);
    let valid = match validation {
        0 => true,
        1 => {
            let ignored = [0, 4, 6, 7][crate::index(qualifier)];
            sid & !ignored == source & !ignored
        }
        2 => (sid >> 8..=sid & 0xff).contains(&(source >> 8)),
        _ => return Err(0x24),
    };
    if !valid {
        return Err(0x26);
    }
    // 13:12, 14 and 15 (no posted interrupts), 31:24; 127:84.
    if low & 0xff00_f000 != 0 || high >> 20 != 0 {
        return Err(0x24);
    }
    let delivery = low >> 5 & 7;
    if matches!(delivery, 3 | 6) {
        return Err(0x24);
    }
    let destination = low >> 32;
    let identity = if extended {
        destination
    } else {
        if destination & 0xffff_00ff != 0 {
            return Err(0x24);
        }
        destination >> 8 & 0xff
    };
    let (logical, redirect, level) = (low >> 2 & 1, low >> 3 & 1, low >> 4 & 1);
    let address = 0xfee0_0000
        | (identity & 0xff) << 12
        | (identity >> 8) << 40
        | redirect << 3
        | logical << 2;
    let data = low >> 16 & 0xff | delivery << 8 | level << 14 | level << 15;
    Ok((address, data))
}
