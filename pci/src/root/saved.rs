//! The states of all functions.

use std::sync::Arc;

use state::{RestoreError, SaveError, Section, Sections};

use super::RootComplex;
use crate::function::PciFunction;

impl RootComplex {
    /// What all functions are like, the host bridge and root ports included, each by its name: its
    /// address on bus 0, or that of the port that it is behind, whatever number the guest has given
    /// that bus. Nothing happens to any of them meanwhile.
    ///
    /// # Errors
    /// The first that cannot be saved, and why.
    pub fn save(&self) -> Result<Vec<(String, Section)>, (String, SaveError)> {
        let _planning = self.planning();
        let functions = self.named().into_iter();
        let sections = functions.map(|(name, function)| match function.save() {
            Ok(section) => Ok((name, section)),
            Err(error) => Err((name, error)),
        });
        sections.collect()
    }

    /// Makes the functions of a machine that was just made, and for which
    /// [firmware](Self::assign_bars) has run, like those that were [saved](Self::save), and decodes
    /// addresses as their registers say. Takes the sections of all functions out of `sections`.
    ///
    /// # Errors
    /// The first function for which there is none, or that is another one. The machine is of no use
    /// then.
    pub fn restore(&self, sections: &mut Sections) -> Result<(), (String, RestoreError)> {
        let _planning = self.planning();
        for (name, function) in self.named() {
            let section = sections.take(&name);
            let restored = section.and_then(|section| function.restore(&section));
            restored.map_err(|error| (name, error))?;
        }
        self.decode();
        Ok(())
    }

    /// All functions by name, ports before what is behind them.
    fn named(&self) -> Vec<(String, Arc<dyn PciFunction>)> {
        let functions = self.functions().into_iter();
        let mut named: Vec<_> = functions
            .map(|(address, function)| (address.to_string(), function))
            .collect();
        let behind = self.ports().into_iter().filter_map(|port| {
            let function = port.function()?;
            Some((format!("behind {}", port.address()), function))
        });
        named.extend(behind);
        named
    }
}

#[cfg(test)]
mod saved_test;
