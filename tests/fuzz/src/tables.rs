//! Valid tables of scalable mode, which arbitrary words rarely are.

use arbitrary::Arbitrary;

use crate::machine::Machine;
use crate::word::Source;

/// What the tables of a device are to be.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Tables {
    source: Source,
    /// DTE, PASIDE, PRE from bit 0; bit 3: accessed and dirty bits; bits 5:4: PGTT; bits 7:6: size
    /// of the page-request queue.
    flags: u8,
    /// Leaf bits, and where the leaf leads.
    leaf: u8,
    /// Where the page-request queue is; within tables is allowed.
    queue: u8,
}

impl Tables {
    /// Lays them out from page 16 on, and switches translation on.
    pub(crate) fn lay(self, machine: &Machine) {
        let guest = &machine.guest;
        let source = u64::from(self.source.id());
        let caps = machine.unit.capabilities().ecap;
        let devfn = source & 0xFF;
        let [root, context, directory, table, top] =
            [0x10_u64, 0x11, 0x12, 0x13, 0x14].map(|page| page << 12);
        let half = devfn >> 7;
        guest.poke(root + source / 256 * 16 + half * 8, context | 1);
        let offered = u64::from(caps.dt()) | u64::from(caps.pasid()) << 1;
        let offered = offered | u64::from(caps.prs()) << 2;
        let entry = context + (devfn & 0x7F) * 32;
        let flags = u64::from(self.flags) & 7 & offered;
        for (at, word) in (entry..)
            .step_by(8)
            .zip([directory | 0x200 | flags << 2 | 1, 0, 0, 0])
        {
            guest.poke(at, word);
        }
        guest.poke(directory, table | 1);
        let kind = [4, 1, 2, 3][usize::from(self.flags >> 4 & 3)];
        let depth = if machine.unit.capabilities().cap.sagaw() & 4 != 0 {
            2
        } else {
            1
        };
        let dirty = u64::from(self.flags >> 3 & 1);
        // SSADE; PWSNP and PGSNP; SRE.
        let words = [
            top | dirty << 9 | kind << 6 | depth << 2 | 1,
            dirty << 23 | 1,
            top | 1,
            0,
        ];
        // Requests without PASID have that of PASID 0, and others PASID 1.
        for entry in [table, table + 64] {
            for (at, word) in (entry..).step_by(8).zip(words) {
                guest.poke(at, word);
            }
        }
        for level in 0..depth {
            let next = top + ((level + 1) << 12);
            guest.poke(top + (level << 12), next | 7);
        }
        let last = top + (depth << 12);
        let bits = u64::from(self.leaf) & 7;
        // Pages of 2 MiB: the first has low memory in it.
        guest.poke(last, 0x80 | bits);
        guest.poke(last + 8, u64::from(self.leaf >> 3) << 21 | 0x80 | bits);
        // The third 2 MiB have pages of 4 KiB: low memory again.
        let small = last + 0x1000;
        guest.poke(last + 16, small | 7);
        for page in 0..64 {
            guest.poke(small + page * 8, page << 12 | bits);
        }
        machine.write64(
            0xD0,
            u64::from(self.queue) << 12 | u64::from(self.flags >> 6),
        );
        machine.write64(0x20, root | 0x400);
        machine.command(0x4000_0000);
        machine.command(0x8000_0000);
    }
}

#[cfg(test)]
mod tables_test;
