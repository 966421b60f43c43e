//! A random guest on a machine with a remapping unit: it builds and spoils tables, invalidates, and
//! makes requests.

mod changes;
mod configuration;
mod devices;
mod interrupts;
mod requests;
mod structures;
mod tables;

use std::collections::BTreeMap;

pub use configuration::configuration;

use super::{Check, INTERRUPT_TABLE, LEGACY_ROOT, Machine, POOL, SCALABLE_ROOT};
use crate::driver::tables::{Pages, Slot, Space};
use crate::rng::Rng;

const DATA: u64 = 0x6_0000;
const END: u64 = 0x8_0000;

/// A guest on a machine.
pub struct Guest {
    /// The machine.
    pub machine: Machine,
    rng: Rng,
    pages: Pages,
    spaces: Vec<Space>,
    /// Address width code of each second-stage space; of a nested one, that of its second stage.
    widths: Vec<u64>,
    /// Input addresses of interest, with their space.
    inputs: Vec<(usize, u64)>,
    slots: Vec<Slot>,
    structures: Vec<(u64, usize)>,
    interrupt_index: u64,
    /// The space of a mode, a source and a PASID. Corruption may make it another one.
    assigned: BTreeMap<(u64, usize, u64), usize>,
    /// RID_PASID of each source.
    rid_pasids: [u64; 3],
}

/// PASIDs that have an entry.
const PASIDS: [u64; 4] = [0, 1, 5, 67];

/// Where the PASID-table entry of a source is.
fn pasid_at(source: usize, pasid: u64) -> u64 {
    let table = if pasid < 64 { 0xd000 } else { 0x1_1000 };
    table + source as u64 * 0x1000 + (pasid & 0x3f) * 64
}

/// Space numbers.
const SECOND: usize = 0;
const NESTED: usize = 2;

impl Guest {
    /// A guest with everything set up, and translation on.
    ///
    /// # Errors
    /// When the unit does not start as specified.
    pub fn new(rng: Rng) -> Result<Self, String> {
        let mut rng = rng;
        let config = configuration(&mut rng);
        let machine = Machine::new(&config, &mut rng)?;
        let mut guest = Self {
            machine,
            rng,
            pages: Pages::new(POOL, DATA),
            spaces: Vec::new(),
            widths: Vec::new(),
            inputs: Vec::new(),
            slots: Vec::new(),
            structures: Vec::new(),
            interrupt_index: 0,
            assigned: BTreeMap::new(),
            rid_pasids: [0; 3],
        };
        guest.build();
        guest.machine.sync();
        guest.machine.image.forget();
        if guest.machine.facts.interrupts {
            let extended = guest.machine.facts.extended_interrupts && guest.rng.chance(1, 2);
            guest
                .machine
                .set_interrupt_table(INTERRUPT_TABLE, 7, extended);
            guest.machine.remap_interrupts(true);
        }
        let mode = u64::from(guest.machine.facts.scalable && guest.rng.chance(3, 4));
        guest.choose_root(mode);
        guest.machine.translate(true);
        guest.machine.mask_event(guest.rng.chance(1, 2))?;
        guest.machine.check_quiet()?;
        Ok(guest)
    }

    fn choose_root(&mut self, mode: u64) {
        let table = if mode == 0 {
            LEGACY_ROOT
        } else {
            SCALABLE_ROOT
        };
        self.machine.set_root(table, mode);
    }

    /// One random step.
    ///
    /// # Errors
    /// When the unit and the oracle disagree.
    pub fn step(&mut self) -> Check {
        if self.rng.chance(1, 3) {
            self.machine.drain_log()?;
        }
        if self.rng.chance(1, 3) {
            return self.device_step();
        }
        match self.rng.below(100) {
            0..40 => self.dma(),
            40..50 => self.hot(),
            50..62 => self.interrupts(),
            62..68 => {
                self.corrupt_table();
                Ok(())
            }
            68..71 => {
                self.corrupt_structure();
                Ok(())
            }
            71..76 => {
                let choice = crate::index(self.rng.below(self.inputs.len() as u64));
                self.map(choice);
                Ok(())
            }
            76..82 => self.remap_properly(),
            82..87 => self.random_invalidation(),
            87..89 => self.change_structure_properly(),
            89..91 => {
                self.build_structures();
                self.map_nested();
                for choice in 0..self.inputs.len() {
                    self.map(choice);
                }
                self.machine.sync();
                let registers = self.rng.chance(1, 4);
                self.machine.invalidate_world(registers);
                self.machine.check_quiet()
            }
            91..93 => self.modes(),
            93..97 => {
                let index = self.rng.below(8);
                match self.rng.below(4) {
                    0 => self.machine.clear_record(index),
                    1 => {
                        let masked = self.rng.chance(1, 2);
                        self.machine.mask_event(masked)
                    }
                    _ => self.machine.drain_log(),
                }
            }
            _ => {
                let registers = self.rng.chance(1, 4);
                self.machine.sync();
                self.machine.invalidate_world(registers);
                self.machine.check_quiet()
            }
        }
    }
}
